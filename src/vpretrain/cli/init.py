"""The command that writes a first, commented recipe from a model and data."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vpretrain.cli import shell
from vpretrain.cli.shell import Json, say
from vpretrain.config.recipe import load
from vpretrain.system.errors import Stopped, UserError, renamed, user_error
from vpretrain.system.files import write_text

if TYPE_CHECKING:
    from vpretrain.language.init_places import Place
    from vpretrain.studies.check import Examined

app = typer.Typer()

TEXT_MODEL, PICTURES_MODEL = "HuggingFaceTB/SmolLM2-135M", "facebook/dino-vits16"
"""Default models: small, downloadable without an account, Apache 2.0."""
_SEEDS = 3  # the default of `compare`
_ROWS = "a file (.jsonl, .csv, .txt, ...), a pattern, a folder, or the id of a data set on the hub"
_LABELLED = "for pictures a folder with images and masks"
Columns = Annotated[
    str | None, typer.Option(metavar="NAME[,NAME]", help="Its column of text, or prompt,solution.")
]


@app.command(short_help="Writes a commented recipe for your text or pictures.")
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
        typer.Option(help="Held-out rows; default: the last quarter of the feedback rows or more."),
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
    if out.parent.is_dir() and not os.access(out.parent, os.W_OK):
        message = f"no permission to write in {out.parent}; name a file elsewhere"
        raise user_error("--out", message, value=str(out))
    stream = stream or _asked(
        "--stream",
        f"What to train on, unlabeled: text ({_ROWS}) or pictures (a folder)",
    )
    feedback = feedback or _asked(
        "--feedback", f"Verified examples that steer: prompts with solutions ({_LABELLED})"
    )
    # Imported after the questions, because loading the libraries takes seconds.
    from vpretrain.language.init_places import holds_pictures

    pictures = holds_pictures(stream)
    default = PICTURES_MODEL if pictures else TEXT_MODEL
    model = model or _asked(
        "--model", "Model to continue, a folder or hub id; Enter fetches a small one", default
    )
    given = (stream_columns, feedback_columns, evaluation_columns or feedback_columns)
    columns = [tuple(shell.names(each or "")) for each in given]
    write = _of_pictures if pictures else _of_text
    quoted = Path(shlex.quote(str(out)))  # as the commands in the recipe name it
    with renamed({"learner.model": "--model"}):
        text = write(model, stream, feedback, evaluation, columns, quoted)
    write_text(out, text)
    _checked(out, text.splitlines()[0].removeprefix("# "), as_json=as_json)


def _checked(out: Path, command: str, *, as_json: bool) -> None:
    """Checks the recipe that was written, and prints what to run next."""
    console = shell.console_for_people(as_json)
    say(console, f"recipe: {out}")
    with console.status("checking it"):
        from vpretrain.cli.tables import examined_lines
        from vpretrain.studies.check import examine

        result = examine(str(out), [])
    for line in examined_lines(result, first_look=False):
        say(console, line)
    problems = result.problems
    for line in _next_commands(out, command, result):
        say(console, line)
    shell.emit({"recipe": str(out), "problems": [vars(each) for each in problems]}, as_json)
    if problems:
        raise typer.Exit(2)


def _next_commands(out: Path, command: str, result: Examined) -> Iterator[str]:
    """Yields what to run after ``init``, with its duration if it is long."""
    from vpretrain.cli.tables import duration
    from vpretrain.studies.check import FIRST_LOOK_SECONDS

    need = result.needs
    look = need.first_look if need else None
    if result.problems:
        yield f"fix this in {out}, then: vpretrain check {shlex.quote(str(out))}"
        return
    if need is None or need.seconds is None:
        yield f"next: {command}"
        return
    *_, arms = command.split()
    runs = _SEEDS * len(arms.split(","))
    all_of_it = f"{runs} runs, {duration(runs * need.seconds)} or more here"
    two = f"{command.removesuffix(arms)}{','.join(arms.split(',')[:2])} --seeds 1"
    if look is not None:
        yield f"next, for a first look of about {duration(look.pair_seconds)}:"
        # Results of another budget do not go into the folder of the verdict.
        yield f"  {two} --out runs/first-look {look.overrides}"
    elif runs * need.seconds > FIRST_LOOK_SECONDS:
        yield f"next, for a first look of {duration(2 * need.seconds)} or more:"
        yield f"  {two}"
    else:
        yield f"next, for a verdict ({all_of_it}):"
        yield f"  {command}"
        return
    yield f"then, for a verdict ({all_of_it}):"
    yield f"  {command}"


def _asked(flag: str, question: str, default: str | None = None) -> str:
    """Returns the user's answer, by default ``default``; an error without a terminal."""
    if not sys.stdin.isatty():
        raise user_error(
            flag,
            "this is missing, and there is no terminal to ask on; give the flag",
            accepted=question if default is None else f"{question}: {default}, say",
        )
    try:
        return str(typer.prompt(question, default=default, err=True))
    except typer.Abort:
        raise Stopped("you") from None


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
    text, steering = recipe_of(model, stream, feedback, evaluation, out=out)
    if evaluation is None:
        _say_held_out(feedback, f"{steering} pictures")
    return text


def _of_text(
    model: str,
    stream: str,
    feedback: str,
    evaluation: str | None,
    columns: list[tuple[str, ...]],
    out: Path,
) -> str:
    from vpretrain.language.init_places import Place, halved
    from vpretrain.language.init_recipe import recipe_of
    from vpretrain.run.resources import available_memory_bytes

    source = _with_columns(Place("--stream", stream, columns[0]), solutions=False)
    sources = source.by_kind()
    steering = _with_columns(Place("--feedback", feedback, columns[1]), solutions=True)
    if evaluation is None:
        steering, measured = halved(steering)
        _say_held_out(feedback, f"{dict(steering.part)['rows']} rows")
    else:
        measured = Place("--evaluation", evaluation, columns[2] or steering.columns)
        measured = _with_columns(measured, solutions=True)
    for place, kinds in ((source, {each.kind for each in sources}), (steering, set())):
        if others := place.left_out(kinds):
            print(f"{place.flag}: of {place.path} these are not read: {others}", file=sys.stderr)
    return recipe_of(
        model,
        sources,
        steering,
        measured,
        out=out,
        shapes=_shapes,
        available=available_memory_bytes(),
    )


def _say_held_out(feedback: str, steering: str) -> None:
    line = f"--feedback: the first {steering} of {feedback} steer, the others are held out to "
    print(line + "measure on; --evaluation names others", file=sys.stderr)


def _with_columns(place: Place, *, solutions: bool) -> Place:
    """Returns the place; on a terminal, asks for columns that its first row does not show."""
    if not place.files():
        return place  # on the hub: its columns have to be named by a flag
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
    """Returns a language model's shapes, without its weights."""
    from vpretrain.language.learner.loading import skeleton
    from vpretrain.run.modalities import SCHEMAS

    named: Any = load("demo-language", [f"learner.model={json.dumps(model)}"], schemas=SCHEMAS)
    return skeleton(named)
