"""Commands that train: one run, arms side by side, and the demo; and the page of what they
wrote."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from vpretrain.cli.shell import (
    Json,
    Out,
    Overrides,
    RecipeName,
    ShownProgress,
    console_for_people,
    emit,
    progress_bar,
    resolved_recipe,
    results_folder,
    stem,
)
from vpretrain.config.recipe import Measure, Recipe, packaged
from vpretrain.system.errors import user_error

app = typer.Typer()


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Go on with a run although its recipe was changed."),
    ] = False,
    as_json: Json = False,
) -> None:
    """One run: metrics, the model folder, and a table that opens with step 0. The same command
    again goes on with it."""
    from vpretrain.run.launch import train_one
    from vpretrain.system import distributed

    console = console_for_people(as_json)
    console.quiet = not distributed.is_main_process()
    resolved = resolved_recipe(recipe, overrides)
    folder = results_folder(out or Path("runs") / f"{stem(recipe)}-{resolved.arm}-{resolved.seed}")
    with progress_bar(console) as bar:
        task = bar.add_task("reading data", total=1.0)

        said = 0.0

        def each_step(record: dict[str, Any], fraction: float) -> None:
            nonlocal said
            if "skipped" in record:
                console.print(
                    escape(f"after step {record['step']} a batch was left out: {record['skipped']}")
                )
                return
            line = (
                f"step {record['step']}  loss {record['loss']:.3f}  "
                f"{record['tokens_per_second']:.0f} tokens/s"
            )
            bar.update(task, completed=fraction, description=line)
            if not console.is_terminal and fraction >= said:
                console.print(f"{fraction:4.0%}  {line}", highlight=False)
                said = fraction + 0.1

        def notify(line: str) -> None:
            console.print(escape(f"{folder}: {line}"), highlight=False, soft_wrap=True)

        result = train_one(
            resolved, folder, each_step, accept_changes=accept_changes, notify=notify
        )
    if not distributed.is_main_process():
        return
    from vpretrain.cli.tables import run_table

    console.print(run_table(result))
    console.print(escape(f"run folder: {folder}"), highlight=False, soft_wrap=True)
    emit(result, as_json)
    write_page([folder], folder / "report.html", console)


@app.command()
def compare(
    recipe: RecipeName,
    overrides: Overrides = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated; the first is the baseline. Default: baseline, the recipe's arm, "
            "the demo's."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 3,
    match: Annotated[Measure, typer.Option(help="What arms have the same of.")] = "steps",
    budget: Annotated[
        float | None, typer.Option(help="How much of it; default: the recipe's.")
    ] = None,
    out: Out = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at a time; default: cores / threads, 1 with --match seconds or on an "
            "accelerator.",
        ),
    ] = None,
    require_interval: Annotated[
        bool, typer.Option(help="Refuse what can give no interval (a single seed).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Arms side by side, from the same checkpoint on the same stream, paired over seeds."""
    resolved = resolved_recipe(recipe, overrides)
    if require_interval and seeds < 2:
        message = (
            "one seed gives no interval over seeds, and --require-interval asks for one; "
            "give more seeds"
        )
        raise user_error("--seeds", message, value=seeds, accepted="2 or more")
    _compare(
        resolved,
        _default_arms(resolved)
        if arms is None
        else [name for arm in arms.split(",") if (name := arm.strip())],
        seeds,
        match,
        budget,
        out or Path("runs") / f"compare-{stem(recipe)}",
        jobs,
        as_json,
    )


@app.command()
def demo(
    modality: Annotated[
        str, typer.Argument(help="language, language-minority or vision.")
    ] = "language",
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 3,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The main job on the embedded default: step 0, unsteered, steered, and a control, on held-out
    data."""
    if f"demo-{modality}" not in packaged():
        accepted = ", ".join(
            name.removeprefix("demo-") for name in packaged() if name.startswith("demo-")
        )
        raise user_error("demo", "there is no demo of this", value=modality, accepted=accepted)
    resolved = resolved_recipe(f"demo-{modality}", None)
    arms = _default_arms(resolved)
    _compare(
        resolved,
        arms,
        seeds,
        "steps",
        None,
        out or Path("runs") / f"demo-{modality}",
        None,
        as_json,
    )


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders that compare or train wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The HTML file; default report.html in DIR, or beside several of them."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """One HTML page of saved results, that opens from disk, and its plots as files in plots/ beside
    it."""
    page = write_page(folders, out or _report_place(folders), console_for_people(as_json))
    emit({"page": str(page)}, as_json)


def _report_place(folders: list[Path]) -> Path:
    """In the folder itself, or beside several: none of them loses the page that it has."""
    first, *others = folders
    if not others:
        return first / "report.html"
    names = [folder.resolve().name for folder in folders]
    more = [*names[:2], f"{len(names) - 2}-more"] if len(names) > 3 else names
    return first.resolve().parent / f"report-{'-'.join(more)}.html"


def _default_arms(resolved: Recipe) -> list[str]:
    """The baseline, what the recipe steers with, and the rest of the modality's demo."""
    from vpretrain.run.modalities import MODALITIES

    baseline, *rest = MODALITIES[resolved.modality]().demo
    return list(dict.fromkeys([baseline, resolved.arm, *rest]))


def _at_a_time(resolved: Recipe) -> int:
    cores = os.cpu_count() or 1
    return max(1, cores // (resolved.threads or cores))


def _compare(
    resolved: Recipe,
    arms: list[str],
    seeds: int,
    match: Measure,
    budget: float | None,
    out: Path,
    jobs: int | None,
    as_json: bool,
) -> None:
    import torch

    from vpretrain.cli.tables import comparison_table, verdicts
    from vpretrain.studies import compare as comparison
    from vpretrain.system import distributed

    if distributed.launched():
        message = (
            "arms run one by one in this process, or with --jobs; only `vpretrain train` is "
            "for several processes"
        )
        raise user_error("torchrun", message, accepted="this command without torchrun")
    if not arms:
        raise user_error(
            "--arms",
            "a comparison needs arms",
            accepted="names with commas between them; the first is the baseline",
        )
    accepted = "a number above 0" if match == "seconds" else "a whole number above 0"
    amount = budget if budget is not None else getattr(resolved.budget, match)
    if amount is None:
        raise user_error(
            "--budget",
            f"the recipe has no budget.{match} to match by; say how much",
            accepted=accepted,
        )
    if not math.isfinite(amount) or amount <= 0 or (match != "seconds" and amount % 1):
        raise user_error(
            "--budget", f"a run cannot use up so many {match}", value=amount, accepted=accepted
        )
    results_folder(out)
    resolved = comparison.with_budget(resolved, match, amount)
    console = console_for_people(as_json)
    jobs = jobs or (1 if match == "seconds" or torch.cuda.is_available() else _at_a_time(resolved))
    console.print(
        f"{len(arms)} arms ({', '.join(arms)}) x {seeds} seeds, {amount:g} {match} a run, "
        f"{jobs} at a time",
        highlight=False,
    )
    with ShownProgress(console) as progress:
        table = comparison.compare(
            resolved, arms=arms, seeds=seeds, match=match, out=out, jobs=jobs, progress=progress
        )
    console.print(comparison_table(table, console.width))
    for line in verdicts(table):
        console.print(line, highlight=False)
    for picture in sorted((out / comparison.PICTURES).glob("*.png")):
        console.print(escape(f"picture: {picture}"), highlight=False, soft_wrap=True)
    console.print(escape(f"results: {out / 'compare.json'}"), highlight=False, soft_wrap=True)
    emit(table, as_json)
    write_page([out], out / "report.html", console)


def write_page(folders: list[Path], out: Path, console: Console) -> Path:
    """The report of those folders, and where it is."""
    from vpretrain.report import write_report

    page = write_report(folders, out)
    console.print(escape(f"report: {page}"), highlight=False, soft_wrap=True)
    return page
