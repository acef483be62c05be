"""The command that begins: a commented recipe from a model and the places that rows come from."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vpretrain.cli import shell
from vpretrain.cli.shell import Json, say
from vpretrain.config.recipe import load
from vpretrain.system.errors import UserError, renamed, user_error
from vpretrain.system.files import write_text

if TYPE_CHECKING:
    from vpretrain.language.init_recipe import Place

app = typer.Typer()

_ROWS = "a file (.jsonl, .csv, .txt, ...), a pattern, a folder, or the id of a data set on the hub"
_LABELLED = "for pictures a folder with images and masks"
Columns = Annotated[
    str | None, typer.Option(metavar="NAME[,NAME]", help="Its column of text, or prompt,solution.")
]


@app.command()
def init(
    model: Annotated[
        str | None,
        typer.Option(help="A causal language model, or a ViT: folder, hub id, packaged name."),
    ] = None,
    stream: Annotated[
        str | None, typer.Option(help=f"Unlabeled rows: {_ROWS}; or a folder of pictures.")
    ] = None,
    feedback: Annotated[
        str | None,
        typer.Option(help=f"Verified rows that steer: prompts with solutions; {_LABELLED}."),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            help="What is measured on, likewise; default: a quarter of the feedback, held out."
        ),
    ] = None,
    stream_columns: Columns = None,
    feedback_columns: Columns = None,
    evaluation_columns: Columns = None,
    out: Annotated[Path, shell.out_option("The recipe to write.", "FILE")] = Path("steer.yaml"),
    as_json: Json = False,
) -> None:
    """Writes a commented recipe for text or pictures and checks it; asks for what no flag says."""
    if out.exists():
        raise user_error("--out", "there is something already; name another file", value=str(out))
    model = model or _asked(
        "--model",
        "Model, a folder or hub id (Enter: a toy that comes along, and knows sums alone)",
        "word-problems-majority",
    )
    stream = stream or _asked(
        "--stream", f"Stream of unlabeled rows ({_ROWS}) or pictures (a folder)"
    )
    feedback = feedback or _asked("--feedback", f"Verified rows that steer ({_LABELLED})")
    # Loading the libraries takes seconds: after the questions.
    from vpretrain.language.init_recipe import holds_pictures
    from vpretrain.studies.check import check

    given = (stream_columns, feedback_columns, evaluation_columns or feedback_columns)
    columns = [tuple(shell.names(each or "")) for each in given]
    write = _of_pictures if holds_pictures(stream) else _of_text
    with renamed({"learner.model": "--model"}):
        text = write(model, stream, feedback, evaluation, columns, out)
    write_text(out, text)
    problems = check(str(out), [])
    console = shell.console_for_people(as_json)
    say(console, f"recipe: {out}")
    for problem in problems:
        say(console, str(problem))
    command = text.splitlines()[0].removeprefix("# ")
    fix = f"{len(problems)} problem(s); fix them in the recipe"
    say(console, fix if problems else f"no problem found; next: {command}")
    shell.emit({"recipe": str(out), "problems": [vars(each) for each in problems]}, as_json)
    if problems:
        raise typer.Exit(2)


def _asked(flag: str, question: str, default: str | None = None) -> str:
    """What a person types, Enter for the default; who cannot be asked is told the flag."""
    if not sys.stdin.isatty():
        raise user_error(
            flag,
            "this is missing, and there is no terminal to ask on; give the flag",
            accepted=question if default is None else f"{question}: {default}, say",
        )
    return str(typer.prompt(question, default=default, err=True))


def _of_pictures(
    model: str,
    stream: str,
    feedback: str,
    evaluation: str | None,
    columns: list[tuple[str, ...]],
    out: Path,
) -> str:
    from vpretrain.run.modalities import SCHEMAS

    SCHEMAS["vision"]()  # says which extra is missing
    from vpretrain.vision.init_recipe import recipe_of

    if any(columns):
        raise user_error(
            "--stream",
            "pictures have no columns; leave these flags out, or name rows",
            value=stream,
        )
    return recipe_of(model, stream, feedback, evaluation, out=out)


def _of_text(
    model: str,
    stream: str,
    feedback: str,
    evaluation: str | None,
    columns: list[tuple[str, ...]],
    out: Path,
) -> str:
    from vpretrain.language.init_recipe import Place, halved, memory_bytes, recipe_of

    source = _with_columns(Place("--stream", stream, columns[0]), solutions=False)
    steering = _with_columns(Place("--feedback", feedback, columns[1]), solutions=True)
    if evaluation is None:
        steering, measured = halved(steering)
    else:
        measured = Place("--evaluation", evaluation, columns[2] or steering.columns)
        measured = _with_columns(measured, solutions=True)
    for place in (source, steering):
        if others := place.left_out():
            print(f"{place.flag}: of {place.path} these are not read: {others}", file=sys.stderr)
    return recipe_of(
        model,
        source,
        steering,
        measured,
        out=out,
        shapes=_shapes,
        available=memory_bytes(),
    )


def _with_columns(place: Place, *, solutions: bool) -> Place:
    """The place; on a terminal the columns that its first row does not tell are asked for."""
    if not place.files():
        return place  # of the hub: its columns have to be named
    try:
        place.section(solutions=solutions)
    except UserError as error:
        (problem,) = error.problems
        if problem.where != f"{place.flag}-columns" or not sys.stdin.isatty():
            raise
        wanted = "of the prompt and the solution: NAME,NAME" if solutions else "of the text"
        question = f"Columns of {place.path}: {problem.value}. Which is that {wanted}"
        return replace(place, columns=tuple(shell.names(_asked(problem.where, question))))
    return place


def _shapes(model: str) -> Any:
    """A language model's shapes, without its weights."""
    from vpretrain.language.learner.loading import skeleton
    from vpretrain.run.modalities import SCHEMAS

    named: Any = load("demo-language", [f"learner.model={json.dumps(model)}"], schemas=SCHEMAS)
    return skeleton(named)
