"""Commands that look: at a model's estimators, a step's value, a run, a recipe and its data; and
the one that prepares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vpretrain.cli.shell import (
    Json,
    Out,
    Overrides,
    RecipeName,
    console_for_people,
    emit,
    progress_bar,
    resolved_recipe,
    results_folder,
    stem,
)
from vpretrain.config.recipe import listing

app = typer.Typer()


@app.command()
def doctor(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Which estimator works on this model, kernel, dtype and device; how exact it is; what it
    costs."""
    from vpretrain.cli.tables import doctor_table
    from vpretrain.studies.doctor import doctor as examine

    console = console_for_people(as_json)
    found = examine(resolved_recipe(recipe, overrides))
    console.print(f"{found['device']}, {found['dtype']}, attention {found['attention']}")
    console.print(doctor_table(found))
    emit(found, as_json)


@app.command()
def probe(
    recipe: RecipeName,
    overrides: Overrides = None,
    draws: Annotated[int, typer.Option(min=4, help="Fresh batches.")] = 200,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Does a step's value predict what the step does? Predicted against realised drop of the
    held-out feedback loss."""
    from vpretrain.cli.tables import probe_table
    from vpretrain.studies.probe import probe as examine

    console = console_for_people(as_json)
    resolved = resolved_recipe(recipe, overrides)
    folder = results_folder(out or Path("runs") / f"probe-{stem(recipe)}")
    with progress_bar(console) as bar:
        task = bar.add_task("burn-in", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description="draws")

        found = examine(resolved, draws=draws, out=folder, progress=progress)
    console.print(probe_table(found))
    console.print(escape(f"scatter: {folder / 'scatter.png'}"), highlight=False, soft_wrap=True)
    emit(found, as_json)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that train wrote.")],
    documents: Annotated[int, typer.Option(min=1, help="Documents of the stream to look at.")] = 24,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The HTML file; default explain.html in the run folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The value of each token to the feedback set, and how close the designer comes to the best
    targets: one page."""
    from vpretrain.studies.explain import explain as examine

    console = console_for_people(as_json)
    found = examine(run, documents=documents, out=out)
    if "value" in found:
        values = "  ".join(f"{task} {value:.4g}" for task, value in found["value"].items())
        console.print(f"value: {values}  (regret {found['regret']:.4g})", highlight=False)
    for source, mean in found.get("sources", {}).items():
        console.print(escape(f"source {source}: {mean:+.4g} a token"), highlight=False)
    console.print(escape(f"page: {found['page']}"), highlight=False, soft_wrap=True)
    emit(found, as_json)


@app.command()
def check(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Reads recipe, data and model, and prints every problem at once; nothing is trained."""
    from vpretrain.run.resources import readable_size
    from vpretrain.studies.check import check as examine
    from vpretrain.studies.check import needs

    problems = examine(recipe, overrides or [])
    console = console_for_people(as_json)
    for problem in problems:
        console.print(escape(str(problem)), highlight=False, soft_wrap=True)
    console.print("no problem found" if not problems else f"{len(problems)} problem(s)")
    if not problems and (need := needs(resolved_recipe(recipe, overrides))) is not None:
        memory, disk = readable_size(need.memory_bytes), readable_size(need.disk_bytes)
        hours = "" if need.seconds is None else f", {_duration(need.seconds)} of training"
        console.print(
            f"a run takes about {memory} of memory, {disk} of disk{hours}; designer, feedback and "
            f"evaluation come on top (one forward pass took {need.forward_seconds:.2g} s)",
            highlight=False,
        )
    emit({"problems": [vars(problem) for problem in problems]}, as_json)
    if problems:
        raise typer.Exit(2)


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


@app.command()
def prepare(
    recipe: RecipeName, overrides: Overrides = None, out: Out = None, as_json: Json = False
) -> None:
    """Makes the checkpoint that a recipe's `learner.prepare` describes (tokenizer and model, from
    its stream)."""
    from vpretrain.run.modalities import MODALITIES

    console = console_for_people(as_json)
    resolved = resolved_recipe(recipe, overrides)
    folder = MODALITIES[resolved.modality]().prepare(resolved, out and results_folder(out))
    console.print(escape(f"learner: {folder}"), highlight=False, soft_wrap=True)
    emit({"model": str(folder)}, as_json)


@app.command()
def recipes(as_json: Json = False) -> None:
    """Lists the packaged recipes, and those under ./recipes."""
    folder = Path("recipes")
    rows = listing(folder if folder.is_dir() else None)
    console = console_for_people(as_json)
    for row in rows:
        console.print(
            f"[bold]{escape(row['name'])}[/bold]  ({row['modality']})\n"
            f"    {escape(row['description'])}",
            highlight=False,
        )
    emit(rows, as_json)
