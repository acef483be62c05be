"""Rows from the recipe's data section: all that can be wrong with them, told at once and before any training."""

import json

import pytest

from vpretrain.errors import UserError
from vpretrain.language import word_problems
from vpretrain.language.data import read
from vpretrain.modalities import SCHEMAS
from vpretrain.recipe import load

STREAM, FEEDBACK, TEST = (word_problems.problems(split, 12, seed=0) for split in ("stream", "feedback", "test"))
ROWS = "{kind: jsonl, path: %s.jsonl, prompt: problem, solution: solution}"
RECIPE = f"""\
modality: language
says: Tiny.
arm: onehot
budget: {{steps: 1}}
data:
  window_tokens: 48
  batch_size: 2
  stream: [{{name: problems, rows: {ROWS % "stream"}}}, {{name: prose, rows: {{kind: chatter, rows: 5}}}}]
  feedback: {{rows: {ROWS % "feedback"}, batch_size: 4}}
  evaluation: {{dev: {ROWS % "nowhere"}, test: {ROWS % "test"}}}
learner: {{config: {{model_type: llama}}}}
"""


@pytest.fixture
def here(tmp_path):
    for name, rows in (("stream", STREAM), ("feedback", FEEDBACK), ("test", TEST)):
        write(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(here, *overrides):
    (here / "tiny.yaml").write_text(RECIPE)
    return read(load(here / "tiny.yaml", [f"data.root={here}", *overrides], schemas=SCHEMAS))


def refused(here, *overrides):
    """The problems by where they are; the folder of the files left out."""
    with pytest.raises(UserError) as caught:
        texts(here, *overrides)
    return {problem.where.replace(f"{here}/", ""): problem for problem in caught.value.problems}


def test_rows_of_every_source(here):
    found = texts(here)
    assert list(found.stream) == ["problems", "prose"]
    assert [row.text for row in found.stream["problems"]] == [row["solution"] for row in STREAM]
    assert [row.prompt for row in found.feedback] == [row["problem"] for row in FEEDBACK]
    assert found.feedback[2].origin == f"{here}/feedback.jsonl:3"
    assert [row.prompt for row in found.stream["prose"]] == [""] * 5
    assert found.stream["prose"][0].origin == "prose:1"
    assert len(found.evaluation) == len(TEST), "the split that is evaluated; other splits are not even read"


def test_part_of_a_file_and_planted_noise(here):
    part = texts(here, "data.stream.0.rows.skip_rows=3", "data.stream.0.rows.rows=4").stream["problems"]
    assert [row.text for row in part] == [row["solution"] for row in STREAM[3:7]]
    planted = texts(here, "data.stream.0.rows.corrupt_digits=1").stream["problems"]
    assert [row.prompt for row in planted] == [row["problem"] for row in STREAM]
    assert all(row.text != clean["solution"] for row, clean in zip(planted, STREAM, strict=True))
    problem = refused(here, "data.stream.0.rows.skip_rows=12")["data.stream.0.rows.skip_rows"]
    assert (problem.value, problem.accepted) == ("12", "0 to 11: the file has 12 rows")


def test_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert len(texts(here, "data.root=~/").feedback) == 12
    assert len(texts(here, "data.root=/nowhere", "data.stream.0.rows.path=~/stream.jsonl",
                     "data.feedback.rows.path=~/feedback.jsonl", "data.evaluation.test.path=~/test.jsonl").feedback)  # fmt: skip


def test_problems_of_all_sources_at_once(here):
    (here / "torn.jsonl").write_text('{"problem": "1", "solution": "2"}\n{"problem"\n')
    found = refused(
        here,
        "data.stream.0.rows.path=torn.jsonl",
        "data.stream.1.name=problems",
        "data.feedback.rows.solution=answer",
        "data.evaluation.test.path=tset.jsonl",
        "data.window_tokens=1",
        "data.feedback.max_tokens=1",
    )
    assert {"torn.jsonl:2", "data.stream", "feedback.jsonl:1", "data.evaluation.test.path", "data.window_tokens",
            "data.feedback.max_tokens"} <= set(found)  # fmt: skip
    assert "'problem', 'solution'" in found["feedback.jsonl:1"].accepted
    assert "test.jsonl" in found["data.evaluation.test.path"].accepted
    assert found["data.stream"].value == "problems, problems"


def test_the_generators_limits(here):
    problem = refused(here, "data.feedback.rows={kind: word_problems, split: test, rows: 99999}")["data.feedback.rows"]
    assert "99999" in problem.message and "at most" in problem.message
    rows = "{kind: word_problems, split: feedback, rows: 20, noise_share: 0.5}"
    assert "always clean" in refused(here, f"data.feedback.rows={rows}")["data.feedback.rows"].message


def test_feedback_that_cannot_steer(here):
    problem = refused(here, "data.feedback.batch_size=13")["data.feedback.batch_size"]
    assert (problem.value, problem.accepted) == ("13", "1 to 6: there are 12 rows")
    found = refused(here, "data.feedback.rows={kind: jsonl, path: feedback.jsonl, text: solution}")
    problem = found["data.feedback.rows feedback.jsonl:1"]
    assert "no prompt" in problem.message and problem.value == FEEDBACK[0]["solution"]


def test_feedback_that_stands_elsewhere_is_named_row_by_row(here):
    write(here / "leaky.jsonl", [*STREAM, FEEDBACK[7]])
    problem = refused(here, "data.stream.0.rows.path=leaky.jsonl")["data.feedback.rows"]
    assert problem.value == f"{here}/feedback.jsonl:8 = {here}/leaky.jsonl:13"
    assert "in the stream" in problem.message
    other = [{"problem": row["problem"].upper(), "solution": "0"} for row in FEEDBACK]
    write(here / "leaky.jsonl", [*TEST, *other])
    problem = refused(here, "data.evaluation.test.path=leaky.jsonl")["data.feedback.rows"]
    assert "12 of the feedback rows are also in the test rows" in problem.message
    assert problem.value.count(" = ") == 5 and problem.value.endswith(", ...")


def test_leaks_are_told_beside_other_problems(here):
    write(here / "leaky.jsonl", [*STREAM, FEEDBACK[7]])
    found = refused(here, "data.stream.0.rows.path=leaky.jsonl", "data.evaluation.test.path=no.jsonl")
    assert set(found) == {"data.feedback.rows", "data.evaluation.test.path"}


def test_answers_that_cannot_be_scored(here):
    assert texts(here, "evaluate.answer='= ([\\d ]+)'").evaluation
    problem = refused(here, "evaluate.answer='#### (.*)'")["evaluate.answer"]
    assert problem.value == "#### (.*)" and TEST[0]["solution"] in problem.accepted
    found = refused(here, "evaluate.answer='(a)'", "data.evaluation.test={kind: chatter, rows: 3}")
    assert "no prompt" in found["data.evaluation.test test:1"].message
    assert texts(here, "data.evaluation.test={kind: chatter, rows: 3}").evaluation, "NLL alone needs no prompt"
