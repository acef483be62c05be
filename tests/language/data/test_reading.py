"""Which rows of a place are taken, and which are held out."""

import json

from tests.language.data.small_recipe import (
    STREAM,
    recipe,
    refused,
    texts,
    write,
)
from vpretrain.language.data.texts import notices, read


def test_rows_asked_for_are_all_that_is_read(here):
    (here / "stream.jsonl").write_text(json.dumps(STREAM[0]) + "\n{torn\n")
    assert len(texts(here, "data.stream.0.rows.rows=1").stream["problems"]) == 1


def test_bad_rows_are_skipped_counted_and_named(here):
    lines = (
        [json.dumps(row) for row in STREAM]
        + ["{"] * 7
        + [json.dumps({"problem": "1+1?", "solution": ""})]
    )
    (here / "stream.jsonl").write_text("\n".join(lines))
    problems = refused(here)
    hint = problems.pop("data.on_bad_row")
    assert set(problems) == {f"stream.jsonl:{line}" for line in range(13, 18)} | {
        "data.stream.0.rows"
    }
    assert hint.message.startswith("8 rows cannot be used") and hint.accepted.startswith("skip")
    result = texts(here, "data.on_bad_row=skip")
    assert [row.prompt for row in result.stream["problems"]] == [row["problem"] for row in STREAM]
    assert [p.where.rpartition(":")[2] for p in result.skipped[:5]] == [
        "13",
        "14",
        "15",
        "16",
        "17",
    ]
    assert "3 more rows" in result.skipped[5].message and len(result.skipped) == 6
    assert texts(here, "data.stream.0.rows.rows=12").skipped == []


def test_a_file_of_nothing_but_bad_rows_stops_all_the_same(here):
    (here / "stream.jsonl").write_text('{"problem": "1+1?"}\n')
    assert set(refused(here, "data.on_bad_row=skip")) == {"stream.jsonl:1"}
    for nothing in ("", "\r\n\r\n", "\ufeff"):
        (here / "stream.jsonl").write_text(nothing)
        problem = refused(here, "data.on_bad_row=skip")["data.stream.0.rows"]
        assert "no rows" in problem.message and problem.value == "stream.jsonl"


def test_copies_among_the_feedback_rows_are_warned_of(here):
    rows = (here / "feedback.jsonl").read_text().splitlines()
    write(here / "feedback.jsonl", [json.loads(row) for row in [*rows, rows[0], rows[1]]])
    made = recipe(here)
    said = "\n".join(notices(read(made), {}, made.data))
    assert f"2 of the {len(rows) + 2} rows of the feedback are copies of others" in said


def test_exact_copies_are_counted_and_left_out_where_that_is_asked(here):
    other = {**STREAM[0], "solution": STREAM[1]["solution"]}
    write(here / "stream.jsonl", [*STREAM, STREAM[3], other, *STREAM[:2]])
    made = recipe(here)
    result = read(made)
    assert result.copies == {"problems": 3}, "made-up rows repeat themselves, and are not looked at"
    assert len(result.stream["problems"]) == 16
    (said,) = (line for line in notices(result, {}, made.data) if line.startswith("stream/"))
    assert "exact copies of earlier ones: 3 of 16" in said and "on_duplicate_row=skip" in said
    made = recipe(here, "data.on_duplicate_row=skip")
    result = read(made)
    (said,) = (line for line in notices(result, {}, made.data) if line.startswith("stream/"))
    assert said.startswith("stream/problems: 3 rows left out")
    assert [row.text for row in result.stream["problems"]] == [
        row["solution"] for row in [*STREAM, other]
    ]


HOLDING = (
    "data.stream.0.held_out={fraction: 0.4}",
    "data.evaluation.test={kind: held_out, source: problems}",
)


def test_held_out_rows_are_never_in_the_stream(here):
    result = texts(here, *HOLDING)
    kept, away = (
        {row.prompt for row in rows} for rows in (result.stream["problems"], result.evaluation)
    )
    assert kept and away and not kept & away
    assert kept | away == {row["problem"] for row in STREAM}
    write(here / "stream.jsonl", STREAM[::-1] * 2)
    again = {row.prompt for row in texts(here, *HOLDING).evaluation}
    assert again == away, "whatever the order, and however often a row is there"
    one, rest = (
        texts(here, *HOLDING, "data.evaluation.test.rows=1"),
        texts(here, *HOLDING, "data.evaluation.test.skip_rows=1"),
    )
    assert len(one.evaluation) == 1 and one.evaluation[0] not in rest.evaluation


def test_held_out_rows_of_one_source_are_looked_for_in_the_others(here):
    write(here / "copy.jsonl", STREAM)
    copy = "data.stream.1.rows={kind: jsonl, path: copy.jsonl, prompt: problem, solution: solution}"
    problem = refused(here, *HOLDING, copy)["data.evaluation.test"]
    assert "also in the stream" in problem.message
    assert texts(here, *HOLDING, copy, "data.stream.1.held_out={fraction: 0.4}").evaluation


def test_planted_noise_stays_out_of_what_is_held_out(here):
    result = texts(here, *HOLDING, "data.stream.0.rows.corrupt_digits=1")
    clean = {row["problem"]: row["solution"] for row in STREAM}
    assert all(row.text == clean[row.prompt] for row in result.evaluation)
    assert all(row.text != clean[row.prompt] for row in result.stream["problems"])


def test_a_source_that_holds_nothing_out(here):
    problem = refused(here, "data.evaluation.test={kind: held_out, source: problems}")[
        "data.evaluation.test.source"
    ]
    assert problem.value == "problems" and "holds nothing out" in problem.message
    problem = refused(here, HOLDING[0], "data.evaluation.test={kind: held_out, source: prolbems}")
    assert problem["data.evaluation.test.source"].accepted == "problems"
    problem = refused(here, HOLDING[1], "data.stream.0.held_out={fraction: 1e-9}")[
        "data.stream.0.held_out.fraction"
    ]
    assert "raise the fraction" in problem.message
