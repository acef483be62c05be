from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.synthetic import comparison
from vpretrain.report.curves import (
    binned,
    cost,
    crossing,
    dominating,
    evaluated,
    logged,
    mean_points,
    points,
    reaches,
    width,
)
from vpretrain.report.files import Entry, Measured
from vpretrain.report.folders import Run, read


def run(
    records: list[dict[str, float]], final: dict[str, float], *, steps: int = 4, seed: int = 0
) -> Run:
    entry = Entry(
        arm="a",
        seed=seed,
        steps=steps,
        tokens_or_images=10 * steps,
        seconds=2.0 * steps,
        final=final,
    )
    return Run(entry, records, {"m": 1.0})


def record(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "tokens": 10.0 * step, "seconds": 2.0 * step, **values}


def test_bins_are_means_of_neighbours() -> None:
    assert binned([(0, 1), (1, 3), (2, 8)], 2) == [(0.5, 2), (2, 8)]
    assert binned([(0, 1)], 1) == [(0, 1)]
    assert [width(n) for n in (1, 40, 41, 240)] == [1, 1, 2, 6]


def test_an_evaluated_line_goes_from_step_0_to_the_final_score() -> None:
    result = evaluated(run([record(1), record(2, m=0.5), record(3)], {"m": 0.2}), "m")
    assert points(result, "tokens", "m") == [(0, 1.0), (20, 0.5), (40, 0.2)]
    assert points(result, "seconds", "m") == [(0, 1.0), (4, 0.5), (8, 0.2)]
    assert evaluated(run([record(1), record(2)], {"m": 0.2}), "m") == {}, (
        "two ends alone are no curve"
    )


def test_values_that_are_not_finite_are_left_out() -> None:
    result = logged(run([record(1, m=float("nan")), record(2, m=0.5)], {}), "m")
    assert list(result) == [2]


def test_means_over_seeds_are_of_steps_that_all_have() -> None:
    a = logged(run([record(1, m=1), record(2, m=3), record(3, m=9)], {}), "m")
    b = logged(run([record(1, m=3), record(2, m=5)], {}), "m")
    assert mean_points([a, b, {}], "step", "m") == [(1, 2), (2, 4)]
    assert mean_points([], "step", "m") == []


def test_crossing_is_between_evaluations_by_a_straight_line() -> None:
    line = [(0.0, 1.0), (10.0, 0.6), (20.0, 0.8), (30.0, 0.2)]
    assert crossing(line, 0.8, higher_is_better=False) == pytest.approx(5)
    assert crossing(line, 0.5, higher_is_better=False) == pytest.approx(25)
    assert crossing(line, 0.1, higher_is_better=False) is None
    assert crossing(line, 1.0, higher_is_better=False) == 0
    assert crossing([(0.0, 0.0), (10.0, 1.0)], 0.25, higher_is_better=True) == pytest.approx(2.5)


def test_tokens_until_the_baselines_score(tmp_path: Path) -> None:
    section = read([comparison(tmp_path / "c")])[0]
    result = reaches(section, "test/nll")
    assert not isinstance(result, str)
    target, arms = result
    assert target == section.summaries["onehot"]["test/nll"].mean
    assert arms["closed_form"].fraction is not None and arms["closed_form"].fraction < 0.3
    assert arms["closed_form"].seeds == arms["closed_form"].of == 3

    section.step0["test/nll"] = Measured(value=0.0)
    assert "no better than the untouched" in str(reaches(section, "test/nll"))
    section.metrics["test/pass@1"] = None
    assert "more is better" in str(reaches(section, "test/pass@1"))


def test_a_baseline_reaches_its_own_score_where_seeds_end_after_different_steps(
    tmp_path: Path,
) -> None:
    section = read([comparison(tmp_path / "c")])[0]
    for number, each in enumerate(section.runs):  # as with a budget in seconds
        entry = each.entry
        longer = {name: getattr(entry, name) + number for name in ("steps", "tokens_or_images")}
        longer |= {"final": {"test/nll": 0.125}}
        section.runs[number] = replace(each, entry=entry.model_copy(update=longer))
    section.summaries["onehot"]["test/nll"].mean = 0.125
    result = reaches(section, "test/nll")
    assert not isinstance(result, str)
    assert result[1]["onehot"].fraction == pytest.approx(1)


def test_cost_leaves_out_the_first_step_which_holds_burn_in() -> None:
    records = [record(1), record(2, seconds_meta=1.0), record(3)]
    records[0]["seconds"] = 100.0
    records[1]["seconds"], records[2]["seconds"] = 102.0, 104.0
    result = cost([run(records, {})])
    assert result.first_seconds == 100
    assert result.rate == pytest.approx(20 / 4)
    assert result.fractions == {"meta": pytest.approx(0.25)}
    assert cost([run([], {})]).rate is None
    measured = run(records, {})
    assert (
        cost(
            [replace(measured, entry=measured.entry.model_copy(update={"peak_bytes": 5}))]
        ).peak_bytes
        == 5
    )


def test_the_front_holds_what_nothing_beats() -> None:
    result = {"a": (1.0, 5.0), "b": (2.0, 4.0), "c": (1.5, 3.0), "d": (2.0, 3.9)}
    assert dominating(result, (1, 1)) == ["a", "b"]
    assert dominating(result, (-1, -1)) == ["a", "c"]
