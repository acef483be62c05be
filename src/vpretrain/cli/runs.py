"""Commands that train (a run, a comparison, the demo), and the report on their results."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vpretrain.cli import shell
from vpretrain.cli.shell import AcceptChanges, Json, Out, Overrides, RecipeName, say
from vpretrain.config.recipe import Measure, Recipe, packaged
from vpretrain.system.errors import user_error

app = typer.Typer()


@app.command(short_help="One run of a recipe; the same command resumes it.")
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    accept_changes: AcceptChanges = False,
    as_json: Json = False,
) -> None:
    """One run: metrics, the model folder, and a table that opens with step 0. The same command
    again goes on with it."""
    from vpretrain.cli.tables import run_table
    from vpretrain.run.launch import train_one
    from vpretrain.run.modalities import MODALITIES
    from vpretrain.system import distributed

    console = shell.console_for_people(as_json)
    console.quiet = not distributed.is_main_process()
    resolved = shell.resolved_recipe(recipe, overrides)
    name = f"{shell.stem(recipe)}-{resolved.arm}-{resolved.seed}"
    folder = shell.results_folder(out or Path("runs") / name, "a run")
    unit = MODALITIES[resolved.modality]().unit
    with shell.ShownSteps(console, unit) as shown:
        result = train_one(
            resolved,
            folder,
            shown,
            accept_changes=accept_changes,
            notify=lambda line: say(console, f"{folder}: {line}"),
        )
    if not distributed.is_main_process():
        return
    console.print(run_table(result))
    shell.say_changes(console, result)
    say(console, f"run folder: {folder}")
    shell.emit(result, as_json)
    write_page([folder], folder / "report.html", console)


@app.command(short_help="Does steering help? Runs side by side, over seeds.")
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
    accept_changes: AcceptChanges = False,
    as_json: Json = False,
) -> None:
    """Arms side by side, from the same checkpoint on the same stream, paired over seeds."""
    resolved = shell.resolved_recipe(recipe, overrides)
    if require_interval and seeds < 2:
        message = (
            "one seed gives no interval over seeds, and --require-interval asks for one; "
            "give more seeds"
        )
        raise user_error("--seeds", message, value=seeds, accepted="2 or more")
    chosen = _default_arms(resolved) if arms is None else shell.names(arms)
    resolved = _with_budget(resolved, match, budget)
    folder = out or Path("runs") / f"compare-{shell.stem(recipe)}"
    _compare(resolved, chosen, seeds, match, folder, as_json, jobs, accept_changes)


@app.command(short_help="Plain, steered and control runs on built-in data.")
def demo(
    modality: Annotated[
        str,
        typer.Argument(
            help="language, language-minority (fewer wrong problems), vision or vision-weights."
        ),
    ] = "language",
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 3,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Plain, steered and control training on problems (or pictures) that come with the package,
    compared on held-out ones; some minutes on a CPU."""
    demos = [name.removeprefix("demo-") for name in packaged() if name.startswith("demo-")]
    if modality not in demos:
        message = "there is no demo of this"
        raise user_error("demo", message, value=modality, accepted=", ".join(demos))
    resolved = shell.resolved_recipe(f"demo-{modality}", None)
    resolved = _with_budget(resolved, "steps", None)
    folder = out or Path("runs") / f"demo-{modality}"
    _compare(resolved, _default_arms(resolved), seeds, "steps", folder, as_json)


@app.command(short_help="One HTML page of saved results.")
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders that compare or train wrote.")
    ],
    out: Annotated[
        Path | None,
        shell.out_option("The HTML file; default report.html in DIR, or beside several of them."),
    ] = None,
    as_json: Json = False,
) -> None:
    """One HTML page of saved results, that opens from disk, and its plots as files in plots/ beside
    it."""
    page = write_page(folders, out or _report_place(folders), shell.console_for_people(as_json))
    shell.emit({"page": str(page)}, as_json)


def _report_place(folders: list[Path]) -> Path:
    """Returns the report's path: in the folder itself, or next to several.

    So the folders' own pages are not overwritten.
    """
    first, *others = folders
    if not others:
        return first / "report.html"
    names = [folder.resolve().name for folder in folders]
    more = [*names[:2], f"{len(names) - 2}-more"] if len(names) > 3 else names
    return first.resolve().parent / f"report-{'-'.join(more)}.html"


def _default_arms(resolved: Recipe) -> list[str]:
    """Returns the baseline, the recipe's arm, and the rest of the modality's demo."""
    from vpretrain.run.modalities import MODALITIES

    baseline, *rest = MODALITIES[resolved.modality]().demo
    return list(dict.fromkeys([baseline, resolved.arm, *rest]))


def _with_budget(resolved: Recipe, match: Measure, budget: float | None) -> Recipe:
    """Returns the recipe with one limit: the flag's, or its own."""
    from vpretrain.studies.compare import with_budget

    accepted = "a number above 0" if match == "seconds" else "a whole number above 0"
    amount = budget if budget is not None else getattr(resolved.budget, match)
    if amount is None:
        own = ", ".join(name for name, limit in resolved.budget if limit is not None)
        message = f"the recipe has no budget.{match} to match by (but {own}): say how much"
        raise user_error("--budget", message, accepted=accepted)
    if not math.isfinite(amount) or amount <= 0 or (match != "seconds" and amount % 1):
        message = f"a run cannot use up so many {match}"
        raise user_error("--budget", message, value=amount, accepted=accepted)
    others = [name for name, limit in resolved.budget if limit is not None and name != match]
    if others:
        line = f"budget.{' and budget.'.join(others)}: left out, since arms are matched by {match}"
        say(shell.console_for_people(True), line)
    return with_budget(resolved, match, amount)


def _compare(
    resolved: Recipe,
    arms: list[str],
    seeds: int,
    match: Measure,
    out: Path,
    as_json: bool,
    jobs: int | None = None,
    accept_changes: bool = False,
) -> None:
    import torch

    from vpretrain.cli.tables import comparison_table, verdicts
    from vpretrain.report import first_sentence
    from vpretrain.report.formatting import many
    from vpretrain.run.folder import PICTURES
    from vpretrain.run.modalities import MODALITIES
    from vpretrain.studies import compare as comparison
    from vpretrain.system import distributed

    if distributed.launched():
        message = (
            "arms run one by one in this process, or with --jobs; only `vpretrain train` is "
            "for several processes"
        )
        raise user_error("torchrun", message, accepted="this command without torchrun")
    shell.results_folder(out, "a comparison")
    comparison.check_arms(resolved, arms)
    console = shell.console_for_people(as_json)
    cores = os.cpu_count() or 1
    one_by_one = match == "seconds" or torch.cuda.is_available()
    jobs = jobs or (1 if one_by_one else max(1, cores // (resolved.threads or cores)))
    times = f"{many(len(arms), 'arm')} x {many(seeds, 'seed')}"
    say(console, f"{times}, {getattr(resolved.budget, match):g} {match} a run, {jobs} at a time:")
    described = MODALITIES[resolved.modality]().arms
    for arm in arms:
        say(console, f"  {arm}: {described[arm].description}")
    with shell.ShownProgress(console) as progress:
        table = comparison.compare(
            resolved,
            arms=arms,
            seeds=seeds,
            match=match,
            out=out,
            jobs=jobs,
            accept_changes=accept_changes,
            progress=progress,
        )
    console.print(comparison_table(table, console.width))
    for line in verdicts(table):
        say(console, line)
    for picture in sorted((out / PICTURES).glob("*.png")):
        say(console, f"picture: {picture}")
    shell.say_changes(console, table)
    say(console, f"results: {out / 'compare.json'}")
    shell.emit(table, as_json)
    write_page([out], out / "report.html", console)
    if sentence := first_sentence(out):
        say(console, sentence)


def write_page(folders: list[Path], out: Path, console: Console) -> Path:
    """Writes the report of these folders, and returns its path."""
    from vpretrain.report import write_report

    page = write_report(folders, out)
    say(console, f"report: {page}")
    return page
