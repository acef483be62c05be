"""The command line: parses, calls, prints. With ``--json`` standard output holds one JSON document and nothing else."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vpretrain.errors import Fault, UserError, user_error
from vpretrain.recipe import Recipe, listing, load

app = typer.Typer(
    add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Continued pretraining that a small set of verified examples steers.",
)  # fmt: skip

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML path or a packaged name (see `recipes`).")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", help="Override dotted recipe keys.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results; default runs/NAME.")]

DEMO_ARMS = ("onehot", "field", "closed_form", "random_feedback")
MATCHES = ("steps", "tokens", "seconds")


@app.command()
def train(recipe: RecipeName, overrides: Overrides = None, out: Out = None, as_json: Json = False) -> None:
    """One run: metrics, the model folder, and a table that opens with step 0."""
    from vpretrain.single import train_one

    console = _people(as_json)
    resolved = _load(recipe, overrides)
    folder = out or Path("runs") / f"{_stem(recipe)}-{resolved.arm}-{resolved.seed}"
    with _bar(console) as bar:
        task = bar.add_task("reading data", total=1.0)

        def each_step(record: dict[str, Any], share: float) -> None:
            bar.update(task, completed=share, description=f"step {record['step']}  loss {record['loss']:.3f}")

        result = train_one(resolved, folder, each_step)
    from vpretrain.tables import run_table

    console.print(run_table(result))
    console.print(f"run folder: {folder}")
    _emit(result, as_json)


@app.command()
def compare(
    recipe: RecipeName,
    overrides: Overrides = None,
    arms: Annotated[str, typer.Option(help="Comma-separated; the first is the baseline.")] = ",".join(DEMO_ARMS),
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 3,
    match: Annotated[str, typer.Option(help="What arms have the same of: " + ", ".join(MATCHES))] = "steps",
    budget: Annotated[float | None, typer.Option(help="How much of it; default: the recipe's.")] = None,
    out: Out = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time; default: cores / threads, 1 with --match seconds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Arms side by side, from the same checkpoint on the same stream, paired over seeds."""
    resolved = _load(recipe, overrides)
    _compare(
        resolved, arms.split(","), seeds, match, budget, out or Path("runs") / f"compare-{_stem(recipe)}", jobs, as_json
    )


@app.command()
def demo(
    modality: Annotated[str, typer.Argument(help="language")] = "language",
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 3,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The main job on the embedded default: step 0, one-hot, steered, and random feedback, on held-out rows."""
    resolved = _load(f"demo-{modality}", None)
    _compare(resolved, list(DEMO_ARMS), seeds, "steps", None, out or Path("runs") / f"demo-{modality}", None, as_json)


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
def check(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Reads recipe, data and model, and prints every problem at once; nothing is trained."""
    from vpretrain.check import check as examine

    problems = examine(recipe, overrides or [])
    console = _people(as_json)
    for problem in problems:
        console.print(escape(str(problem)), highlight=False)
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
    folder = MODALITIES[resolved.modality]().prepare(resolved, out)
    console.print(f"learner: {folder}")
    _emit({"model": str(folder)}, as_json)


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
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    error_console = Console(stderr=True)
    try:
        app(standalone_mode=True)
    except (UserError, Fault) as error:
        error_console.print(f"[red bold]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        error_console.print("stopped; what was finished is kept")
        sys.exit(3)


def _compare(
    resolved: Recipe,
    arms: list[str],
    seeds: int,
    match: str,
    budget: float | None,
    out: Path,
    jobs: int | None,
    as_json: bool,
) -> None:
    from vpretrain import compare as comparison
    from vpretrain.tables import comparison_table, verdicts

    if match not in MATCHES:
        raise user_error("--match", "arms cannot be matched by this", value=match, accepted=", ".join(MATCHES))
    amount = budget if budget is not None else getattr(resolved.budget, match)
    if amount is None:
        raise user_error("--budget", f"the recipe has no budget.{match} to match by; say how much", accepted="a number")
    resolved = comparison.with_budget(resolved, match, amount)  # type: ignore[arg-type]
    cores = os.cpu_count() or 1
    jobs = jobs or (1 if match == "seconds" else max(1, cores // (resolved.threads or cores)))
    console = _people(as_json)
    with _bar(console) as bar:
        task = bar.add_task("starting", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        table = comparison.compare(
            resolved, arms=arms, seeds=seeds, match=match, out=out, jobs=jobs, progress=progress  # type: ignore[arg-type]
        )  # fmt: skip
    console.print(comparison_table(table))
    for line in verdicts(table):
        console.print(line, highlight=False)
    console.print(f"results: {out / 'compare.json'}")
    _emit(table, as_json)


def _load(recipe: str, overrides: list[str] | None) -> Recipe:
    from vpretrain.modalities import SCHEMAS

    return load(recipe, overrides or [], schemas=SCHEMAS)


def _stem(recipe: str) -> str:
    return Path(recipe).stem


def _people(as_json: bool) -> Console:
    """Where text for people goes: standard error when standard output is for a program."""
    return Console(stderr=as_json)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def _emit(value: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(value, indent=1, default=str))
