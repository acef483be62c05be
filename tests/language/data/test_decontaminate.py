"""Near-duplicates are found in whatever holds them, unrelated rows are kept, and what is written is
whole.
"""

from __future__ import annotations

import gzip
import inspect
import json
import pickle
import random
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from tests.language.data.questions import CHANGED, FILLER, OTHER, QUESTION, write
from vpretrain import cli
from vpretrain.language.data import certificate, decontaminate
from vpretrain.language.data.decontaminate import decontaminate as clean
from vpretrain.language.data.similarity import Protected
from vpretrain.system.errors import UserError


def test_kept_lines_are_the_bytes_that_came_in_and_removed_ones_are_in_the_report(
    tmp_path: Path, test_set: Path
) -> None:
    kept = [b'{"text":"caf\\u00e9",  "n":1e3}\r\n', b'{"n": 1}\n', '{"text": "日本"}'.encode()]
    leak = {
        "messages": [
            {"role": "user", "content": CHANGED["name"]},
            {"role": "assistant", "content": "18"},
        ]
    }
    stream = tmp_path / "stream.jsonl"
    stream.write_bytes(
        b"\xef\xbb\xbf" + kept[0] + b"\n" + json.dumps(leak).encode() + b"\n" + kept[1] + kept[2]
    )
    result = clean([str(stream)], [str(test_set)], tmp_path / "out.jsonl")
    assert (result.rows, result.removed) == (4, 1)
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(kept) + b"\n"
    (record,) = map(json.loads, Path(result.report).read_text(encoding="utf-8").splitlines())
    assert (record["file"], record["line"], record["matched"]) == (str(stream), 3, f"{test_set}:1")
    assert 0.5 <= record["similarity"] < 1
    assert record["protected"] == QUESTION and CHANGED["name"] in record["text"]


def test_parquet_text_and_compressed_files_and_globs_become_json_lines(
    tmp_path: Path, test_set: Path
) -> None:
    parquet.write_table(
        pyarrow.table({"q": ["one", QUESTION], "n": [1, 2]}), tmp_path / "a.parquet"
    )
    (tmp_path / "b.txt").write_text(f"two\n\n{QUESTION}\n", encoding="utf-8")
    for name in ("c1", "c2"):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(json.dumps({"t": name}) + "\n" + json.dumps({"t": QUESTION}) + "\n")
    stream = [str(tmp_path / name) for name in ("a.parquet", "b.txt", "c*.gz")]
    result = clean(stream, [str(test_set)], tmp_path / "out.jsonl")
    assert (result.rows, result.removed) == (8, 4)
    out = [
        json.loads(line)
        for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert out == [{"q": "one", "n": 1}, {"text": "two"}, {"t": "c1"}, {"t": "c2"}]
    lines = [
        json.loads(line)["line"]
        for line in Path(result.report).read_text(encoding="utf-8").splitlines()
    ]
    assert lines == [2, 3, 2, 2]


def threads(
    jobs: int, context: object, initializer: Callable[..., None], initargs: tuple[Protected]
) -> Executor:
    """What the process pool does, without the seconds that a new process takes to import."""
    return ThreadPoolExecutor(
        jobs, initializer=initializer, initargs=pickle.loads(pickle.dumps(initargs))
    )


@pytest.mark.parametrize(
    "pool", [threads, pytest.param(ProcessPoolExecutor, marks=pytest.mark.slow)]
)
def test_two_workers_write_what_one_writes(
    pool: object, tmp_path: Path, test_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decontaminate, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(decontaminate, "_PIECE_ROWS", 7)
    changes = [*CHANGED.values(), *(f"row {i}" for i in range(50))]
    random.Random(1).shuffle(changes)
    stream = write(tmp_path / "stream.jsonl", *({"text": text} for text in changes))
    written = []
    for jobs in (1, 2):
        out = tmp_path / f"{jobs}.jsonl"
        result = clean([str(stream)], [str(test_set)], out, jobs=jobs, report=tmp_path / "report")
        written.append(
            (result.rows, result.removed, out.read_bytes(), (tmp_path / "report").read_bytes())
        )
    assert written[0] == written[1]
    assert written[0][1] == len(CHANGED)


def test_named_columns_alone_protect(tmp_path: Path, test_set: Path) -> None:
    long_answer = {"question": OTHER, "answer": QUESTION}
    protected = write(tmp_path / "both.jsonl", long_answer)
    stream = write(tmp_path / "stream.jsonl", {"text": QUESTION}, {"text": OTHER})
    assert clean([str(stream)], [str(protected)], tmp_path / "a").removed == 2
    assert clean([str(stream)], [str(protected)], tmp_path / "b", columns=["question"]).removed == 1
    assert json.loads((tmp_path / "b").read_text()) == {"text": QUESTION}


def refused(stream: Path | str, against: Path, out: Path, columns: tuple[str, ...] = ()) -> str:
    before = {path: path.read_bytes() for path in out.parent.iterdir() if path.is_file()}
    with pytest.raises(UserError) as caught:
        clean([str(stream)], [str(against)], out, columns=columns)
    assert {
        path: path.read_bytes() for path in out.parent.iterdir() if path.is_file()
    } == before  # nothing half-written
    return str(caught.value)


def test_bad_input_is_refused_by_file_and_line_before_anything_is_written(
    tmp_path: Path, test_set: Path
) -> None:
    stream, out = write(tmp_path / "stream.jsonl", {"text": "a row"}), tmp_path / "out.jsonl"
    empty, short = write(tmp_path / "empty.jsonl"), write(tmp_path / "short.jsonl", {"q": "Why?"})
    certificate.path_of(out).write_text("{}")  # of an earlier run, which is kept
    assert "no such file" in refused("nowhere.jsonl", test_set, out)
    assert "no file matches this pattern" in refused(stream, tmp_path / "*.none", out)
    assert "folder" in refused(tmp_path, test_set, out)
    assert "holds no rows" in refused(empty, test_set, out)
    assert "--against" in refused(stream, empty, out)
    assert "too short" in refused(stream, short, out)
    assert "'question', 'answer'" in refused(stream, test_set, out, columns=("problem",))
    assert "another role" in refused(stream, test_set, stream)
    assert "another role" in refused(stream, test_set, test_set)
    assert "all of it" in refused(test_set, test_set, out)
    with pytest.raises(UserError, match="there is no folder"):
        clean([str(stream)], [str(test_set)], tmp_path / "none" / "out.jsonl")
    for line, said in (
        (b"{nope", "not JSON"),
        (b'"text"', "not an object"),
        (b'{"a": "\xff"}', "not UTF-8"),
    ):
        bad = tmp_path / "bad.jsonl"
        bad.write_bytes(b'{"text": "good"}\n' + line + b"\n")
        message = refused(bad, test_set, out)
        assert f"{bad}:2" in message and said in message
        assert f"{bad}:2" in refused(stream, bad, out)
    (tmp_path / "bad.parquet").write_bytes(b"PAR0")
    assert "cannot be read" in refused(tmp_path / "bad.parquet", test_set, out)
    (tmp_path / "bad.jsonl.gz").write_bytes(b"PAR0")
    assert "cannot be read" in refused(tmp_path / "bad.jsonl.gz", test_set, out)


def test_the_command_takes_several_files_after_one_flag(tmp_path: Path, test_set: Path) -> None:
    more = write(tmp_path / "more.jsonl", {"question": FILLER})
    stream = write(
        tmp_path / "stream.jsonl", {"text": FILLER}, {"text": QUESTION}, {"text": "a row"}
    )
    out = tmp_path / "out.jsonl"
    words = [
        "decontaminate",
        str(stream),
        "--against",
        str(test_set),
        str(more),
        "--columns",
        "question",
        "--out",
        str(out),
    ]
    ran = CliRunner().invoke(cli.app, [*words, "--json"])
    assert ran.exit_code == 0, ran.output
    result = json.loads(ran.stdout)
    assert (result["rows"], result["removed"], Path(result["report"]).is_file()) == (3, 2, True)
    assert out.read_text() == '{"text": "a row"}\n'
    refusal = CliRunner().invoke(cli.app, [*words, "--threshold", "2"])
    assert isinstance(refusal.exception, UserError) and "--threshold" in str(refusal.exception)


def test_the_command_and_the_function_have_the_same_defaults() -> None:
    of_command, of_function = (
        {name: given.default for name, given in inspect.signature(function).parameters.items()}
        for function in (cli.decontaminate.decontaminate, clean)
    )
    assert [of_command[key] for key in ("ngram", "threshold", "jobs")] == [
        of_function[key] for key in ("ngram", "threshold", "jobs")
    ]


@pytest.mark.data
def test_gsm8k_train_rows_are_kept_but_for_those_that_repeat_test_questions(
    tmp_path: Path, shared_data: Path
) -> None:
    train, test = (str(shared_data / "gsm8k" / f"{split}.jsonl") for split in ("train", "test"))
    result = clean([train], [test], tmp_path / "out.jsonl")
    assert 0 < result.removed < result.rows / 1000
