"""Rows from the recipe's data section: all that can be wrong with them, told at once and before any
training.
"""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.language.data.small_recipe import (
    FEEDBACK,
    STREAM,
    TEST,
    recipe,
    refused,
    texts,
    write,
)
from vpretrain.language.data import word_problems
from vpretrain.language.data.stream import Source, Stream
from vpretrain.language.data.texts import documents_of, notices, read
from vpretrain.language.modality import Materials
from vpretrain.system.errors import UserError


def test_rows_of_every_source(here):
    result = texts(here)
    assert list(result.stream) == ["problems", "prose"]
    assert [row.text for row in result.stream["problems"]] == [row["solution"] for row in STREAM]
    assert [row.prompt for row in result.feedback] == [row["problem"] for row in FEEDBACK]
    assert result.feedback[2].origin == f"{here}/feedback.jsonl:3"
    assert [row.prompt for row in result.stream["prose"]] == [""] * 5
    assert result.stream["prose"][0].origin == "prose:1"
    assert len(result.evaluation) == len(TEST), (
        "the split that is evaluated; other splits are not even read"
    )


def test_part_of_a_file_and_planted_noise(here):
    part = texts(here, "data.stream.0.rows.skip_rows=3", "data.stream.0.rows.rows=4").stream[
        "problems"
    ]
    assert [row.text for row in part] == [row["solution"] for row in STREAM[3:7]]
    planted = texts(here, "data.stream.0.rows.corrupt_digits=1").stream["problems"]
    assert [row.prompt for row in planted] == [row["problem"] for row in STREAM]
    assert all(row.text != clean["solution"] for row, clean in zip(planted, STREAM, strict=True))
    problem = refused(here, "data.stream.0.rows.skip_rows=12")["data.stream.0.rows.skip_rows"]
    assert (problem.value, problem.accepted) == ("12", "0 to 11: there are 12 rows")


def test_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert len(texts(here, "data.root=~/").feedback) == 12
    assert len(
        texts(
            here,
            "data.root=/nowhere",
            "data.stream.0.rows.path=~/stream.jsonl",
            "data.feedback.rows.path=~/feedback.jsonl",
            "data.evaluation.test.path=~/test.jsonl",
        ).feedback
    )


def test_problems_of_all_sources_at_once(here):
    (here / "torn.jsonl").write_text('{"problem": "1", "solution": "2"}\n{"problem"\n')
    result = refused(
        here,
        "data.stream.0.rows.path=torn.jsonl",
        "data.stream.1.name=problems",
        "data.feedback.rows.solution=answer",
        "data.evaluation.test.path=tset.jsonl",
        "data.window_tokens=1",
        "data.feedback.max_tokens=1",
    )
    assert {
        "torn.jsonl:2",
        "data.stream",
        "feedback.jsonl:1",
        "data.evaluation.test.path",
        "data.window_tokens",
        "data.feedback.max_tokens",
    } <= set(result)
    assert "'problem', 'solution'" in result["feedback.jsonl:1"].accepted
    assert "test.jsonl" in result["data.evaluation.test.path"].accepted
    assert result["data.stream"].value == "problems, problems"


def test_the_generators_limits(here):
    problem = refused(here, "data.feedback.rows={kind: word_problems, split: test, rows: 99999}")[
        "data.feedback.rows"
    ]
    assert "99999" in problem.message and "at most" in problem.message
    rows = "{kind: word_problems, split: feedback, rows: 20, noise_share: 0.5}"
    assert (
        "always clean" in refused(here, f"data.feedback.rows={rows}")["data.feedback.rows"].message
    )


def test_feedback_that_cannot_steer(here):
    problem = refused(here, "data.feedback.batch_size=13")["data.feedback.batch_size"]
    assert (problem.value, problem.accepted) == ("13", "1 to 6: there are 12 rows")
    result = refused(here, "data.feedback.rows={kind: jsonl, path: feedback.jsonl, text: solution}")
    problem = result["data.feedback.rows feedback.jsonl:1"]
    assert "no prompt" in problem.message and problem.value == FEEDBACK[0]["solution"]


def test_feedback_that_stands_elsewhere_is_named_row_by_row(here):
    write(here / "leaky.jsonl", [*STREAM, FEEDBACK[7]])
    problem = refused(here, "data.stream.0.rows.path=leaky.jsonl")["data.feedback.rows"]
    assert problem.value == f"{here}/feedback.jsonl:8 = {here}/leaky.jsonl:13"
    assert "in the stream" in problem.message
    other = [{"problem": row["problem"].upper(), "solution": "0"} for row in FEEDBACK]
    problem = refused(here, "data.evaluation.test.path=stream.jsonl")["data.evaluation.test"]
    assert f"{len(STREAM)} of the evaluation rows are also in the stream" in problem.message
    write(here / "leaky.jsonl", [*TEST, *other])
    problem = refused(here, "data.evaluation.test.path=leaky.jsonl")["data.feedback.rows"]
    assert "12 of the feedback rows are also in the test rows" in problem.message
    assert problem.value.count(" = ") == 5 and problem.value.endswith(", ... and 7 more")


def test_leaks_are_told_beside_other_problems(here):
    write(here / "leaky.jsonl", [*STREAM, FEEDBACK[7]])
    result = refused(
        here, "data.stream.0.rows.path=leaky.jsonl", "data.evaluation.test.path=no.jsonl"
    )
    assert set(result) == {"data.feedback.rows", "data.evaluation.test.path"}


def test_answers_that_cannot_be_scored(here):
    assert texts(here, "evaluate.answer='= ([\\d ]+)'").evaluation
    problem = refused(here, "evaluate.answer='#### (.*)'")["evaluate.answer"]
    assert problem.value == "#### (.*)" and TEST[0]["solution"] in problem.accepted
    write(here / "plain.jsonl", [{"text": f"a plain text, number {number}"} for number in range(3)])
    plain = "data.evaluation.test={kind: jsonl, path: plain.jsonl, text: text}"
    result = refused(here, "evaluate.answer='(a)'", plain)
    (problem,) = (
        each for where, each in result.items() if where.startswith("data.evaluation.test")
    )
    assert "no prompt" in problem.message
    assert texts(here, plain).evaluation, "NLL alone needs no prompt"


def test_every_kind_of_file_and_patterns_over_several(here):
    (here / "many").mkdir()
    write(here / "many" / "2.jsonl", STREAM[6:])
    write(here / "many" / "1.jsonl", STREAM[:6])
    pq.write_table(
        pa.Table.from_pylist([{"q": r["problem"], "a": r["solution"]} for r in STREAM]),
        here / "s.parquet",
    )
    (here / "a.txt").write_text("one\ntwo\n\nthree\n")
    kinds = {
        "{kind: jsonl, path: 'many/*.jsonl', prompt: problem, solution: solution}": [
            r["problem"] for r in STREAM
        ],
        "{kind: jsonl, path: 'many/*.jsonl', template: 'Q: {problem}', solution: solution}": [
            f"Q: {r['problem']}" for r in STREAM
        ],
        "{kind: parquet, path: s.parquet, prompt: q, solution: a, rows: 3}": [
            r["problem"] for r in STREAM[:3]
        ],
        "{kind: text, path: '*.txt', document: paragraph}": ["", ""],
        "{kind: text, path: a.txt}": [""],
    }
    for rows, prompts in kinds.items():
        assert [
            row.prompt for row in texts(here, f"data.stream.0.rows={rows}").stream["problems"]
        ] == prompts
    rows = texts(here, "data.stream.0.rows={kind: text, path: a.txt, document: line}").stream[
        "problems"
    ]
    assert [row.text for row in rows] == ["one", "two", "three"]
    problem = refused(here, "data.stream.0.rows.path='m*/*.json'")["data.stream.0.rows.path"]
    assert "no file matches" in problem.message


@pytest.mark.parametrize(
    "rows",
    [
        "{kind: jsonl, path: a, prompt: q, template: '{q}', solution: a}",
        "{kind: jsonl, path: a, template: 'no field', solution: a}",
        "{kind: parquet, path: a, template: '{q}'}",
        "{kind: hub, path: a/b, text: t, streaming: true}",
        "{kind: held_out, source: problems}",
        "{kind: jsonl, path: a, format: gsm8k@99}",
        "{kind: jsonl, path: a, format: gsm8k@1, text: t}",
    ],
)
def test_rows_that_no_stream_can_have(here, rows):
    with pytest.raises(UserError) as caught:
        recipe(here, f"data.stream.0.rows={rows}")
    assert caught.value.problems[0].where.endswith("data.stream.0.rows") or "data.stream.0" in str(
        caught.value
    )


def test_a_format_stands_for_the_columns(here):
    write(here / "g.jsonl", [{"q": "1+1?", "answer": "It is 2.\n#### 2"}])
    rows = "{kind: jsonl, path: g.jsonl, format: gsm8k@1, columns: {question: q}}"
    (row,) = texts(here, f"data.stream.0.rows={rows}").stream["problems"]
    assert row.prompt == "Question: 1+1?\nAnswer: " and row.text.endswith("#### 2")


def test_unset_keys_are_not_written(here):
    written = recipe(here).data.model_dump(mode="json")["stream"][0]
    assert not {"max_documents", "held_out"} & set(written), (
        "the names of prepared checkpoints rest on these"
    )
    assert not {"template", "format", "columns"} & set(written["rows"])
    assert (
        recipe(here, "data.stream.0.max_documents=3").data.model_dump()["stream"][0][
            "max_documents"
        ]
        == 3
    )


def test_the_documents_of_a_source(here):
    made = recipe(here, "data.stream.0.max_documents=5", "data.window_tokens=12")
    rows = read(made).stream["problems"]
    documents, counts = documents_of(
        made.data.stream[0], rows, word_problems.tokenizer(), made.data
    )
    assert len(documents) == counts.documents <= 5
    assert max(documents.lengths) <= 12
    assert counts.rows == 12
    assert counts.dropped + counts.documents + counts.capped == 12


def test_prompts_that_fill_the_window_are_never_silently_nothing(here):
    made = recipe(here, "data.window_tokens=2")
    documents, counts = documents_of(
        made.data.stream[0], read(made).stream["problems"], word_problems.tokenizer(), made.data
    )
    assert (
        counts.dropped == 12 and "12 of 12 rows left out: the prompt alone" in counts.losses(2)[0]
    )
    with pytest.raises(UserError, match="'problems' holds no documents"):
        Stream(
            [Source("problems", documents, 1.0)], batch_size=1, window_tokens=2, seed=0, pad_id=0
        )


def test_what_is_left_out_is_said(here):
    (here / "stream.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in STREAM) + "{torn\n"
    )
    made = recipe(here, "data.window_tokens=2", "data.on_bad_row=skip")
    result = read(made)
    _, counts = documents_of(
        made.data.stream[0], result.stream["problems"], word_problems.tokenizer(), made.data
    )
    said = notices(result, {"stream/problems": counts}, made.data)
    warning, doubt, heading, skipped, *few, dropped = said
    assert "on_bad_row" in heading and f"{here}/stream.jsonl:13: this row is not JSON" in skipped
    assert dropped == "stream/problems: 12 of 12 rows left out: the prompt alone fills 2 tokens"
    assert warning.startswith("warning: near-duplicates") and doubt.startswith("  data.stream.0")
    assert "vpretrain decontaminate" in doubt and f"{here}/stream.jsonl" in doubt
    assert notices(read(recipe(here, "data.stream.0.rows.rows=12")), {}, made.data) == [
        warning,
        doubt,
        *few,
    ]
    assert [line.partition(" rows")[0] for line in few] == [
        "warning: the feedback has 12",
        "warning: the evaluation has 12",
    ]


@pytest.mark.parametrize(("pad", "filled_with"), [(None, 7), (3, 3), (0, 0)])
def test_a_tokenizer_without_pad_fills_up_with_its_end(pad, filled_with):
    tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=7)
    assert Materials.pad_id.fget(SimpleNamespace(tokenizer=tokenizer)) == filled_with


def test_rows_are_chosen_by_what_a_column_holds(here):
    rows = [{**row, "origin": ["a", "b", "c"][at % 3]} for at, row in enumerate(STREAM)]
    write(here / "stream.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), here / "stream.parquet")
    for kind in ("jsonl", "parquet"):
        spec = f"kind: {kind}, path: stream.{kind}, prompt: problem, solution: solution"
        for where, kept in (("one_of: [b]", "b"), ("none_of: [b]", "ac")):
            override = f"data.stream.0.rows={{{spec}, where: {{origin: {{{where}}}}}}}"
            result = texts(here, override).stream["problems"]
            expected = [row for row in rows if row["origin"] in kept]
            assert [row.prompt for row in result] == [row["problem"] for row in expected]
            assert result[0].origin.endswith(f":{rows.index(expected[0]) + 1}")
        key = "data.stream.0.rows.where"
        problems = refused(here, f"{key}={{orign: {{one_of: [b]}}}}")
        assert any("did you mean 'origin'" in problem.message for problem in problems.values())
    (problem,) = refused(here, f"{key}={{origin: {{one_of: [1]}}}}").items()
    assert problem[0] == key and "no row passes these filters" in problem[1].message
    assert problem[1].value == "{'origin': {'one_of': [1]}}"
    with pytest.raises(UserError, match="give either `one_of` or `none_of`"):
        texts(here, f"{key}={{origin: {{}}}}")


def test_one_instruction_around_every_prompt(here):
    result = texts(here, 'data.instruction="Solve: {prompt}\\nWork:"', 'data.separator="\\n"')
    for rows, expected in ((result.stream["problems"], STREAM), (result.evaluation, TEST)):
        asked = [f"Solve: {row['problem']}\nWork:\n" for row in expected]
        assert [row.prompt for row in rows] == asked
        assert [row.question for row in rows] == [row["problem"] for row in expected]
    assert [row.prompt for row in result.stream["prose"]] == [""] * 5
    with pytest.raises(UserError, match=r"holds \{prompt\} once"):
        texts(here, 'data.instruction="Solve it."')


@pytest.mark.parametrize("form", ["template: 'Q: {problem}', solution: solution", "format: qa@1"])
def test_a_leak_is_found_whatever_is_written_around_the_question(here, form):
    """The same questions raw in the stream, and in a template or a format in the feedback."""
    rows = [{**row, "question": row["problem"], "answer": row["solution"]} for row in FEEDBACK]
    write(here / "stream.jsonl", STREAM + rows[:2])
    write(here / "feedback.jsonl", rows)
    spec = f"data.feedback.rows={{kind: jsonl, path: feedback.jsonl, {form}}}"
    problem = refused(here, spec)["data.feedback.rows"]
    assert "2 of the feedback rows are also in the stream" in problem.message


def test_conversations_are_rows_of_a_recipe(here):
    talks = [
        [{"role": "user", "content": row["problem"]}, {"role": "assistant", "content": row[key]}]
        for row in FEEDBACK
        for key in ("solution",)
    ]
    write(here / "feedback.jsonl", [{"talk": talk} for talk in talks])
    pq.write_table(pa.Table.from_pylist([{"messages": talk} for talk in talks]), here / "f.parquet")
    write(here / "turns.jsonl", FEEDBACK)
    for rows in (
        "kind: jsonl, path: feedback.jsonl, format: chat, columns: {messages: talk}",
        "kind: parquet, path: f.parquet, format: chat",
        "kind: jsonl, path: turns.jsonl, format: chat, prompt: problem, solution: solution",
    ):
        result = texts(here, f"data.feedback.rows={{{rows}}}").feedback
        assert [row.conversation for row in result] == [{"messages": talk} for talk in talks]
        assert [(row.question, row.text) for row in result] == [
            (row["problem"], row["solution"]) for row in FEEDBACK
        ]
    write(here / "feedback.jsonl", [{"messages": talks[0][::-1]}, {"messages": "hello"}])
    problems = refused(here, "data.feedback.rows={kind: jsonl, path: feedback.jsonl, format: chat}")
    assert "has to come last" in problems["feedback.jsonl:1"].message
    assert problems["feedback.jsonl:1"].value == "assistant, user"
    assert "the messages are a string" in problems["feedback.jsonl:2"].message
