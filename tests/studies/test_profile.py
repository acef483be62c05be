"""What `vpretrain profile` measures, on tiny learners."""

from dataclasses import replace

import pytest

from tests.run.test_train import tiny_recipe
from vpretrain.language import Language
from vpretrain.method.accumulation import next_batches
from vpretrain.run.build import new_step
from vpretrain.studies import profile as profiling
from vpretrain.studies.profile import PARTS, profile
from vpretrain.system import timing
from vpretrain.system.errors import UserError


def test_arms_are_measured_side_by_side(forked):
    # Steering is measured also where a run begins with plain steps.
    recipe = tiny_recipe("value.meta_period=2", "value.settle_steps=0", "value.start_step=100")
    result = profile(recipe, arms=["onehot", "closed_form"], rounds=2, warm_up=1)
    assert list(result["arms"]) == ["onehot", "closed_form"] and result["unit"] == "tokens"
    for arm, row in result["arms"].items():
        assert row["tokens_per_second"] > 0 and row["peak_bytes"] > 0 and row["flops"] > 0
        assert set(result["shares"][arm]) == {*PARTS, "rest"}
        assert sum(result["shares"][arm].values()) == pytest.approx(1)
    assert result["shares"]["onehot"]["meta"] == 0 < result["shares"]["closed_form"]["meta"]
    assert result["ratios"]["flops"]["closed_form"] > 1 and set(result["ratios"]["throughput"]) == {
        "closed_form"
    }


def test_what_is_wrong_in_a_process_is_said_here(forked):
    with pytest.raises(UserError, match=r"designer\.candidates"):
        profile(
            tiny_recipe("designers.closed_form.candidates=4000"),
            arms=["closed_form"],
            rounds=1,
            warm_up=1,
        )


def test_an_arm_that_leaves_the_stream_alone_has_no_step_to_time(forked, monkeypatch):
    build = Language.build
    monkeypatch.setattr(Language, "build", lambda *given: replace(build(*given), on_stream=False))
    with pytest.raises(UserError, match=r"not train on the stream\s+got\s+onehot"):
        profile(tiny_recipe(), arms=["onehot"], rounds=1, warm_up=1)


def test_the_passes_of_a_selection_are_in_no_section_of_a_step():
    recipe = tiny_recipe("arm=greats_topk")
    modality = Language()
    parts = profiling._with_timed_methods(modality.build(recipe, modality.load(recipe)))
    step = new_step(recipe, parts)
    step.meta.update_feedback(0.0)
    clock = timing.Clock()
    with timing.clocked(clock):
        drawn = next_batches(parts.stream, parts.designer.draws)
        step.meta.designer.selector.select(
            drawn.batches, step.meta.value_estimator, meta_step=True, used=True
        )
    assert clock.seconds == {}


def test_arms_that_there_are_not_are_refused():
    with pytest.raises(UserError, match="nonsense"):
        profile(tiny_recipe(), arms=["nonsense"], rounds=1, warm_up=1)
