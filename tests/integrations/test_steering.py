"""Every kind of feedback beside a trainer: its keys, the columns that it reads, and what is refused."""

import math

import pytest
from transformers import DataCollatorForLanguageModeling

from tests.integrations.conftest import TOKENIZER, arguments, tiny
from vpretrain.integrations.transformers import SteeredTrainer, Steering
from vpretrain.language.feedback.checkers import CHECKERS, CheckerFault
from vpretrain.system.errors import UserError

KINDS = {
    "likelihood": {"kind": "likelihood"},
    "reward": {"kind": "reward", "checker": "digits", "samples": 4, "new_tokens": 4},
    "preference": {"kind": "preference", "rejected": "rejected"},
}


@pytest.fixture
def rows(feedback):
    """Prompts with a verified answer and a worse one, as TRL names them."""
    worse = [row["solution"] for row in feedback[1:] + feedback[:1]]
    return [
        {"prompt": row["prompt"] + " ", "chosen": row["solution"], "rejected": f"{other} 0"}
        for row, other in zip(feedback, worse, strict=True)
    ]


@pytest.fixture(autouse=True)
def digits(monkeypatch):
    """A checker that a random model earns something of."""
    monkeypatch.setitem(CHECKERS, "digits", lambda pattern: lambda row, text: text.count("1"))


def trainer(folder, stream, rows, kind, **steering):
    return SteeredTrainer(
        tiny(),
        arguments(folder, max_steps=2, save_strategy="steps", save_steps=1),
        DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
        stream,
        processing_class=TOKENIZER,
        feedback_dataset=rows,
        steering=Steering(meta_period=1, feedback_batch_size=8, feedback=KINDS[kind], **steering),
    )


@pytest.mark.parametrize(
    ("kind", "metric"), [("likelihood", None), ("reward", "reward"), ("preference", "margin")]
)
def test_every_kind_steers_a_trainer(kind, metric, tmp_path, stream, rows, feedback):
    given = rows if kind == "preference" else feedback
    steered = trainer(tmp_path, stream, given, kind)
    steered.train()
    gain = steered.steered_metrics["gain"]
    assert math.isfinite(gain) and gain != 0
    assert metric is None or metric in steered.steered_metrics
    resumed = trainer(tmp_path, stream, given, kind)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.steered_metrics["gain"] == gain
    if kind != "likelihood":
        other = trainer(tmp_path, stream, feedback, "likelihood")
        with pytest.raises(UserError, match=f"(?s)another kind of feedback.*accepted +{kind}"):
            other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_control_mixes_what_the_kind_reads(tmp_path, stream, rows):
    gains = []
    for arm in ("token_weights", "shuffled_feedback"):
        steered = trainer(tmp_path, stream, rows, "preference", arm=arm)
        steered.train()
        gains.append(steered.steered_metrics["gain"])
    assert gains[0] != gains[1]


def test_a_control_that_would_mix_nothing_is_refused(tmp_path, stream, rows):
    """Texts without prompts, all of which would be verified again in another order."""
    texts = [{"text": row["chosen"]} for row in rows]
    trainer(tmp_path, stream, texts, "likelihood")
    with pytest.raises(UserError, match="feedback_dataset: shuffled_feedback gives each prompt"):
        trainer(tmp_path, stream, texts, "likelihood", arm="shuffled_feedback")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("preference", lambda row: row.pop("rejected"), r"feedback_dataset\[0\].*rejected"),
        ("preference", lambda row: row.update(rejected=row["chosen"]), "prefers nothing"),
        ("reward", lambda row: row.update(input_ids=[5, 6]), "these rows are tokens"),
        ("reward", lambda row: (row.update(text="a"), row.pop("prompt")), "has no prompt"),
    ],
)
def test_rows_that_do_not_fit_the_kind_are_named(kind, change, message, tmp_path, stream, rows):
    for row in rows:
        change(row)
        if kind == "reward":
            row["solution"] = row.pop("chosen")
    with pytest.raises(UserError, match=f"(?s){message}"):
        trainer(tmp_path, stream, rows, kind)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "reward"}, r"Steering feedback\.checker: this key is missing"),
        ({"kind": "likelihood", "beta": 1.0}, "a key of the kind preference"),
        ({"kind": "hope"}, "(?s)Steering feedback.*likelihood or preference or reward"),
    ],
)
def test_keys_that_do_not_fit_the_kind_are_named(keys, message):
    with pytest.raises(UserError, match=message):
        Steering(feedback=keys)


def test_a_checker_that_raises_costs_its_batch_and_one_that_always_does_is_named(
    tmp_path, stream, feedback, monkeypatch, caplog
):
    calls = []

    def checker(row, text):
        calls.append(row.origin)
        if len(calls) == 1 or stubborn:
            raise ZeroDivisionError
        return text.count("1")

    monkeypatch.setitem(CHECKERS, "digits", lambda pattern: checker)
    stubborn = False
    steered = trainer(tmp_path, stream, feedback, "reward")
    steered.train()
    assert "Steering feedback.checker" in caplog.text and calls[0] in caplog.text
    assert math.isfinite(steered.steered_metrics["gain"])
    stubborn = True
    steered = trainer(tmp_path, stream, feedback, "reward")
    steered.args.max_steps = 6
    with pytest.raises(CheckerFault, match="feedback_dataset"):
        steered.train()
