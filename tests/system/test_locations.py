"""Files at URLs, read as local ones are: memory and a web server stand for the places of people."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from vpretrain.config.recipe import dump, load
from vpretrain.run.modalities import SCHEMAS
from vpretrain.system.errors import Problem, UserError
from vpretrain.system.locations import Remote, _spelled, files, is_url, under
from vpretrain.system.tables import kind_by_name, readable, records

ROWS = [{"q": f"{at}?", "a": f"{at} é" * 50} for at in range(300)]
WHERE = "data.stream.0.rows"
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and its address on the web."""
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def write(folder: Path) -> list[str]:
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    with pa.CompressedOutputStream(folder / "c.jsonl.zst", "zstd") as file:
        file.write(LINES)
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "d.parquet")
    feather.write_feather(pa.Table.from_pylist(ROWS), folder / "e.feather")
    return ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.feather"]


def read(url: str) -> list[object]:
    (place,) = files(Remote(url), WHERE)
    kind = kind_by_name(place) or ""
    with readable(place, kind, f"{WHERE}.path"):
        return [row for _, row in records(place, kind, list)]


def test_files_of_every_kind_are_read_from_memory_and_from_the_web(
    served: tuple[Path, str],
) -> None:
    folder, address = served
    for name in write(folder):
        with fsspec.open(f"memory://place/{name}", "wb") as file:
            file.write((folder / name).read_bytes())
        assert read(f"memory://place/{name}") == ROWS, name
        assert read(f"{address}/{name}") == ROWS, name
    assert read(f"{address}/a.jsonl?download=true") == ROWS
    result = files(Remote("memory://place/*.jsonl*"), WHERE)
    assert [place.name for place in result] == ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst"]


def test_what_is_wrong_with_a_url_is_said(served: tuple[Path, str]) -> None:
    folder, address = served
    for name in write(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-40])
        try:
            rows = read(f"{address}/{name}")
        except UserError as error:
            rows = list(error.problems)
        problem = next(row for row in rows if isinstance(row, Problem))
        assert f"{address}/{name}" in problem.where + problem.value, name
    with pytest.raises(UserError, match="cannot be read"):
        read(f"{address}/nothing.jsonl")
    with pytest.raises(UserError, match="no file matches"):
        read("memory://nowhere/*.jsonl")
    with pytest.raises(UserError, match="no place of the kind nonsense://"):
        read("nonsense://a.jsonl")


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UserError, match="pip install s3fs"):
        read("s3://bucket/a.jsonl")


def test_a_recipe_keeps_a_url_as_it_is(tmp_path: Path) -> None:
    url = "hf://datasets/owner/name/*.parquet"
    rows = f"{{kind: parquet, path: '{url}', text: text}}"
    recipe = load("demo-language", [f"data.stream.0.rows={rows}"], schemas=SCHEMAS)
    assert recipe.data.stream[0].rows.path == Remote(url)
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert url in (tmp_path / "again.yaml").read_text()
    assert load(tmp_path / "again.yaml", schemas=SCHEMAS).data.stream[0].rows.path == Remote(url)
    assert under(Path("/root"), Remote(url)) == Remote(url)
    assert not is_url("C:/a.jsonl") and not is_url("a://b"), "a drive's letter is no scheme"


def test_ranges_in_braces_are_the_names_that_they_stand_for() -> None:
    assert list(_spelled("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(_spelled("{a,b}/{0..1}.tar")) == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]


def test_braces_name_files_of_several_endings(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "c.pdf"):
        (tmp_path / name).touch()
    result = files(tmp_path / "*.{md,txt}", WHERE)
    assert [place.name for place in result] == ["b.md", "a.txt"]
    with pytest.raises(UserError, match="no file matches"):
        files(tmp_path / "*.{md,csv}", WHERE)
    (tmp_path / "{a,b}.txt").touch()
    assert files(tmp_path / "{a,b}.txt", WHERE) == [tmp_path / "{a,b}.txt"]


def test_patterns_leave_hidden_files_out_as_a_shell_does(tmp_path: Path) -> None:
    for name in ("a.jsonl", "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "b/.c/d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        with fsspec.open(f"memory://hidden/{name}", "wb") as file:
            file.write(b"{}")

    def result(pattern: str) -> list[str]:
        url = files(Remote(f"memory://hidden/{pattern}"), WHERE)
        paths = [str(place)[len(str(tmp_path)) + 1 :] for place in files(tmp_path / pattern, WHERE)]
        assert [str(place).partition("hidden/")[2] for place in url] == paths
        return paths

    assert result("*.jsonl") == result("**/*.jsonl") == ["a.jsonl"]
    assert result(".*.jsonl") == ["._a.jsonl"]
    assert result(".ipynb*/*") == [".ipynb_checkpoints/a-checkpoint.jsonl"]
    assert result("b/.c/*") == ["b/.c/d.jsonl"]
    hidden = tmp_path / "b" / ".c"  # a folder that is named is no match
    assert files(hidden / "*.jsonl", WHERE) == [hidden / "d.jsonl"]
