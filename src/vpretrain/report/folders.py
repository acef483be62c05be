"""Reads saved results: comparison folders, unfinished comparisons, and run folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vpretrain.config.arms import Role
from vpretrain.report.files import (
    EITHER,
    Comparison,
    Entry,
    Measured,
    Paired,
    RunFile,
    Step0File,
    Summary,
    read_json,
    read_records,
    read_yaml,
)
from vpretrain.studies.statistics import summary
from vpretrain.system.errors import user_error

Kind = Literal["comparison", "unfinished", "runs"]


@dataclass(frozen=True)
class Run:
    """One run with its records.

    Args:
        entry: what it used, and its final scores.
        records: one per step, ``{step, tokens, seconds, ...}``, by rising step; empty if none were
            kept.
        step0: scores before the first step.
        finished: whether it ran to its end.
    """

    entry: Entry
    records: list[dict[str, float]]
    step0: dict[str, float]
    finished: bool = True

    @property
    def arm(self) -> str:
        """The arm of the run."""
        return self.entry.arm


@dataclass
class Section:
    """One part of the page: a comparison, or several run folders together.

    Args:
        kind: ``unfinished`` is a comparison without ``compare.json``.
        folders: where it was read from.
        recipe: every value, and ``recipe_text`` as it was written.
        modality: of the recipe.
        metrics: names in order, the leading one first, with whether higher is better (None: not
            recorded).
        runs: the first is of the baseline.
        step0: the untouched checkpoint's scores.
        summaries, paired: as in compare.json; empty if there is no verdict.
        match, budget: the measure in which arms are equal, and its amount; None for run folders.
        unit: what the stream is counted in, in the plural.
        environment: versions, hardware, commit, command.
        notes: remarks on gaps in the data.
        descriptions: one sentence per arm, if the results have them.
        roles: of the arms in a comparison.
        control_pairs: for the steered arm, the controls against it.
    """

    kind: Kind
    folders: list[Path]
    recipe: dict[str, Any]
    recipe_text: str
    modality: str
    metrics: dict[str, bool | None]
    runs: list[Run]
    step0: dict[str, Measured] = field(default_factory=dict)
    summaries: dict[str, dict[str, Summary]] = field(default_factory=dict)
    paired: dict[str, dict[str, Paired]] = field(default_factory=dict)
    match: str | None = None
    budget: float | None = None
    unit: str = EITHER
    environment: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    descriptions: dict[str, str] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    control_pairs: dict[str, dict[str, dict[str, Paired]]] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        """In the order of the runs; the first is the baseline."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """All seeds, ascending."""
        return sorted({run.entry.seed for run in self.runs})

    @property
    def lead(self) -> str | None:
        """The metric that the verdict is about: the first."""
        return next(iter(self.metrics), None)

    def of(self, arm: str) -> list[Run]:
        """Returns the arm's runs."""
        return [run for run in self.runs if run.arm == arm]


def read(folders: Sequence[Path]) -> list[Section]:
    """Returns one section for each comparison, and one for all run folders together.

    Raises:
        UserError: a folder holds no results, a file in it cannot be read, or two folders are of
            different recipes.
    """
    if not folders:
        raise user_error(
            "report", "name at least one folder", accepted="folders that compare or train wrote"
        )
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    every = [_read_one(folder) for folder in distinct]
    for section in every[1:]:
        _same_recipe(every[0], section)
    alone = [section for section in every if section.kind == "runs"]
    sections = [section for section in every if section.kind != "runs"]
    return sections + ([_merged(alone)] if alone else [])


def _read_one(folder: Path) -> Section:
    if not folder.is_dir():
        message = "there is no such folder; name one that compare or train wrote"
        raise user_error(str(folder), message, accepted="a folder")
    recipe_path = folder / "recipe.yaml"
    if (folder / "compare.json").is_file():
        return _comparison(folder, *read_yaml(recipe_path))
    if (folder / "runs").is_dir():
        return _unfinished(folder, *read_yaml(recipe_path))
    if (folder / "metrics.jsonl").is_file() or (folder / "result.json").is_file():
        return _run(folder, *read_yaml(recipe_path))
    message = "this folder holds neither a comparison nor a run; name the folder given to --out"
    accepted = "a folder with compare.json, runs/, or metrics.jsonl"
    raise user_error(str(folder), message, accepted=accepted)


def _comparison(folder: Path, recipe: dict[str, Any], text: str) -> Section:
    fix = (
        "run the same `vpretrain compare` again: finished runs are kept, and this file is "
        "written anew"
    )
    table = read_json(folder / "compare.json", Comparison, fix)
    notes: list[str] = []
    step0 = {name: score.value for name, score in table.step0.items()}
    runs = [Run(entry, _logged(folder, entry, notes), step0) for entry in table.runs]
    return Section(
        "comparison",
        [folder],
        recipe,
        text,
        table.modality,
        {name: meaning.higher_is_better for name, meaning in table.metrics.items()},
        runs,
        table.step0,
        table.summary,
        table.paired,
        table.match,
        table.budget,
        table.unit,
        table.environment,
        notes,
        table.arms,
        table.roles,
        table.control_pairs,
    )


def _unfinished(folder: Path, recipe: dict[str, Any], text: str) -> Section:
    fix = (
        "remove this file and run the same `vpretrain compare` again: the other finished runs "
        "are kept"
    )
    again = "run the same `vpretrain compare` again: it goes on where it stopped"
    names = sorted(
        path for path in (folder / "runs").glob("*.json") if not path.name.endswith(".items.json")
    )
    entries = [read_json(path, Entry, fix) for path in names if path.name != "step0.json"]
    if not entries:
        raise user_error(str(folder), f"no run of this comparison has ended yet; {again}")
    baseline = recipe.get("arm")
    entries.sort(key=lambda entry: (entry.arm != baseline, entry.arm, entry.seed))
    notes = [
        f"{len(entries)} runs have ended and compare.json is not written yet; to finish, {again}."
    ]
    step0_path = folder / "runs" / "step0.json"
    step0 = read_json(step0_path, Step0File, fix) if step0_path.is_file() else None
    values = {name: score.value for name, score in step0.step0.items()} if step0 else {}
    metrics: dict[str, bool | None] = dict.fromkeys(entries[0].final)
    if step0:
        metrics = {name: meaning.higher_is_better for name, meaning in step0.metrics.items()}
    runs = [Run(entry, _logged(folder, entry, notes), values) for entry in entries]
    budget = recipe.get("budget") or {}
    measures = (name for name in ("steps", "tokens", "flops", "seconds") if budget.get(name))
    match = next(measures, None)
    section = Section(
        "unfinished",
        [folder],
        recipe,
        text,
        str(recipe.get("modality")),
        metrics,
        runs,
        step0.step0 if step0 else {},
        match=match,
        budget=budget.get(match),
        unit=step0.unit if step0 else EITHER,
        notes=notes,
    )
    section.summaries = _summaries(section)
    return section


def _run(folder: Path, recipe: dict[str, Any], text: str) -> Section:
    notes: list[str] = []
    path, result_path = folder / "metrics.jsonl", folder / "result.json"
    records = read_records(path, notes) if path.is_file() else []
    fix = "train again, or remove this file to see the metrics alone"
    result = read_json(result_path, RunFile, fix) if result_path.is_file() else None
    seed = recipe.get("seed")
    if not isinstance(seed, int):
        message = "the recipe has no seed; was it edited?"
        raise user_error(f"{folder / 'recipe.yaml'}", message, accepted="a number")
    if result is None and not records:
        message = (
            "this run has not taken a step yet: wait for its first or, if it was stopped, give the "
            "same train command again"
        )
        raise user_error(str(path), message, accepted="one line a step")
    if result is None:
        notes.append(
            f"{folder} has no result.json: the run goes on or was stopped; what it used is as "
            "of its last line."
        )
        last = records[-1]
        result = RunFile(
            arm=str(recipe.get("arm")),
            steps=round(last["step"]),
            tokens_or_images=round(last["tokens"]),
            seconds=last["seconds"],
            step0={},
            final={},
        )
    entry = Entry(seed=seed, **result.model_dump(include=set(Entry.model_fields)))
    # Metrics of evaluations during the run are named with a split, as in ``test/nll``.
    logged = dict.fromkeys(name for record in records for name in record if "/" in name)
    environment_path = folder / "environment.json"
    environment = read_json(environment_path, dict, fix) if environment_path.is_file() else {}
    return Section(
        "runs",
        [folder],
        recipe,
        text,
        str(recipe.get("modality")),
        dict.fromkeys(entry.final or logged),
        [Run(entry, records, result.step0, result_path.is_file())],
        {name: Measured(value=value) for name, value in result.step0.items()},
        unit=result.unit,
        environment=environment,
        notes=notes,
    )


def _merged(sections: list[Section]) -> Section:
    """Merges run folders of one recipe; recipe and environment are the first one's."""
    first = sections[0]
    places: dict[tuple[str, int], Path] = {}
    for section in sections:
        key = (section.runs[0].arm, section.runs[0].entry.seed)
        if key in places:
            both = f"{places[key]} and {section.folders[0]} are both runs"
            raise user_error("report", f"{both} of arm {key[0]}, seed {key[1]}; name one")
        places[key] = section.folders[0]
    if len({str(section.recipe.get("budget")) for section in sections}) > 1:
        first.notes.append("These runs had different budgets: what they used is in the table.")
    for section in sections[1:]:
        first.folders += section.folders
        first.runs += section.runs
        first.notes += section.notes
        first.metrics = {**first.metrics, **section.metrics}
        first.step0 = {**section.step0, **first.step0}
    # One recipe has one checkpoint: an unfinished run started from the same scores as the others.
    start = {name: score.value for name, score in first.step0.items()}
    first.runs = [replace(run, step0=run.step0 or start) for run in first.runs]
    first.summaries = _summaries(first)
    return first


def _summaries(section: Section) -> dict[str, dict[str, Summary]]:
    summaries: dict[str, dict[str, Summary]] = {}
    for arm in section.arms:
        finals = [run.entry.final for run in section.of(arm)]
        for metric in section.metrics:
            if values := [final[metric] for final in finals if metric in final]:
                summaries.setdefault(arm, {})[metric] = Summary(**summary(values))
    return summaries


def _logged(folder: Path, entry: Entry, notes: list[str]) -> list[dict[str, float]]:
    name = f"{entry.arm}-{entry.seed}.metrics.jsonl"
    path = folder / "runs" / name
    # An arm's name is data: it must not lead out of the folder.
    if Path(name).name != name or "\0" in name or not path.is_file():
        notes.append(
            f"There are no metrics of {entry.arm}, seed {entry.seed}: it is in the tables, "
            "not in the curves."
        )
        return []
    return read_records(path, notes)


def _same_recipe(first: Section, other: Section) -> None:
    """Checks that the folders of a report have the same recipe, apart from arm (and so designer),
    seed and budget."""
    recipes, left_out = (first.recipe, other.recipe), {"arm", "seed", "budget"}
    if first.recipe.get("arm") != other.recipe.get("arm"):
        left_out |= {"designer", "designers"}  # naming an arm exchanges them
    here, there = ({k: v for k, v in each.items() if k not in left_out} for each in recipes)
    differs = next(_differences(here, there), None)
    if differs is None:
        return
    key, mine, others = differs
    raise user_error(
        "report",
        f"{first.folders[0]} and {other.folders[0]} are of different recipes; make a report "
        "of each",
        value=f"{key}: {mine} in the first, {others} in the other",
        accepted="folders whose recipes differ in arm, seed and budget alone",
    )


def _differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(a.get(name, "nothing"), b.get(name, "nothing"), inner)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _differences(left, right, f"{key}.{index}")
    elif a != b:
        texts = [str(value) for value in (a, b)]
        here, there = (text if len(text) <= 80 else text[:79] + "…" for text in texts)
        yield key, here, there
