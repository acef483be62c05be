"""Targets are valued beside the student's own pass, where that pass is what is valued."""

from typing import Any

import pytest
import torch

from tests.vision.dino.small_learner import (
    KINDS,
    crop,
    direction,
    learner,
    masked,
    narrow_crop,
    soft,
    value_estimator,
)
from vpretrain.method.estimators import estimator as estimator_named
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.vision.steering.views import LearnedTargets


def test_targets_are_valued_beside_the_students_own_pass() -> None:
    """One-sided: exact to a percent, half the suffix's passes, and the loss is that of the pass
    that was valued."""
    made = learner(blocks=2, dtype=torch.float32, crops=narrow_crop)
    context = made.forward(0)
    task = LearnedTargets(soft(context).mass.requires_grad_())
    objective = made.objective(context, task)
    assert objective.here is not None
    point = {name: p.detach() for name, p in made.aligned.items()}
    known = float(objective.here(task.controls()).detach())
    computed = float(objective.loss(point, task.controls()).detach())
    assert known == pytest.approx(computed, rel=1e-5)
    exact = value_estimator(made, "double_backward")(context, task).gradient[0]
    result = ValueEstimator(made, Alignment("dot"), estimator_named("one_sided_difference"))
    result.update([direction(made)], None, 0.1)
    gradient = result(context, task).gradient[0]
    assert float((gradient - exact).norm()) <= 1e-2 * float(exact.norm())
    assert result.estimator.way.name == "one_sided_difference"  # type: ignore[attr-defined]
    loss = made.loss(context, task)
    assert float(loss.detach()) == pytest.approx(known, rel=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in made.aligned.values())


@pytest.mark.parametrize("why", ["views", "narrow", "dropout"])
def test_a_pass_that_is_not_what_is_valued_does_not_serve(why: str) -> None:
    dtype = torch.bfloat16 if why == "narrow" else torch.float32
    made = learner("dinov2", dtype=dtype, crops=lambda seed: crop(seed, dtype=dtype))
    if why == "dropout":
        made.model.train()
        made.backbone.blocks[0].drop_path = torch.nn.Dropout(0.5)  # type: ignore[union-attr]
    context = made.forward(0)
    task = masked(context) if why == "views" else soft(context)
    task = task.with_controls((task.controls()[0].requires_grad_(),))
    assert made.objective(context, task).here is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 2, "all"])
def test_what_enters_the_suffix_is_computed_once(kind: str, blocks: Any) -> None:
    """After the student's own pass its views enter S as that pass left them: the blocks below S run
    no second time, and values are the same."""
    made = learner(kind, blocks=blocks, dtype=torch.float32, crops=narrow_crop)
    task = soft(made.forward(0))
    runs: list[int] = []
    hook = made.backbone.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    result = {}
    for name in ("central_difference", "one_sided_difference"):
        value = ValueEstimator(made, Alignment("dot"), estimator_named(name))
        value.update([direction(made)], None, 0.1)
        value(made.forward(0), task)  # measures its step
        context = made.forward(0)
        runs.clear()
        result[name] = value(context, task).gradient[0]
        made.loss(context, task).backward()
        result[name, "runs"] = len(runs)
    hook.remove()
    error = (result["one_sided_difference"] - result["central_difference"]).norm()
    assert float(error) <= 1e-2 * float(result["central_difference"].norm())
    below = made.suffix.first if not made.suffix.whole else 0
    student = 2  # passes of the whole: global views and local ones
    if below:  # the first block is below S
        assert result["one_sided_difference", "runs"] == student
        assert result["central_difference", "runs"] == 2 * student
    else:
        assert result["one_sided_difference", "runs"] == 2 * student
        assert result["central_difference", "runs"] == 3 * student
