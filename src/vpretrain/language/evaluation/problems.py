"""Reads a benchmark's rows from a local JSONL or parquet file, or from the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

from vpretrain.config.problems import nearest
from vpretrain.language.data.raw_rows import lines
from vpretrain.language.evaluation.benchmarks import BENCHMARKS, Benchmark, Item, own
from vpretrain.language.evaluation.wording import PLAIN, Wording
from vpretrain.system.errors import Problem, UserError, brief, user_error
from vpretrain.system.tables import parsed

ENDINGS = (".jsonl", ".parquet")


def read(task: Benchmark, root: Path | None, limit: int | None) -> list[Item]:
    """All problems of a packaged benchmark; see :func:`parts`."""
    return [item for items in parts(task, root, limit).values() for item in items]


def parts(task: Benchmark, root: Path | None, limit: int | None) -> dict[str, list[Item]]:
    """The problems of a packaged benchmark, by their name in the results.

    Args:
        task: one of :data:`BENCHMARKS`.
        root: the data folder (``~`` is expanded); None reads the hub.
        limit: maximum number of problems of each part, from the start; None takes all.

    Returns:
        One entry under the task's name or, if configurations and splits are reported separately,
        one entry each: ``omega/CONFIGURATION/SPLIT``.

    Raises:
        UserError: there is no such file, it cannot be read, or a row does not fit the benchmark.
    """
    if root is None:
        tables = _from_hub(task)
        return {name: _items(task, islice(rows, limit), name) for name, rows in tables.items()}
    stems = [root.expanduser() / stem for stem in task.files]
    files = [stem.with_name(f"{stem.name}{ending}") for stem in stems for ending in ENDINGS]
    if path := next((path for path in files if path.is_file()), None):
        return {task.name: read_file(task, path, limit)}
    if folders := _folders(task, root.expanduser()):
        return {
            name: _items(task, islice(chain(*map(_rows, paths)), limit), name)
            for name, paths in folders.items()
        }
    raise user_error(
        "--data-root",
        f"there is no file of {task.name}; looked for {', '.join(map(str, files))}",
        value=str(root),
        accepted=_shape(task),
    )


def _folders(task: Benchmark, root: Path) -> dict[str, list[Path]]:
    """The files of a benchmark's parts, if they are in folders ``TASK/CONFIGURATION/SPLIT*``, as on
    the hub."""
    parts: dict[str, list[Path]] = {}
    if task.hub is None or not task.hub.each_configuration:
        return parts
    for path in sorted((root / task.name).glob("*/*")):
        split = next((each for each in task.hub.splits if path.name.startswith(each)), None)
        if split is not None and path.suffix in ENDINGS:
            parts.setdefault(f"{task.name}/{path.parent.name}/{split}", []).append(path)
    return parts


def read_file(task: Benchmark, path: Path, limit: int | None) -> list[Item]:
    """The problems in one file; raises like :func:`read`."""
    if not path.is_file():
        message = (
            "this is a folder; name a file in it" if path.is_dir() else "there is no such file"
        )
        raise user_error("--tasks", message, value=str(path), accepted=_shape(task))
    return _items(task, islice(_rows(path), limit), str(path))


def chosen(
    tasks: str,
    *,
    root: Path | None,
    limit: int | None,
    prompt: str,
    solution: str,
    answer: str | None,
    wording: Wording = PLAIN,
) -> dict[str, tuple[Benchmark, list[Item]]]:
    """The benchmarks and files named by ``--tasks``, with their problems, by name in the results.

    Args:
        tasks: names of benchmarks and paths of files, separated by commas.
        root: see :func:`parts`.
        limit: see :func:`parts`.
        prompt: column of the prompt in files.
        solution: column of the solution in files.
        answer: see :func:`vpretrain.language.evaluation.benchmarks.own`.
        wording: how the rows of files become prompts; see
            :func:`vpretrain.language.evaluation.benchmarks.own`.

    Raises:
        UserError: a name is unknown or repeated, or as in :func:`parts`.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    accepted = f"{', '.join(BENCHMARKS)}, or the path of a {' or '.join(ENDINGS)} file"
    if not names or len(set(names)) < len(names):
        raise user_error(
            "--tasks", "name each task once, with commas between", value=tasks, accepted=accepted
        )
    tasks_by_name: dict[str, tuple[Benchmark, list[Item]]] = {}
    for name in names:
        if name in BENCHMARKS:
            task = BENCHMARKS[name]
            tasks_by_name |= {
                part: (task, items) for part, items in parts(task, root, limit).items()
            }
        elif Path(name).suffix in ENDINGS or Path(name).exists():
            task = own(name, prompt=prompt, solution=solution, answer=answer, wording=wording)
            tasks_by_name[name] = task, read_file(task, Path(name).expanduser(), limit)
        else:
            message = f"there is no such task{nearest(name, BENCHMARKS)}"
            raise user_error("--tasks", message, value=name, accepted=accepted)
    return tasks_by_name


def _items(
    task: Benchmark, rows: Iterator[tuple[str, Mapping[str, Any]]], where: str
) -> list[Item]:
    items = []
    for origin, row in rows:
        if missing := [column for column in task.columns if column not in row]:
            present = ", ".join(map(repr, row)) or "none"
            flags = (
                "; name yours with --prompt-column and --solution-column (a run's template, format "
                "or messages name their own)"
                if task.trained
                else ""
            )
            message = (
                f"this row has no column {', '.join(map(repr, missing))}{flags} (columns "
                f"here: {present})"
            )
            raise user_error(origin, message, accepted=_shape(task))
        try:
            items.append(task.item(row, origin))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise user_error(
                origin, f"this row is not one of {task.name}: {error}", accepted=_shape(task)
            ) from error
    if not items:
        raise user_error(
            where, "the file holds no rows: fill it, or name another", accepted=_shape(task)
        )
    return items


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in lines(path):
        row = parsed(line, origin := f"{path}:{number}")
        if isinstance(row, Problem):
            raise UserError(row)
        yield origin, row


def _from_hub(task: Benchmark) -> dict[str, Iterator[tuple[str, Mapping[str, Any]]]]:
    """The rows of each part on the hub, by the part's name in the results."""
    hub = task.hub
    if hub is None:
        raise user_error(
            "--tasks",
            f"{task.name} has no single place on the hub; give a folder by --data-root",
            value=task.name,
            accepted=_shape(task),
        )
    from datasets import get_dataset_config_names, load_dataset

    parts: dict[str, Iterator[tuple[str, Mapping[str, Any]]]] = {}
    try:
        names = get_dataset_config_names(hub.path) if hub.each_configuration else [hub.name]
        for name, split in product(names, hub.splits):
            part = f"/{name}/{split}" if hub.each_configuration else ""
            rows = load_dataset(hub.path, name, split=split)
            parts[task.name + part] = _numbered(rows, hub.path + part)
    except Exception as error:  # network, missing data set, broken cache: no common base
        message = f"{task.name} could not be read from the hub ({brief(error)}); give a folder by "
        message += "--data-root"
        raise user_error("--tasks", message, value=hub.path, accepted=_shape(task)) from error
    return parts


def _numbered(rows: Iterable[Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((f"{where}:{number}", row) for number, row in enumerate(rows, 1))


def _shape(task: Benchmark) -> str:
    """A description of the file that a task needs."""
    columns = ", ".join(f"{column!r} ({meaning})" for column, meaning in task.columns.items())
    names = (
        f" named {task.files[-1]}.jsonl (or {task.files[0]}.jsonl, or .parquet)"
        if task.files
        else ""
    )
    return f"a file{names} with the columns {columns}"
