"""Rows of files as lines of JSON: numbers are those of the file, whatever is in it."""

import gzip
import json

import pytest

from vpretrain.language.data import raw_rows
from vpretrain.system import tables
from vpretrain.system.errors import Problem, UserError

TEXT = b"\xef\xbb\xbfone\r\n\n  \ntwo"


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_lines_of_plain_text_are_numbered_as_in_the_file(tmp_path, ending):
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(gzip.compress(TEXT) if ending else TEXT)
    rows = [(number, json.loads(line)) for number, line in raw_rows.lines(path)]
    assert rows == [(1, {"text": "one"}), (4, {"text": "two"})]


def test_lines_of_json_are_the_bytes_of_the_file_each_with_an_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a":  1}\r\n\n{"a": 2}')
    assert list(raw_rows.lines(path)) == [(1, b'{"a":  1}\r\n'), (3, b'{"a": 2}\n')]


def test_a_line_that_no_tokenizer_could_hold_is_named_before_it_is_read_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n')
        file.truncate(10**11)  # a hole that takes no room
    with pytest.raises(UserError, match=r"a\.jsonl:2: this row is too long.*\n.*16 MiB"):
        list(raw_rows.lines(path))


def test_a_broken_file_and_a_line_that_is_not_utf8_are_named(tmp_path):
    broken = tmp_path / "a.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-12])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz.*cannot be read"):
        list(raw_rows.lines(broken))
    latin = tmp_path / "a.txt"
    latin.write_bytes("fine\ncaf\u00e9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt:2.*byte 4"):
        list(raw_rows.lines(latin))


@pytest.mark.parametrize("line", [b"[1]", b"3", b"{", b"nan"])
def test_a_line_that_is_no_object_is_a_problem(line):
    problem = tables.parsed(line, "a.jsonl:7")
    assert isinstance(problem, Problem) and problem.where == "a.jsonl:7"


def test_all_text_of_a_cell_in_order():
    cell = {"messages": [{"content": "one"}, {"content": ["two", 3, None]}], "last": "four"}
    assert raw_rows.text_of(cell) == "one\ntwo\nfour"


def test_files_are_named_as_in_recipes(tmp_path):
    for name in ("a.md", "b.txt", "c.rst"):
        (tmp_path / name).write_text("text\n")
    result = raw_rows.places([f"{tmp_path}/*.{{md,txt}}"], "STREAM")
    assert [path.name for path in result] == ["a.md", "b.txt"]
