"""What ``check`` says beside problems."""

import pytest

from tests.test_recipes import shrunken
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import HeldOut
from vpretrain.studies.check import Examined, examine, first_look, needs


def needs_of(*overrides: str):
    recipe = shrunken("demo-language", *overrides)
    checked = MODALITIES[recipe.modality]().check(recipe)
    assert not checked.problems
    return needs(recipe, checked.parts, checked.held_out)


def test_what_a_run_needs_follows_from_model_budget_and_one_forward_pass():
    few, many = needs_of("budget.steps=10"), needs_of("budget.steps=1000")
    assert few.memory_bytes == many.memory_bytes > 0 and few.disk_bytes > 0
    settled = shrunken("demo-language").value.settle_steps
    assert few.seconds == pytest.approx(3 * (10 + settled) * few.forward_seconds)
    assert many.seconds == pytest.approx(3 * (1000 + settled) * many.forward_seconds)
    assert few.evaluation_seconds > 0 and few.first_look is None
    assert needs_of("budget.seconds=0.0001").seconds == 0.0001


def test_a_first_look_counts_settling_steering_and_evaluation():
    recipe = shrunken("demo-language", "value.settle_steps=16", "learner.accumulate=2")
    rows = HeldOut(10_000, 640, "data.evaluation.test.rows=64")
    slow = first_look(recipe, step=40.0, held_out=rows, evaluation=100.0)
    assert slow.overrides == (
        "budget.steps=8 value.settle_steps=2 learner.accumulate=1 data.evaluation.test.rows=64"
    )
    assert slow.seconds == 10 * 1.5 * 20.0 + 2 * 10.0
    fast = first_look(recipe, step=1.0, held_out=rows, evaluation=5.0)
    assert fast.overrides == "budget.steps=384 learner.accumulate=1" and fast.seconds == 310.0


def test_a_checkpoint_that_is_not_there_yet_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("VPRETRAIN_CACHE", str(tmp_path))
    found = examine("demo-language", ["learner.model=null", "data.batch_size=2"])
    assert found == Examined([]) and not list(tmp_path.rglob("*.safetensors"))
