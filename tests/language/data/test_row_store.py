"""Rows and documents on disk behave as the lists that they stand for."""

from __future__ import annotations

import os
import tempfile

import pytest

from vpretrain.language.data.row_store import StoredDocuments, StoredRows
from vpretrain.language.data.rows import Row
from vpretrain.system.errors import Fault

ROWS = [
    Row(f"prompt {i}" * (i % 3), f"é\ud83d\0{i}" * (1 + i % 400), f"f:{i}", "s")
    for i in range(2_345)
]


def test_rows_come_back_as_they_were_in_any_order() -> None:
    stored = StoredRows("s", ROWS)
    assert len(stored) == len(ROWS)
    assert list(stored) == ROWS
    for index in (0, 1_999, -1, -2_345):
        assert stored[index] == ROWS[index]
    for part in (
        slice(200),
        slice(1_500, 2_000),
        slice(-3, None),
        slice(5, 5),
        slice(9, 2),
        slice(1, None, 2),
    ):
        assert stored[part] == ROWS[part]
    for index in (2_345, -2_346):
        with pytest.raises(IndexError):
            stored[index]
    assert list(StoredRows("s")) == [] and not StoredRows("s")


def test_rows_can_be_added_after_some_were_read() -> None:
    stored = StoredRows("s", ROWS[:10])
    assert stored[9] == ROWS[9]
    stored.extend(ROWS[10:])
    assert stored[:] == ROWS


def test_a_forked_process_and_its_parent_do_not_get_in_each_others_way() -> None:
    stored = StoredRows("s", ROWS)
    assert stored[0] == ROWS[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if all(stored[i] == ROWS[i] for i in range(len(ROWS))) else 1)
    assert [stored[i] for i in reversed(range(len(ROWS)))] == ROWS[::-1]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_file_goes_with_the_object(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stored = StoredRows("s", ROWS)
    descriptor = stored._file.fileno()
    assert os.fstat(descriptor).st_nlink == 0, "no name is left behind, however the process ends"
    del stored
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_a_full_disk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "wb")  # noqa: SIM115
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    documents = StoredDocuments("s")
    documents.keep([1, 2, 3], b"\0\1\1", ROWS[0])
    with pytest.raises(Fault, match="set TMPDIR"):
        documents[0]
    del documents  # silently: it was said
    assert full.closed
