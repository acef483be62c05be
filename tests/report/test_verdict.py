from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from tests.report.synthetic import comparison, run_folder
from vpretrain.report.files import Items, Paired
from vpretrain.report.folders import Section, read
from vpretrain.report.verdict import against_step0, headline, verdict


def said(markup: object) -> str:
    return html.unescape(re.sub("<[^>]+>", "", str(markup))).replace("\u00a0", " ")


@pytest.fixture
def section(tmp_path: Path) -> Section:
    return read([comparison(tmp_path / "c")])[0]


def judge(section: Section, **verdicts: tuple[str, float]) -> str:
    for arm, (result, p) in verdicts.items():
        section.paired[arm]["test/nll"] = Paired.model_validate(
            {"difference": -0.2, "ci95": (-0.3, -0.1), "p_holm": p, "verdict": result}
        )
    return said(verdict(section))


def test_better_is_said_where_the_statistics_say_it_and_nowhere_else(section: Section) -> None:
    text = judge(section, closed_form=("better", 0.003), random_feedback=("undecided", 0.6))
    assert text == (
        "In test/nll over 3 seeds, closed_form is better than onehot by 0.200 (difference "
        "between −0.300 and −0.100 at "
        "95%; p = 0.003, Holm) while random_feedback is undecided against onehot."
    )


def test_several_arms_share_the_largest_p(section: Section) -> None:
    text = judge(section, closed_form=("better", 0.003), random_feedback=("better", 0.0401))
    assert (
        text == "In test/nll over 3 seeds, closed_form and random_feedback are better than onehot "
        "(each p ≤ 0.041, Holm)."
    )


def test_means_that_differ_little_do_not_look_alike(section: Section) -> None:
    del section.metrics["test/pass@1"]
    section.roles["random_feedback"] = "treatment"
    for arm, mean in (("onehot", 1.73108), ("closed_form", 1.73094)):
        section.summaries[arm]["test/nll"].mean = mean
    assert "1.7309 nats per token, 1.7311 without them" in said(headline(section))


def test_worse_is_said_too(section: Section) -> None:
    text = judge(section, closed_form=("better", 0.0001), random_feedback=("worse", 0.01))
    assert (
        "closed_form is better than onehot" in text
        and "random_feedback is worse than onehot" in text
    )
    assert "p < 0.001" in text


def test_undecided_is_neither_a_gain_nor_none(section: Section) -> None:
    text = judge(section, closed_form=("undecided", 0.2), random_feedback=("undecided", 0.6))
    assert text == (
        "In test/nll over 3 seeds, no arm is told apart from onehot (smallest p = 0.20, "
        "Holm): these seeds show neither a "
        "gain nor that there is none."
    )
    assert "better" not in text


def test_undecided_over_items_is_said_as_such(section: Section) -> None:
    judge(section, closed_form=("undecided", 0.01), random_feedback=("undecided", 0.6))
    section.paired["closed_form"]["test/nll"].items = Items(ci95=(-0.1, 0.1))
    assert "held-out items do not bear it out" in said(verdict(section))


def test_one_seed_one_arm_and_unfinished_give_no_verdict(tmp_path: Path) -> None:
    one = read([comparison(tmp_path / "one", seeds=1)])[0]
    assert "One seed gives no interval" in said(verdict(one)) and "--seeds 3" in said(verdict(one))
    alone = read([comparison(tmp_path / "alone", arms=["onehot"])])[0]
    assert said(verdict(alone)) == "Only onehot was run: there is nothing to tell it apart from."
    folder = comparison(tmp_path / "unfinished")
    (folder / "compare.json").unlink()
    assert "not finished (9 runs of 3 arms and 3 seeds so far)" in said(verdict(read([folder])[0]))
    run = read([run_folder(tmp_path / "run")])[0]
    assert "One run gives no verdict" in said(verdict(run))
    assert against_step0(run) is None


def test_step_0_is_named_where_an_arm_falls_behind_it(section: Section) -> None:
    section.summaries["onehot"]["test/nll"].mean = 5.0
    text = said(against_step0(section))
    assert "closed_form and random_feedback ended ahead of it and onehot ended behind it" in text
    section.step0.clear()
    assert against_step0(section) is None


def with_scores(section: Section, result: str, p: float = 0.01) -> None:
    for metric, values in {"test/pass@1": (0.61, 0.76), "test/nll": (0.8031, 0.7104)}.items():
        for arm, mean in zip(("onehot", "closed_form"), values, strict=True):
            section.summaries[arm][metric].mean = mean
        section.paired["closed_form"][metric].verdict = result  # type: ignore[assignment]
    section.step0["test/pass@1"].value, section.step0["test/nll"].value = 0.52, 0.9512


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        ("better", "Your examples helped: "),
        ("worse", "Your examples did harm: "),
        ("undecided", "Whether your examples helped is not decided: "),
    ],
)
def test_the_first_sentence_is_what_people_ask(section: Section, result: str, outcome: str) -> None:
    with_scores(section, result)
    assert said(headline(section)).startswith(
        f"{outcome}76% of held-out problems solved, 61% without them, 52% before. "
        "Held-out loss: 0.710 nats per token, 0.803 without them, 0.951 before. "
    )


def test_of_a_loss_alone_it_says_which_way_is_better(section: Section) -> None:
    with_scores(section, "undecided")
    del section.metrics["test/pass@1"]
    assert said(headline(section)) == (
        "Whether your examples helped is not decided: held-out loss 0.710 nats per token, 0.803 "
        "without them, 0.951 before (lower is better). "
    )
    for one in (
        section.metrics,
        *section.summaries.values(),
        section.step0,
        *section.paired.values(),
    ):
        one["test/miou"] = one.pop("test/nll")
    assert "not decided: held-out mean IoU 0.710, 0.803 without" in said(headline(section))


def test_shares_that_round_alike_get_a_decimal(section: Section) -> None:
    with_scores(section, "better")
    section.summaries["onehot"]["test/pass@1"].mean = 0.758
    assert "76.0% of held-out problems solved, 75.8% without them" in said(headline(section))


HELPED = "Your examples helped: 76% of held-out"
LIKE_A_CONTROL = (
    "Steering helped, and whether it is your examples that did is not decided: 76% of held-out"
)


@pytest.mark.parametrize(
    ("result", "start", "end"),
    [
        ("worse", HELPED, "It is ahead of the control random_feedback too. "),
        ("undecided", LIKE_A_CONTROL, "It is not clearly ahead of the control random_feedback. "),
        (None, LIKE_A_CONTROL, "It is not clearly ahead of the control random_feedback. "),
    ],
)
def test_the_examples_helped_only_where_controls_fall_behind(
    section: Section, result: str | None, start: str, end: str
) -> None:
    with_scores(section, "better")
    pair = {"difference": -0.1, "ci95": (-0.2, -0.05), "p_holm": 0.01, "verdict": result}
    pairs = {"test/pass@1": Paired.model_validate(pair)} if result else {}
    section.control_pairs = {"closed_form": {"random_feedback": pairs}}
    text = said(headline(section))
    assert text.startswith(start) and text.endswith(end)


def test_a_claim_without_a_control_says_so(tmp_path: Path) -> None:
    section = read([comparison(tmp_path / "c", arms=["onehot", "closed_form"])])[0]
    with_scores(section, "better")
    assert said(headline(section)).endswith(
        "No control was run: fixed_random_direction among the arms shows what another direction "
        "gains. "
    )


def test_what_was_not_better_is_not_held_against_controls(section: Section) -> None:
    with_scores(section, "undecided")
    assert "control" not in said(headline(section))


@pytest.mark.parametrize("arms", [["closed_form", "onehot"], ["closed_form", "token_weights"]])
def test_without_is_said_of_the_plain_arm_alone(tmp_path: Path, arms: list[str]) -> None:
    """Ahead of plain training as the first arm, the examples would be said to do harm."""
    section = read([comparison(tmp_path / "c", arms=arms)])[0]
    assert section.paired
    assert said(headline(section)) == ""


def test_a_control_is_not_called_the_examples(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", arms=["onehot", "random_feedback"])
    assert said(headline(read([folder])[0])) == ""
    assert said(headline(read([run_folder(tmp_path / "run")])[0])) == ""
