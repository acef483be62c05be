"""Commands on recipes: check one, make its model, list the recipes and the arms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vpretrain.cli import shell
from vpretrain.cli.shell import Json, Overrides, RecipeName, say
from vpretrain.config.recipe import listing
from vpretrain.system.errors import user_error

app = typer.Typer()


@app.command(short_help="Every problem of a recipe, its data and its model.")
def check(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Reads recipe, data and model, and prints every problem at once; nothing is trained."""
    console = shell.console_for_people(as_json)
    with console.status("reading recipe, data and model"):
        from vpretrain.cli.tables import examined_lines
        from vpretrain.studies.check import examine

        result = examine(recipe, overrides or [], shell.resolved_recipe)
    for line in examined_lines(result):
        say(console, line)
    shell.emit({"problems": [vars(problem) for problem in result.problems]}, as_json)
    if result.problems:
        raise typer.Exit(2)


@app.command(short_help="Makes the model that `learner.prepare` describes.")
def prepare(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, shell.out_option("Folder for the checkpoint; default: the cache.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Makes the checkpoint that a recipe's `learner.prepare` describes (tokenizer and model, from
    its stream)."""
    from vpretrain.run.modalities import MODALITIES

    resolved = shell.resolved_recipe(recipe, overrides)
    modality = MODALITIES[resolved.modality]()
    folder = modality.prepare(resolved, out and shell.results_folder(out))
    say(shell.console_for_people(as_json), f"learner: {folder}")
    shell.emit({"model": str(folder)}, as_json)


@app.command(short_help="Lists the packaged recipes, and those in ./recipes.")
def recipes(as_json: Json = False) -> None:
    """Lists the packaged recipes, and those under ./recipes."""
    folder = Path("recipes")
    rows = listing(folder if folder.is_dir() else None)
    console = shell.console_for_people(as_json)
    for row in rows:
        title = f"[bold]{escape(row['name'])}[/bold]  ({row['modality']})"
        console.print(f"{title}\n    {escape(row['description'])}", highlight=False)
    shell.emit(rows, as_json)


@app.command(short_help="Lists the arms: the ways to train, steered or not.")
def arms(
    modality: Annotated[str, typer.Argument(help="language, vision, or another.")] = "language",
    as_json: Json = False,
) -> None:
    """Lists the arms of a modality, the baseline first: what a recipe's `arm` and `compare --arms`
    take."""
    from vpretrain.run.modalities import MODALITIES

    if modality not in MODALITIES:
        message = "there is no modality of this name"
        raise user_error("MODALITY", message, value=modality, accepted=", ".join(MODALITIES))
    described = {name: arm.description for name, arm in MODALITIES[modality]().arms.items()}
    console = shell.console_for_people(as_json)
    for name, words in described.items():
        console.print(f"[bold]{escape(name)}[/bold]\n    {escape(words)}", highlight=False)
    shell.emit(described, as_json)
