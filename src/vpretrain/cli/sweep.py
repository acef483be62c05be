"""The command that searches: trials of a recipe with other values, each on the same budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vpretrain.cli import shell
from vpretrain.cli.shell import Json, Out, Overrides, RecipeName, say

app = typer.Typer()


@app.command(short_help="Searches what a recipe's `sweep` section names.")
def sweep(
    recipe: RecipeName,
    overrides: Overrides = None,
    trials: Annotated[
        int,
        typer.Option(min=1, max=100_000, help="Total number of trials, finished ones included."),
    ] = 20,
    jobs: Annotated[
        int, typer.Option(min=1, help="Trials at a time, in processes of their own.")
    ] = 1,
    out: Out = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although data were changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Searches what a recipe's `sweep` section names; the same command goes on. The best trial is
    written as a recipe."""
    from vpretrain.studies.sweep import listed
    from vpretrain.studies.sweep import sweep as search
    from vpretrain.studies.sweep_plan import Plan

    console = shell.console_for_people(as_json)
    plan = Plan.read(recipe, overrides or [])
    folder = shell.results_folder(out or Path("runs") / f"sweep-{shell.stem(recipe)}", "a search")
    with shell.ShownProgress(console) as progress:
        result = search(
            plan,
            trials=trials,
            out=folder,
            jobs=jobs,
            accept_changes=accept_changes,
            progress=progress,
        )
    say(console, f"step 0: {listed(result['step0'])}")
    for entry in result["front"] or [result["best"]]:
        values = ", ".join(f"{key}={value}" for key, value in entry["parameters"].items())
        say(console, f"trial {entry['number']}: {listed(entry['values'])}; {values}")
        say(console, f"    recipe: {entry['recipe']}")
    if result["pruned"] or result["failed"]:
        say(console, f"{result['pruned']} trials pruned, {result['failed']} failed")
    shell.say_changes(console, result)
    shell.emit(result, as_json)
