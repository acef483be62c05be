"""Commands that study a model or a run: its estimators, its values, its tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vpretrain.cli import shell
from vpretrain.cli.shell import Json, Out, Overrides, RecipeName, say

app = typer.Typer()

_TASKS = {
    "onehot": "plain training (onehot)",
    "designer": "as this run steers it (designer)",
    "closed_form": "with targets by the closed form (closed_form)",
    "bound": "with the best targets that there are (bound)",
}
"""Descriptions of the tasks that ``explain`` values."""


@app.command(short_help="Which way to compute values works on this model.")
def doctor(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Which estimator works on this model, kernel, dtype and device; how exact it is; what it
    costs."""
    console = shell.console_for_people(as_json)
    with console.status("trying the estimators"):
        from vpretrain.cli.tables import doctor_advice, doctor_table
        from vpretrain.studies.doctor import doctor as examine

        resolved = shell.resolved_recipe(recipe, overrides)
        result = examine(resolved)
    console.print(f"{result['device']}, {result['dtype']}, attention {result['attention']}")
    console.print(doctor_table(result))
    say(console, doctor_advice(result, resolved.value.estimator))
    shell.emit(result, as_json)


@app.command(short_help="Does a step's value predict what the step does?")
def probe(
    recipe: RecipeName,
    overrides: Overrides = None,
    draws: Annotated[
        int | None, typer.Option(min=4, help="Fresh batches; default 200, 50 at a point.")
    ] = None,
    along: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="At N points of a run of the recipe's arm instead."),
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Does a step's value predict what the step does? Predicted against realised drop of the
    held-out feedback loss. With --along as the paper has it: a fresh held-out batch a draw."""
    from vpretrain.cli.tables import along_table, probe_table
    from vpretrain.studies.probe import probe as at_the_start
    from vpretrain.studies.probe_along import probe_along

    console = shell.console_for_people(as_json)
    resolved = shell.resolved_recipe(recipe, overrides)
    folder = shell.results_folder(out or Path("runs") / f"probe-{shell.stem(recipe)}")
    examine = partial(at_the_start, draws=draws or 200)
    if along is not None:
        examine = partial(probe_along, points=along, draws=draws or 50)
    with shell.progress_bar(console) as bar:
        task = bar.add_task("settling" if along is None else "training", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description="draws")

        result = examine(resolved, out=folder, progress=progress)
    console.print(probe_table(result) if along is None else along_table(result))
    say(console, f"scatter: {folder / 'scatter.png'}")
    shell.emit(result, as_json)


@app.command(short_help="Which tokens of the stream your examples value.")
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that train wrote.")],
    documents: Annotated[int, typer.Option(min=1, help="Documents of the stream to look at.")] = 24,
    out: Annotated[
        Path | None, shell.out_option("The HTML file; default RUN/explain.html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The value of each token to the feedback set, and how close the designer comes to the best
    targets: one page."""
    from vpretrain.studies.explain import explain as examine

    console = shell.console_for_people(as_json)
    result = examine(run, documents=documents, out=out)
    if "value" in result:
        say(console, "value of a batch to the examples, higher is better:")
        for task, value in result["value"].items():
            say(console, f"  {_TASKS.get(task, task)}: {value:.4g}")
    for source, mean in result.get("sources", {}).items():
        verb = "towards" if mean >= 0 else "away from"
        say(console, f"the tokens of {source} lead {verb} the examples ({mean:+.4g} each, mean)")
    say(console, f"page: {result['page']}")
    shell.emit(result, as_json)
