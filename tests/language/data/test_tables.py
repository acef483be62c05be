"""Files as the libraries write them that people make them with, whole and broken."""

from __future__ import annotations

import base64
import csv
import gzip
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.language.data.files_of_rows import WHERE, columns, rows_of, the_problem
from tests.language.data.small_recipe import STREAM, recipe, refused, texts
from vpretrain.language.data import raw_rows, sources
from vpretrain.language.data.rows import Row
from vpretrain.system.errors import Problem, UserError
from vpretrain.system.locations import files
from vpretrain.system.tables import kind_by_name

ROWS = [
    {"q": 'one, "two"?', "a": "three\nlines; é", "n": 1},
    {"q": "tab\there?", "a": "4", "n": 2},
    {"q": "last?", "a": "5" * 200_000, "n": 3},
]


def read(path: Path, kind: str | None = None) -> list[Row | Problem]:
    kind = kind or kind_by_name(path) or ""
    some = files(path, WHERE)
    return [
        row for one in some for row in sources.table(one, kind, columns(prompt="q", solution="a"))
    ]


def told(rows: list[Row | Problem]) -> list[tuple[str, str]]:
    return [(row.prompt, row.text) for row in rows if isinstance(row, Row)]


RIGHT = [(row["q"], row["a"]) for row in ROWS]


@pytest.mark.parametrize("ending", [".gz", ""])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list_is_read_as_its_lines_are(
    tmp_path: Path, ending: str, indent: int | None
) -> None:
    path = tmp_path / f"a.json{ending}"
    with gzip.open(path, "wt") if ending else path.open("w") as file:
        json.dump(ROWS, file, indent=indent, ensure_ascii=bool(indent))
    result = read(path)
    assert told(result) == RIGHT
    lines = [row.origin.rpartition(":")[2] for row in result if isinstance(row, Row)]
    assert lines == (["2", "7", "12"] if indent else ["1", "1", "1"])
    assert [json.loads(line) for _, line in raw_rows.lines(path)] == ROWS


def test_a_long_json_list_is_read_piece_by_piece(tmp_path: Path) -> None:
    rows = [{"text": f"{i} é" * 40, "more": [i, {"deep": None}]} for i in range(30_000)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert [row.text for row in rows_of(tmp_path / "a.json")] == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("text", "line", "description"),
    [
        ('[{"text": "a"},\n {"text": "b"}', 2, "ends before its closing bracket"),
        ('[{"text": "a"},\n {"text": "b', 2, "not JSON: Unterminated string"),
        ('[{"text": "a"},\n {"text": "b" "c"}\n]', 2, "Expecting ',' delimiter"),
        ('[{"text": "a"},\n 3]', 2, "a number, not an object"),
        ('[{"text": "a"}]\n{"text": "b"}', 1, "something follows after the list"),
        ('[{"text": "a"},\n{"text": "caf\udce9"}]', 2, "not UTF-8"),
    ],
)
def test_a_broken_json_list_is_named_by_line(
    tmp_path: Path, text: str, line: int, description: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    problem = the_problem(path)
    assert problem.where == f"{path}:{line}" and description in problem.message


@pytest.mark.parametrize(("ending", "sep"), [("csv", ","), ("tsv", "\t"), ("csv.gz", ",")])
def test_csv_of_pandas(tmp_path: Path, ending: str, sep: str) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas writes the CSV that is read here")
    path = tmp_path / f"a.{ending}"
    pandas.DataFrame(ROWS).to_csv(path, sep=sep)
    result = read(path)
    assert told(result) == RIGHT
    assert [row.origin.rpartition(":")[2] for row in result] == ["2", "4", "5"]
    assert "n" in json.loads(next(raw_rows.lines(path))[1])


def test_csv_of_arrow_and_of_python(tmp_path: Path) -> None:
    import pyarrow.csv

    pyarrow.csv.write_csv(pa.Table.from_pylist(ROWS), tmp_path / "a.csv")
    with (tmp_path / "b.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["q", "a", "n"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert told(read(tmp_path / "a.csv")) == told(read(tmp_path / "b.csv")) == RIGHT


@pytest.mark.parametrize(
    ("lines", "number", "description"),
    [
        (b"x?,1\n\na,b,c\ny?,2\n", 4, "another number of cells"),
        (b"x?,1\nalone\ny?,2\n", 3, "another number of cells"),
        (b'x?,1\ny?,"never closed\n', 3, "not CSV: unexpected end of data"),
        (b'x?,1\n"one\r\ncaf\xe9",2\ny?,2\n', 4, "not UTF-8"),
        (b"x?,1\ny?\r,2\nz?,3\n", 3, "a line ends in CR alone"),
        (b"x?,1\ny?,\n", 3, "column 'a', the solution, is empty"),
    ],
)
def test_a_broken_row_of_csv_is_named_by_line(
    tmp_path: Path, lines: bytes, number: int, description: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"q,a\n" + lines)
    (problem,) = (row for row in read(path) if isinstance(row, Problem))
    assert problem.where == f"{path}:{number}" and description in problem.message
    assert ("x?", "1") in told(read(path)), "the rows around it are none the worse"
    if "the solution" not in description:
        with pytest.raises(UserError, match=f"a.csv:{number}"):
            list(raw_rows.lines(path))


def test_what_is_wrong_with_the_columns_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,a\n1,2\n")
    assert "no column 'q'" in the_problem(path, prompt="q", solution="a").message
    path.write_text("q,q,a\n1,2,3\n")
    assert the_problem(path, prompt="q", solution="a").value == "q"
    path.write_bytes(b"q,a\rx?,1\r")
    with pytest.raises(UserError, match=r"a\.csv:1: a line ends in CR alone"):
        read(path)
    path.write_text("")
    assert read(path) == []
    with pytest.raises(UserError, match=r"rows\.kind: a\.csv is a file of another kind"):
        read(path, "jsonl")


# two frames of zstandard 0.25
ZSTD = base64.b64decode(
    "KLUv/SARiQAAeyJ0ZXh0IjogIm9uZSJ9CgootS/9IBShAAB7InRleHQiOiAiendlaSDDvCJ9Cg=="
)


def test_lines_compressed_by_zstandard(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(ZSTD)
    assert rows_of(path) == [
        Row("", "one", f"{path}:1", "s"),
        Row("", "zwei ü", f"{path}:3", "s"),
    ]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_compressed_file_that_was_cut_off_names_the_line(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl.{ending}"
    text = "".join(
        json.dumps({"text": sha256(b"%d" % i).hexdigest()}) + "\n" for i in range(5_000)
    ).encode()
    with pa.CompressedOutputStream(path, {"gz": "gzip", "zst": "zstd"}[ending]) as file:
        file.write(text)
    assert len(rows_of(path)) == 5_000
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    with pytest.raises(UserError, match=r"from this line on the file cannot be read") as caught:
        rows_of(path)
    name, _, line = caught.value.problems[0].where.rpartition(":")
    assert name == str(path) and 1 < int(line) < 5_000


def saved(folder: Path, rows: list[dict[str, Any]], shards: int = 1) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).save_to_disk(folder, num_shards=shards)
    return folder


def test_a_folder_of_datasets(tmp_path: Path) -> None:
    rows = [{"q": f"{i}?", "a": f"{i} é", "n": i} for i in range(2_500)]
    folder = saved(tmp_path / "set", rows, shards=2)
    result = read(folder, "arrow")
    assert told(result) == [(row["q"], row["a"]) for row in rows]
    assert result[1_250].origin == f"{folder}/data-00001-of-00002.arrow:1"
    assert read(folder / "data-*.arrow") == result
    with pytest.raises(UserError, match=r"rows\.kind"):
        read(folder, "parquet")


def test_what_is_wrong_with_a_folder_of_datasets(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dict" / "train", [{"q": "1?", "a": "1"}] * 40, shards=2)
    with pytest.raises(UserError, match="several data sets") as caught:
        read(tmp_path / "dict", "arrow")
    assert caught.value.problems[0].accepted == str(folder)
    other = saved(tmp_path / "other", [{"question": "1?", "answer": "1"}])
    member = folder / "data-00001-of-00002.arrow"
    whole = member.read_bytes()
    member.write_bytes(next(other.glob("*.arrow")).read_bytes())
    with pytest.raises(UserError, match="no column 'q'") as caught:
        read(folder, "arrow")
    assert caught.value.problems[0].where == str(member), "the member of another schema"
    for cut in (0, 5, 100, len(whole) // 2):
        member.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="cannot be read as an arrow file") as caught:
            read(folder, "arrow")
        assert caught.value.problems[0].value == str(member)
    member.unlink()
    with pytest.raises(UserError, match="no such file"):
        read(folder, "arrow")
    (folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match="names no data files"):
        read(folder, "arrow")


@pytest.mark.parametrize("compression", ["lz4", "zstd", "uncompressed"])
def test_feather_of_pandas(tmp_path: Path, compression: str) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas writes the Feather that is read here")
    frame = pandas.DataFrame(ROWS * 900).astype({"a": "category"})
    frame.to_feather(tmp_path / "a.feather", compression=compression)
    result = read(tmp_path / "a.feather")
    assert told(result) == RIGHT * 900 and result[-1].origin.endswith("a.feather:2700")


def test_messages_of_a_saved_folder_end_with_the_assistant(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "two"}]
    saved(tmp_path / "chats", [{"messages": turns}, {"messages": turns[:1]}])
    rows = "data.stream.0.rows={kind: arrow, path: chats, format: chat}"
    for name in ("stream", "feedback", "test"):
        (tmp_path / f"{name}.jsonl").write_text("")
    problems = refused(tmp_path, rows)
    assert "has to come last" in problems["chats/data-00000-of-00001.arrow:2"].message


def test_tables_of_every_kind_give_the_same_stream(here: Path) -> None:
    """Kinds are told by the recipe, and values of ``where`` are text in CSV."""
    import pyarrow.csv

    rows = [{**row, "level": i % 2} for i, row in enumerate(STREAM)]
    (here / "same.json").write_text(json.dumps(rows))
    pyarrow.csv.write_csv(pa.Table.from_pylist(rows), here / "same.csv")
    saved(here / "same", rows)
    expected = [row["solution"] for row in rows if row["level"]]
    keys = "prompt: problem, solution: solution, where: {level: {one_of: [1]}}"
    for kind, name in (("jsonl", "same.json"), ("csv", "same.csv"), ("arrow", "same")):
        override = f"data.stream.0.rows={{kind: {kind}, path: {name}, {keys}}}"
        assert [row.text for row in texts(here, override).stream["problems"]] == expected
    assert recipe(here).data.stream[0].rows.kind == "jsonl"


@pytest.mark.parametrize("spelled", [("True", "False"), ("true", "false"), ("TRUE", "FALSE")])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_booleans_of_text_tables_are_chosen_as_exporters_write_them(
    here: Path, spelled: tuple[str, str], kind: str
) -> None:
    with (here / f"stream.{kind}").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
        table.writerow(["problem", "solution", "toxic"])
        for at, row in enumerate(STREAM):
            table.writerow([row["problem"], row["solution"], spelled[at % 2]])
    keys = f"kind: {kind}, path: stream.{kind}, prompt: problem, solution: solution"
    for where, kept in (("one_of: [true]", 0), ("none_of: [true]", 1), ("none_of: [false]", 0)):
        override = f"data.stream.0.rows={{{keys}, where: {{toxic: {{{where}}}}}}}"
        result = [row.text for row in texts(here, override).stream["problems"]]
        assert result == [row["solution"] for row in STREAM[kept::2]]
