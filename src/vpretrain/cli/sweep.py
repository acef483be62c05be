"""The command that searches: trials of a recipe with other values, each on the same budget."""

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
    ShownProgress,
    console_for_people,
    emit,
    results_folder,
    stem,
)

app = typer.Typer()


@app.command()
def sweep(
    recipe: RecipeName,
    overrides: Overrides = None,
    trials: Annotated[
        int, typer.Option(min=1, help="In all, those that are there already among them.")
    ] = 20,
    jobs: Annotated[
        int, typer.Option(min=1, help="Trials at a time, in processes of their own.")
    ] = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Searches what a recipe's `sweep` section names; the same command goes on. The best trial is
    written as a recipe."""
    from vpretrain.studies.sweep import Plan
    from vpretrain.studies.sweep import sweep as search

    console = console_for_people(as_json)
    plan = Plan.read(recipe, overrides or [])
    folder = results_folder(out or Path("runs") / f"sweep-{stem(recipe)}")
    with ShownProgress(console) as progress:
        found = search(plan, trials=trials, out=folder, jobs=jobs, progress=progress)
    before = ", ".join(f"{name} {value:.4g}" for name, value in found["step0"].items())
    console.print(f"step 0: {before}", highlight=False)
    for entry in found["front"] or [found["best"]]:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in entry["values"].items())
        values = ", ".join(f"{key}={value}" for key, value in entry["parameters"].items())
        console.print(
            escape(f"trial {entry['number']}: {scores}; {values}"), highlight=False, soft_wrap=True
        )
        console.print(escape(f"    recipe: {entry['recipe']}"), highlight=False, soft_wrap=True)
    if found["pruned"] or found["failed"]:
        console.print(f"{found['pruned']} trials pruned, {found['failed']} failed", highlight=False)
    emit(found, as_json)
