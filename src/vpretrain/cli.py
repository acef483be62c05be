"""The command line: parses, calls, prints. With ``--json`` standard output holds one JSON document and nothing else."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import warnings
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vpretrain.errors import Fault, UserError, user_error
from vpretrain.recipe import Measure, Recipe, listing, load, packaged

app = typer.Typer(
    add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Continued pretraining that a small set of verified examples steers.",
)  # fmt: skip

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML path or a packaged name (see `recipes`).")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", help="Override dotted recipe keys.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results; default runs/NAME.")]


@app.command()
def train(recipe: RecipeName, overrides: Overrides = None, out: Out = None, as_json: Json = False) -> None:
    """One run: metrics, the model folder, and a table that opens with step 0."""
    from vpretrain.single import train_one

    console = _people(as_json)
    resolved = _load(recipe, overrides)
    folder = _folder(out or Path("runs") / f"{_stem(recipe)}-{resolved.arm}-{resolved.seed}")
    with _bar(console) as bar:
        task = bar.add_task("reading data", total=1.0)

        said = 0.0

        def each_step(record: dict[str, Any], share: float) -> None:
            nonlocal said
            line = f"step {record['step']}  loss {record['loss']:.3f}  {record['tokens_per_second']:.0f} tokens/s"
            bar.update(task, completed=share, description=line)
            if not console.is_terminal and share >= said:
                console.print(f"{share:4.0%}  {line}", highlight=False)
                said = share + 0.1

        result = train_one(resolved, folder, each_step)
    from vpretrain.tables import run_table

    console.print(run_table(result))
    console.print(escape(f"run folder: {folder}"), highlight=False, soft_wrap=True)
    _emit(result, as_json)
    _report([folder], folder / "report.html", console)


@app.command()
def compare(
    recipe: RecipeName,
    overrides: Overrides = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated; the first is the baseline. Default: baseline, the recipe's arm, the demo's."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 3,
    match: Annotated[Measure, typer.Option(help="What arms have the same of.")] = "steps",
    budget: Annotated[float | None, typer.Option(help="How much of it; default: the recipe's.")] = None,
    out: Out = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; default: cores / threads, 1 with --match seconds.")
    ] = None,
    require_interval: Annotated[bool, typer.Option(help="Refuse what can give no interval (a single seed).")] = False,
    as_json: Json = False,
) -> None:
    """Arms side by side, from the same checkpoint on the same stream, paired over seeds."""
    resolved = _load(recipe, overrides)
    if require_interval and seeds < 2:
        message = "one seed gives no interval over seeds, and --require-interval asks for one; give more seeds"
        raise user_error("--seeds", message, value=seeds, accepted="2 or more")
    _compare(
        resolved,
        _default_arms(resolved) if arms is None else [name for arm in arms.split(",") if (name := arm.strip())],
        seeds,
        match,
        budget,
        out or Path("runs") / f"compare-{_stem(recipe)}",
        jobs,
        as_json,
    )


@app.command()
def demo(
    modality: Annotated[str, typer.Argument(help="language")] = "language",
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 3,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The main job on the embedded default: step 0, unsteered, steered, and a control, on held-out data."""
    if f"demo-{modality}" not in packaged():
        accepted = ", ".join(name.removeprefix("demo-") for name in packaged() if name.startswith("demo-"))
        raise user_error("demo", "there is no demo of this", value=modality, accepted=accepted)
    resolved = _load(f"demo-{modality}", None)
    arms = _default_arms(resolved)
    _compare(resolved, arms, seeds, "steps", None, out or Path("runs") / f"demo-{modality}", None, as_json)


@app.command()
def doctor(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Which estimator works on this model, kernel, dtype and device; how exact it is; what it costs."""
    from vpretrain.doctor import doctor as examine
    from vpretrain.tables import doctor_table

    console = _people(as_json)
    found = examine(_load(recipe, overrides))
    console.print(f"{found['device']}, {found['dtype']}, attention {found['attention']}")
    console.print(doctor_table(found))
    _emit(found, as_json)


@app.command()
def probe(
    recipe: RecipeName,
    overrides: Overrides = None,
    draws: Annotated[int, typer.Option(min=4, help="Fresh batches.")] = 200,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Does a step's value predict what the step does? Predicted against realised drop of the held-out feedback loss."""
    from vpretrain.probe import probe as examine
    from vpretrain.tables import probe_table

    console = _people(as_json)
    resolved = _load(recipe, overrides)
    folder = _folder(out or Path("runs") / f"probe-{_stem(recipe)}")
    with _bar(console) as bar:
        task = bar.add_task("burn-in", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description="draws")

        found = examine(resolved, draws=draws, out=folder, progress=progress)
    console.print(probe_table(found))
    console.print(escape(f"scatter: {folder / 'scatter.png'}"), highlight=False, soft_wrap=True)
    _emit(found, as_json)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that train wrote.")],
    documents: Annotated[int, typer.Option(min=1, help="Documents of the stream to look at.")] = 24,
    out: Annotated[
        Path | None, typer.Option("--out", help="The HTML file; default explain.html in the run folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What each token is worth to the feedback set, and how close the designer comes to the best targets: one page."""
    from vpretrain.explain import explain as examine

    console = _people(as_json)
    found = examine(run, documents=documents, out=out)
    value = found["value"]
    said = "  ".join(f"{task} {value[task]:.4g}" for task in ("onehot", "designer", "closed_form", "bound"))
    console.print(f"value: {said}  (regret {found['regret']:.4g})", highlight=False)
    for source, mean in found["sources"].items():
        console.print(escape(f"source {source}: {mean:+.4g} a token"), highlight=False)
    console.print(escape(f"page: {found['page']}"), highlight=False, soft_wrap=True)
    _emit(found, as_json)


@app.command()
def check(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Reads recipe, data and model, and prints every problem at once; nothing is trained."""
    from vpretrain.check import check as examine

    problems = examine(recipe, overrides or [])
    console = _people(as_json)
    for problem in problems:
        console.print(escape(str(problem)), highlight=False, soft_wrap=True)
    console.print("no problem found" if not problems else f"{len(problems)} problem(s)")
    _emit({"problems": [vars(problem) for problem in problems]}, as_json)
    if problems:
        raise typer.Exit(2)


@app.command()
def prepare(recipe: RecipeName, overrides: Overrides = None, out: Out = None, as_json: Json = False) -> None:
    """Makes the checkpoint that a recipe's `learner.prepare` describes (tokenizer and model, from its stream)."""
    from vpretrain.modalities import MODALITIES

    console = _people(as_json)
    resolved = _load(recipe, overrides)
    folder = MODALITIES[resolved.modality]().prepare(resolved, out and _folder(out))
    console.print(escape(f"learner: {folder}"), highlight=False, soft_wrap=True)
    _emit({"model": str(folder)}, as_json)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that compare or train wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The HTML file; default report.html in the first DIR.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One HTML page of saved results, that opens from disk, and its plots as files in plots/ beside it."""
    page = _report(folders, out or folders[0] / "report.html", _people(as_json))
    _emit({"page": str(page)}, as_json)


@app.command()
def recipes(as_json: Json = False) -> None:
    """Lists the packaged recipes, and those under ./recipes."""
    folder = Path("recipes")
    rows = listing(folder if folder.is_dir() else None)
    console = _people(as_json)
    for row in rows:
        console.print(
            f"[bold]{escape(row['name'])}[/bold]  ({row['modality']})\n    {escape(row['says'])}", highlight=False
        )
    _emit(rows, as_json)


def main() -> None:
    """Entry point: turns errors into exit codes (0 done, 2 bad input, 3 stopped and resumable, 4 fault, 1 a bug)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read by worker processes too
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    try:
        app(standalone_mode=True)
    except SystemExit as ended:
        if ended.code != _INTERRUPTED:
            raise
        _leave("stopped; what was finished is kept", 3)
    except (UserError, Fault) as error:
        _leave(f"[red bold]error[/] {escape(str(error))}", error.exit_code)
    except (OSError, RuntimeError, MemoryError) as error:
        said = _machine_says(error)
        if said is None:
            raise
        _leave(f"[red bold]error[/] {escape(said[0])}", said[1])


_INTERRUPTED = 130  # typer's exit code for Ctrl-C


def _leave(message: str, exit_code: int) -> None:
    Console(stderr=True).print(message, highlight=False, soft_wrap=True)
    sys.exit(exit_code)


def _machine_says(error: Exception) -> tuple[str, int] | None:
    """What to do about a limit of this machine, and the exit code; None for what can only be a bug."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full; make room and run the same command again", Fault.exit_code
        if isinstance(error, PermissionError):
            return f"{error.filename}: no permission to read or write this; name another place", UserError.exit_code
        return None
    if isinstance(error, BrokenExecutor):
        message = "a worker process was killed, most likely because memory ran out"
        return f"{message}; what was finished is kept: run the same command again with --jobs 1", Fault.exit_code
    from vpretrain.directional import EstimatorUnsupported
    from vpretrain.resources import out_of_memory

    if isinstance(error, EstimatorUnsupported):
        return f"value.estimator: {error}", UserError.exit_code
    if out_of_memory(error):
        message = "memory ran out: lower data.batch_size or data.window_tokens, or take a smaller learner"
        return f"{message} (`vpretrain check` estimates what one takes)", Fault.exit_code
    return None


def _default_arms(resolved: Recipe) -> list[str]:
    """The baseline, what the recipe steers with, and the rest of the modality's demo."""
    from vpretrain.modalities import MODALITIES

    baseline, *rest = MODALITIES[resolved.modality]().demo
    return list(dict.fromkeys([baseline, resolved.arm, *rest]))


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
    from vpretrain import compare as comparison
    from vpretrain.tables import comparison_table, verdicts

    if not arms:
        raise user_error(
            "--arms", "a comparison needs arms", accepted="names with commas between them; the first is the baseline"
        )
    accepted = "a number above 0" if match == "seconds" else "a whole number above 0"
    amount = budget if budget is not None else getattr(resolved.budget, match)
    if amount is None:
        raise user_error("--budget", f"the recipe has no budget.{match} to match by; say how much", accepted=accepted)
    if not math.isfinite(amount) or amount <= 0 or (match != "seconds" and amount % 1):
        raise user_error("--budget", f"a run cannot use up so many {match}", value=amount, accepted=accepted)
    _folder(out)
    resolved = comparison.with_budget(resolved, match, amount)
    cores = os.cpu_count() or 1
    jobs = jobs or (1 if match == "seconds" else max(1, cores // (resolved.threads or cores)))
    console = _people(as_json)
    with _bar(console) as bar:
        task = bar.add_task("starting", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)
            if not console.is_terminal:
                console.print(f"{done} of {total}: {what}", highlight=False)

        table = comparison.compare(
            resolved, arms=arms, seeds=seeds, match=match, out=out, jobs=jobs, progress=progress
        )  # fmt: skip
    console.print(comparison_table(table))
    for line in verdicts(table):
        console.print(line, highlight=False)
    console.print(escape(f"results: {out / 'compare.json'}"), highlight=False, soft_wrap=True)
    _emit(table, as_json)
    _report([out], out / "report.html", console)


def _report(folders: list[Path], out: Path, console: Console) -> Path:
    from vpretrain.report import write_report

    page = write_report(folders, out)
    console.print(escape(f"report: {page}"), highlight=False, soft_wrap=True)
    return page


def _load(recipe: str, overrides: list[str] | None) -> Recipe:
    """A recipe; of a run folder the recipe that it ran, with the model that it ended with."""
    from vpretrain.modalities import SCHEMAS

    folder = Path(recipe)
    if not (folder / "recipe.yaml").is_file():
        return load(recipe, overrides or [], schemas=SCHEMAS)
    learner = load(folder / "recipe.yaml", schemas=SCHEMAS).learner
    own = [f"learner.{key}=null" for key in ("config", "prepare") if hasattr(learner, key)]
    if not (folder / "model" / "config.json").is_file():
        raise user_error(
            recipe,
            "this run folder holds no model; the run did not finish",
            value=str(folder / "model"),
            accepted="a recipe, or a folder that `vpretrain train` wrote and finished",
        )
    return load(
        folder / "recipe.yaml", [f"learner.model={folder / 'model'}", *own, *(overrides or [])], schemas=SCHEMAS
    )


def _stem(recipe: str) -> str:
    return Path(recipe).stem


def _people(as_json: bool) -> Console:
    """Where text for people goes: standard error when standard output is for a program."""
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = max(console.width, 140)  # a pipe has no width; tables should not be squeezed into 80
    return console


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def _folder(path: Path) -> Path:
    """The folder for results, refused before any work where it can be none."""
    there = next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
    if not there.is_dir():
        raise user_error(
            "--out", f"{there} is a file; name a folder", value=str(path), accepted="a new or existing folder"
        )
    if not os.access(there, os.W_OK):
        raise user_error("--out", f"no permission to write in {there}; name another folder", value=str(path))
    return path


def _emit(value: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_strict(value), indent=1, default=str))


def _strict(value: Any) -> Any:
    """JSON has no word for what is not finite; null takes its place."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
