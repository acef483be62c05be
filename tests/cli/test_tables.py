"""Tables in a terminal: whole words, at a width that terminals have."""

from io import StringIO

from rich.console import Console

from vpretrain.cli.tables import comparison_table, profile_tables, run_table, verdicts
from vpretrain.studies.profile import PARTS
from vpretrain.studies.statistics import paired_table

ARMS = ("onehot", "fixed_random_direction")
WHAT_IT_TAKES = {
    "tokens_per_second": 123456.0,
    "spread": 0.12,
    "peak_bytes": 123456 * 2**20,
    "flops": 123456e9,
}


def test_the_profile_fits_a_hundred_characters_with_nothing_cut():
    result = {
        "rounds": 5,
        "unit": "pictures",
        "arms": dict.fromkeys(ARMS, WHAT_IT_TAKES),
        "ratios": {what: {ARMS[1]: 0.912} for what in ("throughput", "memory", "flops")},
        "shares": dict.fromkeys(ARMS, dict.fromkeys((*PARTS, "rest"), 0.123)),
    }
    console = Console(width=100, record=True, file=StringIO())
    for table in profile_tables(result):
        assert len(table.columns) <= 12
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    for word in (*ARMS, "pictures/s", "GFLOP/step", *PARTS, "rest", "123456", "123456.0", "0.91"):
        assert word in text


def test_a_verdict_that_held_out_items_took_back_says_why():
    pair = {"difference": -0.1, "ci95": [-0.2, -0.05], "p_holm": 0.002, "verdict": "undecided"}
    table = {
        "metrics": {"test/nll": {"higher_is_better": False}},
        "runs": [{"arm": "onehot", "seed": seed} for seed in range(3)],
        "paired": {
            "torn": {"test/nll": {**pair, "items": {"ci95": [-0.3, 0.1], "p": 0.2}}},
            "alike": {"test/nll": {**pair, "p_holm": 0.3, "items": {"ci95": [-1, 1], "p": 1}}},
        },
    }
    torn, alike = verdicts(table)
    assert torn == (
        "torn: undecided against onehot in test/nll (p = 0.002, Holm): seeds differ by more than "
        "chance, held-out items do not bear it out"
    )
    assert alike == "alike: undecided against onehot in test/nll (p = 0.3, Holm)"


def test_an_arm_without_a_score_is_a_dash_and_has_no_verdict():
    """The evaluation was changed between the runs of two arms, and the change accepted."""
    metrics = {"test/pass@1": {"higher_is_better": True}, "test/nll": {"higher_is_better": False}}
    both, one = {"test/pass@1": 0.5, "test/nll": 1.0}, {"test/nll": 0.9}
    runs = [
        {"arm": arm, "seed": seed, "seconds": 1.0, "final": final}
        for arm, final in (("onehot", both), ("ascent", one))
        for seed in range(2)
    ]
    summary, paired = paired_table(runs, metrics, "onehot")
    step0 = {name: {"value": value} for name, value in both.items()}
    table = {"match": "steps", "budget": 1, "runs": runs, "metrics": metrics, "step0": step0}
    table |= {"summary": summary, "paired": paired}
    console = Console(width=100, record=True, file=StringIO())
    console.print(comparison_table(table, console.width))
    (row,) = [line for line in console.export_text().splitlines() if "ascent" in line]
    assert "–" in row and "0.9000" in row
    assert list(verdicts(table)) == []


def test_title_and_legend_of_a_run_are_not_broken_by_narrow_columns():
    result = {"arm": "document_weights", "steps": 4, "seconds": 200.0}
    result |= {"step0": {"test/nll": 1.2855}, "final": {"test/nll": 1.0865}}
    console = Console(width=100, record=True, file=StringIO())
    console.print(run_table(result))
    text = console.export_text()
    assert "document_weights: 4 steps, 200 s" in text
    assert "step 0: the model before training; nll: loss in nats a token" in text
