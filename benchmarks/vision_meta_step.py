"""The vision meta step by central difference against double backward: seconds, peak memory,
agreement of the mask's gradient.

    python benchmarks/vision_meta_step.py [--images 4] [--size 112] [--blocks 12] [--width 384]
    [--aligned 2] [--repeats 5]

A DINOv3-shaped ViT with random weights, two global views, patches of 16 pixels. Three ways to
`dV/d mask`:

* whole graph: `<u, grad_S L>` differentiated through the whole network, the way that needs no
  thought (the paper's);
* double backward and central difference as vpretrain runs them, cut where S begins.

Interleaved A B C, medians; memory is what the process holds at most above what it held before.
Writes `results/vision-meta-step.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpretrain.method import vectors
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.run.folder import environment
from vpretrain.studies.doctor import peak_bytes
from vpretrain.system.contexts import evaluating
from vpretrain.system.files import write_json
from vpretrain.vision.backbone import Backbone, aligned_parameters
from vpretrain.vision.data.crops import Crops
from vpretrain.vision.data.stream import ImageBatch
from vpretrain.vision.dino.learner import Context, DinoLearner, DinoSettings
from vpretrain.vision.dino.loss import DinoHead
from vpretrain.vision.loading import new_model
from vpretrain.vision.steering.views import LearnedViews, blur


def whole_graph(
    learner: DinoLearner, context: Context, task: LearnedViews, down: dict[str, Tensor]
) -> Tensor:
    """`d/d mask <u, grad_S L>` by double backward through the whole network."""
    mask = task.mask.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), evaluating(learner.model):
        loss = learner.loss(context, task.with_controls((mask,)))
        gradients = torch.autograd.grad(loss, list(learner.aligned.values()), create_graph=True)
        value = vectors.inner(down, vectors.named(learner.aligned, gradients))
        (result,) = torch.autograd.grad(value, (mask,))
    return result


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"images": 4, "size": 112, "blocks": 12, "width": 384, "aligned": 2, "repeats": 5}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def made(chosen: argparse.Namespace) -> DinoLearner:
    """A learner of these sizes, whose two global views of any batch are noise."""
    model = new_model(
        {
            "model_type": "dinov3_vit",
            "hidden_size": chosen.width,
            "intermediate_size": 4 * chosen.width,
            "num_hidden_layers": chosen.blocks,
            "num_attention_heads": chosen.width // 64,
            "patch_size": 16,
            "image_size": chosen.size,
            "num_register_tokens": 4,
        },
        dtype=torch.float32,
        attention="sdpa",
    )
    backbone = Backbone(model)
    aligned = aligned_parameters(backbone, blocks=chosen.aligned, patterns=[])
    shape = (2, chosen.images, 3, chosen.size, chosen.size)
    # No local views: they carry no gradient to a mask.
    views = Crops(tuple(torch.randn(shape)), ())
    return DinoLearner(
        backbone,
        DinoHead(backbone.width),
        aligned,
        lambda batch: views,
        DinoSettings(teacher_views="plain"),
    )


def main() -> None:
    """Prints one line a way, and writes them."""
    chosen = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    learner = made(chosen)
    black = torch.zeros(chosen.images, 3, chosen.size, chosen.size, dtype=torch.uint8)
    context = learner.forward(ImageBatch(black, torch.arange(chosen.images), (), seed=0))
    mask = torch.rand(2, chosen.images, 1, chosen.size, chosen.size)
    task = LearnedViews(mask, blur(context.global_views, 2.0))
    down = {name: torch.randn_like(p) for name, p in learner.aligned.items()}
    assert context.teacher_logits is not None  # once, before anything is timed

    def estimated(name: str) -> Callable[[], Tensor]:
        value_estimator = ValueEstimator(learner, Alignment("dot"), ESTIMATORS[name])
        value_estimator.update([down], None, 0.0)
        return lambda: value_estimator(context, task).gradient[0]

    ways = {"whole graph": lambda: whole_graph(learner, context, task, down)} | {
        name: estimated(name) for name in ("double_backward", "central_difference")
    }
    reference = ways["whole graph"]().flatten()
    rows = {
        name: {
            "cosine": float(
                torch.nn.functional.cosine_similarity(way().flatten(), reference, dim=0)
            ),
            "peak_bytes": peak_bytes(way),
        }
        for name, way in ways.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(chosen.repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    slow = statistics.median(seconds["whole graph"])
    for name, row in rows.items():
        row |= {
            "seconds": statistics.median(seconds[name]),
            "faster": slow / statistics.median(seconds[name]),
        }
        row["memory"] = row["peak_bytes"] / rows["whole graph"]["peak_bytes"]
        print(
            f"{name:20s} {row['seconds']:.2f} s  {row['faster']:.2f}x  memory "
            f"{row['memory']:.2f}  cosine {row['cosine']:.6f}"
        )
    result = {"sizes": vars(chosen), "ways": rows, "environment": environment()}
    write_json(Path(__file__).parent.parent / "results" / "vision-meta-step.json", result)


if __name__ == "__main__":
    main()
