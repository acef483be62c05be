"""Rows from files: order, names, patterns, and every way in which a file or a row can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.language.data.files_of_rows import WHERE, columns, rows_of, the_problem, write
from vpretrain.language.data import sources
from vpretrain.language.data.rows import Row
from vpretrain.language.recipe.rows import Hub
from vpretrain.system.errors import Problem, UserError
from vpretrain.system.locations import files


def test_raw_text_and_pairs_are_read_in_order(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        {"text": "one", "q": "2?", "a": "two"},
        {"text": " é ", "q": "3?", "a": "3"},
    )
    assert rows_of(file) == [Row("", "one", f"{file}:1", "s"), Row("", " é ", f"{file}:2", "s")]
    assert rows_of(file, prompt="q", solution="a") == [
        Row("2?", "two", f"{file}:1", "s"),
        Row("3?", "3", f"{file}:2", "s"),
    ]


def test_blank_lines_crlf_a_byte_order_mark_and_a_missing_last_newline_are_fine(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \r\n{"text": "b\\r\\n\xe2\x80\xa8c", "text": '
        b'"d\xe2\x80\xa8e"}'
    )
    rows = rows_of(file)
    assert [row.text for row in rows] == ["a", "d\u2028e"], (
        "blank lines skipped, the last of two keys wins"
    )
    assert [row.origin for row in rows] == [f"{file}:1", f"{file}:4"]


def test_a_missing_file_says_which_files_are_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"text": "a"})
    write(tmp_path / "test.jsonl", {"text": "a"})
    (tmp_path / "notes.txt").write_text("no")
    problem = the_problem(tmp_path / "trian.jsonl")
    assert problem.where == f"{WHERE}.path"
    assert problem.value.endswith("trian.jsonl")
    assert "no such file" in problem.message
    assert "test.jsonl, train.jsonl" in problem.accepted
    assert "notes.txt" not in problem.accepted


def test_a_missing_file_without_siblings_or_with_many_says_so(tmp_path: Path) -> None:
    assert "no *.jsonl is in" in the_problem(tmp_path / "a.jsonl").accepted
    for i in range(13):
        write(tmp_path / f"{i:02}.jsonl", {"text": "a"})
    accepted = the_problem(tmp_path / "a.jsonl").accepted
    assert "09.jsonl, ... and 3 more" in accepted
    assert "10.jsonl" not in accepted


def test_a_missing_folder_and_a_folder_in_place_of_a_file_say_so(tmp_path: Path) -> None:
    problem = the_problem(tmp_path / "nowhere" / "a.jsonl")
    assert "nor its folder" in problem.message
    assert str(tmp_path / "nowhere") in problem.accepted
    write(tmp_path / "in.jsonl", {"text": "a"})
    problem = the_problem(tmp_path)
    assert "this is a folder" in problem.message
    assert "in.jsonl" in problem.accepted


def test_a_file_that_cannot_be_opened_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "a"})

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "cannot be read: Permission denied" in the_problem(file).message


@pytest.mark.parametrize(
    ("line", "description"),
    [
        (b'{"text": "a"', "this row is not JSON: Expecting ',' delimiter at column 13"),
        (b"plain words", "this row is not JSON"),
        (b"[" * 100_000, "this row is not JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", "this row is not JSON"),
        (b'["a"]', "this row is a list, not an object"),
        (b'"a"', "this row is a string, not an object"),
        (b"3", "this row is a number, not an object"),
        (b"null", "this row is null, not an object"),
        (
            b'{"txt": "a", "id": "b"}',
            "no column 'text' (did you mean 'txt'?): set data.stream.0.rows.text",
        ),
        (b"{}", "no column 'text': set data.stream.0.rows.text"),
        (b'{"text": 42}', "column 'text' is a number, not text"),
        (b'{"text": null}', "column 'text' is null, not text"),
        (b'{"text": NaN}', "column 'text' is no number (NaN), not text: fill it"),
        (b'{"text": ["a"]}', "column 'text' is a list, not text"),
        (b'{"text": {"a": 1}}', "column 'text' is an object, not text"),
        (b'{"text": ""}', "column 'text', the text, is empty"),
        (b'{"text": " \\n\\t\xc2\xa0"}', "column 'text', the text, is empty"),
        (b'{"text": "caf\xe9"}', "byte 14 of this line is not UTF-8"),
        (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: bytes, description: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "good"}\n\n' + line + b"\n" + b'{"text": "good"}\n')
    first, problem, last = rows_of(file)
    assert isinstance(first, Row) and isinstance(last, Row), "the rows around it are none the worse"
    assert isinstance(problem, Problem)
    assert problem.where == f"{file}:3"
    assert description in problem.message
    assert problem.value
    assert len(problem.value) < 90
    assert problem.accepted


def test_parquet_rows_are_those_of_the_same_json(tmp_path: Path) -> None:
    rows = [{"q": f"{i} é?", "a": f"{i}", "n": i} for i in range(2_500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    write(tmp_path / "a.jsonl", *rows)
    one, other = (
        rows_of(tmp_path / f"a.{kind}", prompt="q", solution="a") for kind in ("jsonl", "parquet")
    )
    assert [(row.prompt, row.text) for row in one] == [(row.prompt, row.text) for row in other]
    assert other[1_700].origin == f"{tmp_path}/a.parquet:1701"


def test_what_is_wrong_with_a_parquet_file(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": ["2?"] * 500, "n": list(range(500))}), file)
    problem = the_problem(file, text="qestion")
    assert "no column 'qestion' (did you mean 'question'?)" in problem.message
    assert problem.accepted == "'question', 'n'"
    file.write_bytes(file.read_bytes()[:-40])
    assert "cannot be read as a parquet file" in the_problem(file, text="question").message
    write(file, {"question": "a"})
    assert the_problem(file, text="question").where == f"{WHERE}.path"
    assert "no such file" in the_problem(tmp_path / "b.parquet").message


def test_a_bad_cell_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    latin = pa.array([b"caf\xe9", b"tea", b"caf\xc3\xa9"]).view(pa.string())
    pq.write_table(
        pa.table({"text": latin, "n": pa.array([None, 1, float("nan")], pa.float64())}), file
    )
    bad, *good = rows_of(file)
    assert (
        isinstance(bad, Problem) and bad.where == f"{file}:1" and "bytes, not text" in bad.message
    )
    assert [row.text for row in good] == ["tea", "café"]
    description = [result.message for result in rows_of(file, text="n")]
    assert ["null" in description[0], "a number" in description[1], "NaN" in description[2]] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("file", [(1, "  one é\ntwo\n\nthree\n \nfour")]),
        ("paragraph", [(1, "  one é\ntwo"), (4, "three"), (6, "four")]),
        ("line", [(1, "  one é"), (2, "two"), (4, "three"), (6, "four")]),
    ],
)
def test_text_files(tmp_path: Path, document: str, expected: list[tuple[int, str]]) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeff  one é\r\ntwo\r\n\r\nthree\r\n \r\nfour\r\n\r\n".encode())
    result = list(sources.text(file, "s", WHERE, document=document))
    assert result == [Row("", text, f"{file}:{line}", "s") for line, text in expected]
    file.write_bytes(b"\n \n")
    assert list(sources.text(file, "s", WHERE, document=document)) == []


@pytest.mark.parametrize(
    ("document", "kept"), [("file", []), ("paragraph", ["a", "d"]), ("line", ["a", "b", "d"])]
)
def test_bytes_that_are_not_utf8_are_named_by_line(
    tmp_path: Path, document: str, kept: list[str]
) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"a\n\nb\ncaf\xe9\n\nd\n")
    result = list(sources.text(file, "s", WHERE, document=document))
    (problem,) = (one for one in result if isinstance(one, Problem))
    assert (problem.where, problem.value) == (f"{file}:4", "0xe9")
    assert [one.text for one in result if isinstance(one, Row)] == kept


def test_a_pattern_takes_its_files_in_order_and_each_once(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "deep/er/d.jsonl", "notes.txt"):
        write(tmp_path / name, {"text": name})
    os.symlink(tmp_path / "a.jsonl", tmp_path / "z.jsonl")
    os.symlink(tmp_path, tmp_path / "deep" / "circle")

    def names(pattern: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in files(tmp_path / pattern, WHERE)]

    assert names("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names("**/*.jsonl") == ["a.jsonl", "b.jsonl", "deep/c.jsonl", "deep/er/d.jsonl"]
    assert names("[b]*.js*") == ["b.jsonl"]
    write(tmp_path / "[b]1.jsonl", {"text": "a"})
    assert names("[b]1.jsonl") == ["[b]1.jsonl"], "a file of that very name"


def test_a_pattern_without_a_match_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(UserError) as caught:
        files(tmp_path / "b*.jsonl", WHERE)
    (problem,) = caught.value.problems
    assert problem.where == f"{WHERE}.path"
    assert "no file matches" in problem.message and "a.jsonl" in problem.accepted
    with pytest.raises(UserError, match="does not"):
        files(tmp_path / "nowhere" / "*.jsonl", WHERE)


def test_links_that_lead_nowhere_say_so(tmp_path: Path) -> None:
    for name, target in (("circle.jsonl", "circle.jsonl"), ("gone.jsonl", "nowhere.jsonl")):
        os.symlink(tmp_path / target, tmp_path / name)
        assert "leads nowhere, or in a circle" in the_problem(tmp_path / name).message
    write(tmp_path / "whole.jsonl", {"text": "a"})
    matched = [path.name for path in files(tmp_path / "*.jsonl", WHERE)]
    assert matched == ["circle.jsonl", "gone.jsonl", "whole.jsonl"], "none is left out unsaid"


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that ``datasets`` reads as it reads one of the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write(
        tmp_path / "set" / "train.jsonl",
        *[{"question": f"{i}?", "answer": f"{i}"} for i in range(1_500)],
    )
    return tmp_path / "set"


def hub(
    path: str, split: str = "train", streaming: bool = False, **named: str
) -> list[Row | Problem]:
    rows = 2_000 if streaming else None
    spec = Hub(kind="hub", path=path, split=split, streaming=streaming, rows=rows, text="unused")
    return list(sources.hub(spec, columns(**named)))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_is_read_in_its_order(hub_folder: Path, streaming: bool) -> None:
    rows = hub(str(hub_folder), streaming=streaming, template="Q: {question}", solution="answer")
    assert [row.text for row in rows] == [str(i) for i in range(1_500)]
    assert rows[1_200] == Row("Q: 1200?", "1200", f"{hub_folder}/train:1201", "s", "1200?")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_without_the_column_or_split(hub_folder: Path, streaming: bool) -> None:
    if not streaming:  # a stream knows its columns once rows come
        with pytest.raises(UserError) as caught:
            hub(str(hub_folder), text="txt")
        assert caught.value.problems[0].accepted == "'question', 'answer'"
    with pytest.raises(UserError, match="cannot be read from the hub"):
        hub(str(hub_folder), split="tset", streaming=streaming, text="answer")


def test_a_name_of_the_hub_without_network() -> None:
    with pytest.raises(UserError) as caught:
        hub("nobody/no-such-set")
    (problem,) = caught.value.problems
    assert problem.where == f"{WHERE}.path" and problem.value == "nobody/no-such-set"
    assert "HF_HUB_OFFLINE is set" in problem.message
