from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from vpretrain.studies.statistics import holm, paired_difference, paired_table, summary, verdict


def test_summary_by_hand() -> None:
    assert summary([2.0, 4.0, 6.0]) == {"mean": 4.0, "std": 2.0, "n": 3}
    assert summary([5.0]) == {"mean": 5.0, "std": None, "n": 1}
    for broken in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="finite"):
            summary(broken)


def test_paired_t_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, std 1, standard error 1/sqrt(3); t(2) at 97.5% is 4.302653 (any
    # table); t = 2 sqrt(3) on 2 degrees of freedom has p = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 /
    # 14).
    result = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert result.difference == 2.0
    assert result.ci95 == pytest.approx(
        (2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), rel=1e-6
    )
    assert result.p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-12)
    mirrored = paired_difference([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    assert mirrored.difference == -2.0
    assert mirrored.p == result.p


def test_one_pair_has_no_interval() -> None:
    result = paired_difference([3.0], [1.0])
    assert (result.difference, result.ci95, result.p) == (2.0, None, None)
    assert verdict(result.difference, result.ci95, result.p, higher_is_better=True) == "undecided"


def test_equal_arms_are_undecided() -> None:
    result = paired_difference([0.1, 0.2, 0.7], [0.1, 0.2, 0.7])
    assert (result.difference, result.ci95, result.p) == (0.0, (0.0, 0.0), 1.0)
    assert verdict(result.difference, result.ci95, result.p, higher_is_better=True) == "undecided"


def test_a_difference_without_spread_counts_by_its_sign_alone() -> None:
    # 0.1 + x - x is 0.1 up to rounding: a t test would find p = 1e-30 in rounding noise.
    baseline = [0.3, 0.7, 1.1, 1.3, 1.9, 2.3]
    arm = [value + 0.1 for value in baseline]
    for n in (2, 3, 5):
        result = paired_difference(arm[:n], baseline[:n])
        assert result.difference == pytest.approx(0.1)
        assert (result.ci95, result.p) == (None, 2.0 ** (1 - n))
    result = paired_difference(arm, baseline)
    assert result.p == 2.0**-5
    assert result.ci95 == pytest.approx((0.1, 0.1))
    assert verdict(result.difference, result.ci95, result.p, higher_is_better=True) == "better"


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="finite"):
        paired_difference([1.0, math.nan], [1.0, 2.0])


def test_holm_against_a_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, then 0.04 lifted to 0.06.
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
    with pytest.raises(ValueError, match="p-value of a"):
        holm({"a": math.nan})


@pytest.mark.parametrize(
    ("difference", "ci95", "p_holm", "higher_is_better", "expected"),
    [
        (1.0, (0.5, 1.5), 0.01, True, "better"),
        (1.0, (0.5, 1.5), 0.01, False, "worse"),
        (-1.0, (-1.5, -0.5), 0.01, False, "better"),
        (-1.0, (-1.5, -0.5), 0.01, True, "worse"),
        (1.0, (-0.1, 2.1), 0.01, True, "undecided"),  # the interval holds zero
        (1.0, (0.0, 2.0), 0.01, True, "undecided"),  # touching zero is not clear of it
        (1.0, (0.5, 1.5), 0.05, True, "undecided"),  # not after the correction
        (1.0, (0.5, 1.5), None, True, "undecided"),
        (1.0, None, 0.01, True, "undecided"),
    ],
)
def test_verdict(
    difference: float,
    ci95: tuple[float, float] | None,
    p_holm: float | None,
    higher_is_better: bool,
    expected: str,
) -> None:
    assert verdict(difference, ci95, p_holm, higher_is_better=higher_is_better) == expected


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_as_often_as_it_says(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    covered = 0
    for _ in range(2000):
        # A seed moves both arms together (what pairing removes) and each by itself.
        shared = random.normal(0.0, 5.0, seeds)
        baseline = shared + random.normal(0.0, 1.0, seeds)
        arm = shared + 0.7 + random.normal(0.0, 1.0, seeds)
        low, high = paired_difference(arm.tolist(), baseline.tolist()).ci95 or (math.nan, math.nan)
        covered += low <= 0.7 <= high
    assert 0.93 <= covered / 2000 <= 0.97


def simulated(
    random: np.random.Generator, effects: dict[str, float], seeds: int = 5
) -> list[dict[str, Any]]:
    shared = random.normal(0.0, 3.0, seeds)
    return [
        {"arm": arm, "seed": seed, "final": {"nll": float(shared[seed] + effect + random.normal())}}
        for arm, effect in effects.items()
        for seed in range(seeds)
    ]


def test_a_planted_null_is_seldom_called_anything() -> None:
    # One call in the whole family of arms is an error. The true rate is close to the 5% that is
    # promised (20,000 comparisons: 4.8%), so that 200 exceed it by chance one time in three: 2,000
    # are counted, with three standard errors of room, and "better" alone, at half the rate, in the
    # first 200.
    random = np.random.default_rng(0)
    effects = {"onehot": 0.0, "a": 0.0, "b": 0.0, "c": 0.0}
    verdicts = []
    for _ in range(2000):
        _, paired = paired_table(
            simulated(random, effects), {"nll": {"higher_is_better": False}}, "onehot"
        )
        verdicts.append({row["nll"]["verdict"] for row in paired.values()})
    assert sum("better" in result for result in verdicts[:200]) <= 10
    called = sum(result != {"undecided"} for result in verdicts) / len(verdicts)
    assert called <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(verdicts))


def test_a_planted_effect_is_found_on_the_right_side() -> None:
    random = np.random.default_rng(1)
    effects = {"onehot": 0.0, "good": -8.0, "bad": 8.0, "null": 0.0}
    result = []
    for _ in range(50):
        _, paired = paired_table(
            simulated(random, effects), {"nll": {"higher_is_better": False}}, "onehot"
        )
        result.append(tuple(paired[arm]["nll"]["verdict"] for arm in ("good", "bad")))
    assert result.count(("better", "worse")) >= 48


def test_the_table_has_the_shape_of_compare_json() -> None:
    finals = {"onehot": [1.0, 2.0, 4.0], "field": [0.5, 1.6, 3.4]}
    runs = [
        {"arm": arm, "seed": seed, "steps": 5, "final": {"test/nll": value, "other": 1.0}}
        for arm, values in finals.items()
        for seed, value in reversed(list(enumerate(values)))  # pairing goes by seed, not by order
    ]
    runs.append({"arm": "late", "seed": 0, "final": {"test/nll": 9.0}})
    runs.append({"arm": "elsewhere", "seed": 17, "final": {"test/nll": 9.0}})
    metrics = {"test/nll": {"higher_is_better": False}, "missing": {"higher_is_better": True}}
    summaries, paired = paired_table(runs, metrics, "onehot")
    assert summaries["field"] == {"test/nll": summary([3.4, 1.6, 0.5])}
    assert list(paired) == ["field", "late", "elsewhere"]
    expected = paired_difference([3.4, 1.6, 0.5], [4.0, 2.0, 1.0])
    # Only `field` has a p-value here, so that Holm's correction leaves it as it is.
    assert paired["field"] == {
        "test/nll": {
            "difference": expected.difference,
            "ci95": expected.ci95,
            "p_holm": expected.p,
            "verdict": "better",
        }
    }
    assert paired["late"]["test/nll"] == {
        "difference": 8.0,
        "ci95": None,
        "p_holm": None,
        "verdict": "undecided",
    }
    assert paired["elsewhere"] == {}
    assert json.loads(json.dumps(paired))["field"]["test/nll"]["ci95"] == list(expected.ci95 or ())


def test_the_table_refuses_what_cannot_be_paired() -> None:
    metrics = {"nll": {"higher_is_better": False}}
    run = {"arm": "a", "seed": 0, "final": {"nll": 1.0}}
    with pytest.raises(ValueError, match="baseline onehot has no run"):
        paired_table([run], metrics, "onehot")
    with pytest.raises(ValueError, match="two runs of seed 0"):
        paired_table([run, run], metrics, "a")
    with pytest.raises(ValueError, match="arm a, seed 0: nll is nan"):
        paired_table([{**run, "final": {"nll": math.nan}}], metrics, "a")
