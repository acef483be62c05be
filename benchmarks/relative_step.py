"""How far the central difference's step may go: cosine of token values with double backward in
float64, by relative step.

    python benchmarks/relative_step.py [recipe] [--json]

The default recipe is demo-language. The value that vpretrain uses is
`vpretrain.method.directional.RELATIVE_STEP`.
"""

import json
import sys

import torch
from torch import Tensor

from vpretrain.config import recipe
from vpretrain.method import directional
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.parts import AnyParts

STEPS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6)


def main() -> None:
    """Prints one line a step."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("-")]
    resolved = recipe.load(
        arguments[0] if arguments else "demo-language", ["arm=closed_form"], schemas=SCHEMAS
    )
    modality = MODALITIES[resolved.modality]()
    materials = modality.load(resolved)

    def parts(dtype: str) -> AnyParts:
        section = resolved.learner.model_copy(update={"dtype": dtype, "attention": "eager"})
        return modality.build(resolved.model_copy(update={"learner": section}), materials)

    wide = parts("float64")
    batch, down = next(wide.stream), wide.feedback.gradients(wide.learner)[:1]

    def values(made: AnyParts, estimator: directional.Function, dtype: torch.dtype) -> Tensor:
        assert isinstance(made.designer, ExactDesigner)
        value_estimator = ValueEstimator(made.learner, Alignment("dot"), estimator)
        value_estimator.update([{n: g.to(dtype) for n, g in down[0].items()}], None, 0.0)
        context = made.learner.forward(batch)
        probe = made.designer.rule.probe(context)
        return value_estimator(context, probe).gradient[0].double().flatten()

    reference = values(wide, directional.double_backward, torch.float64)
    rows = []
    for name in ("float32", "bfloat16"):
        made = parts(name)
        for step in STEPS:
            directional.RELATIVE_STEP[torch.float32] = step
            result = values(made, directional.central_difference, torch.float32)
            cosine = float(torch.nn.functional.cosine_similarity(result, reference, dim=0))
            rows.append({"learner": name, "relative_step": step, "cosine": cosine})
            if "--json" not in sys.argv:
                print(f"{name:9} {step:8.0e}  {cosine:.7f}")
    if "--json" in sys.argv:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
