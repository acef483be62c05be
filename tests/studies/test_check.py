"""What ``check`` says beside problems."""

import time
from dataclasses import replace

import pytest

from tests.test_recipes import shrunken
from vpretrain.language.data.rows import Document
from vpretrain.language.modality import _padded_tokens
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import Lighter, Reads
from vpretrain.studies.check import Examined, Needs, examine, first_look, needs
from vpretrain.system import timing


def needs_of(*overrides: str):
    recipe = shrunken("demo-language", *overrides)
    checked = MODALITIES[recipe.modality]().check(recipe)
    assert not checked.problems
    return needs(recipe, checked.parts, checked.reads)


def test_what_is_queued_on_the_accelerator_is_waited_for(monkeypatch):
    monkeypatch.setattr(timing, "_synchronize", lambda: time.sleep(0.2))
    assert needs_of("budget.steps=10").forward_seconds >= 0.2


def test_what_a_run_needs_follows_from_model_budget_and_one_forward_pass():
    few, many = needs_of("budget.steps=10"), needs_of("budget.steps=1000")
    assert few.memory_bytes == many.memory_bytes > 0 and few.disk_bytes > 0
    settled = shrunken("demo-language").value.settle_steps
    assert few.seconds == pytest.approx(3 * (10 + settled) * few.forward_seconds)
    assert many.seconds == pytest.approx(3 * (1000 + settled) * many.forward_seconds)
    tokens = needs_of("budget.steps=null", "budget.tokens=1")
    assert tokens.seconds > 3 * settled * tokens.forward_seconds, "settling comes before the first"
    assert few.evaluation_seconds > 0 and few.meta_seconds > 3 * few.forward_seconds
    assert few.first_look is None
    assert needs_of("budget.seconds=0.0001").seconds == 0.0001


def test_a_first_look_counts_settling_steering_and_evaluation():
    recipe = shrunken("demo-language", "value.settle_steps=16", "learner.accumulate=2")
    reads = Reads(1_000, 10_000, 640, "data.evaluation.test.rows=64")
    slow = first_look(recipe, Needs(0, 0, None, 0.0, 40.0, 90.0, 100.0), reads)
    assert slow.overrides == (
        "budget.steps=8 value.settle_steps=2 learner.accumulate=1 data.evaluation.test.rows=64"
    )
    assert slow.seconds == 10 * 20.0 + 2 * 90.0 + 2 * 100.0 / 10
    assert slow.pair_seconds == 2 * 10 * 20.0 + 2 * 90.0 + 3 * 100.0 / 10, "one arm is not steered"
    fast = first_look(recipe, Needs(0, 0, None, 0.0, 1.0, 4.0, 5.0), reads)
    assert fast.overrides == "budget.steps=284 learner.accumulate=1"
    assert fast.seconds == 300 * 0.5 + (2 + 36) * 4.0 + 2 * 5.0
    late = recipe.model_copy(update={"value": recipe.value.model_copy(update={"start_step": 1000})})
    assert (
        "value.start_step=0"
        in first_look(late, Needs(0, 0, None, 0.0, 1.0, 4.0, 5.0), reads).overrides
    )
    # No smaller batches where the fewest steps go into the time; otherwise both parts shrink.
    lighter = Lighter("data.window_tokens=128", 0.25, 0.5)
    need = Needs(0, 0, None, 0.0, 1.0, 4.0, 5.0)
    assert first_look(recipe, need, replace(reads, lighter=lighter)) == fast
    need = Needs(0, 0, None, 0.0, 80.0, 140.0, 5.0)
    light = first_look(recipe, need, replace(reads, lighter=lighter))
    assert light.overrides == (
        "budget.steps=14 value.settle_steps=3 learner.accumulate=1 data.window_tokens=128"
    )
    assert light.seconds == 17 * 10.0 + 3 * (10.0 + 50.0) + 2 * 5.0


def test_smaller_batches_are_those_that_can_be_smaller():
    def lighter(*overrides):
        recipe = shrunken("demo-language", *overrides)
        return MODALITIES["language"]().check(recipe).reads.lighter

    small = ("data.window_tokens=128", "data.feedback.batch_size=8")
    assert lighter(*small) is None
    assert lighter("data.window_tokens=256", small[1]) == Lighter("data.window_tokens=128", 0.5, 1)
    both = lighter("data.window_tokens=256", "data.feedback.batch_size=16")
    assert both.overrides == " ".join(small) and 0.4 < both.feedback < 0.6


def test_held_out_rows_count_with_their_padding():
    rows = [Document([0] * length, b"", "a", "a") for length in (3, 9, 2, 7, 1)]
    assert _padded_tokens(rows, 2) == 2 * 9 + 2 * 3 + 1
    assert _padded_tokens(rows, 64) == 5 * 9


def test_a_checkpoint_that_is_not_there_yet_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("VPRETRAIN_CACHE", str(tmp_path))
    result = examine("demo-language", ["learner.model=null", "data.batch_size=2"])
    assert result == Examined([]) and not list(tmp_path.rglob("*.safetensors"))
