"""The command that measures what steering costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vpretrain.cli import shell
from vpretrain.cli.shell import Json, Overrides, RecipeName

app = typer.Typer()


@app.command(short_help="What steering costs in speed and memory.")
def profile(
    recipe: RecipeName,
    overrides: Overrides = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated; the first is compared with. Default: baseline, the recipe's arm."
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Measured rounds of one meta period each.")
    ] = 5,
    warm_up: Annotated[int, typer.Option(min=1, help="Rounds before them.")] = 1,
    as_json: Json = False,
) -> None:
    """What steering costs: tokens a second, peak memory and FLOPs of arms in turn, where the time
    goes, and the cost predicted from the shapes."""
    from vpretrain.cli.tables import profile_tables
    from vpretrain.run.modalities import MODALITIES
    from vpretrain.studies.profile import profile as measure

    resolved = shell.resolved_recipe(recipe, overrides)
    baseline = MODALITIES[resolved.modality]().demo[0]
    chosen = [baseline, resolved.arm] if arms is None else shell.names(arms)
    chosen = list(dict.fromkeys(chosen))
    result = measure(resolved, arms=chosen, rounds=rounds, warm_up=warm_up)
    console = shell.console_for_people(as_json)
    for table in profile_tables(result):
        console.print(table)
    if predictions := _predictions(resolved, chosen):
        result["predicted"] = predictions
        console.print(_predicted_table(predictions, chosen))
    shell.emit(result, as_json)


def _predictions(recipe: Any, arms: list[str]) -> dict[str, Any]:
    """Returns predictions by model size, the recipe's own shape first if it is known.

    Empty for recipes and arms without a cost model.
    """
    from vpretrain.language.learner import cost_model
    from vpretrain.language.recipe import LanguageRecipe

    if not isinstance(recipe, LanguageRecipe) or any(arm not in cost_model.KINDS for arm in arms):
        return {}
    sizes = dict(cost_model.SIZES)
    if recipe.learner.config is not None and "intermediate_size" in recipe.learner.config:
        sizes = {"this recipe": cost_model.Shape.of(recipe.learner.config), **sizes}
    return {
        name: cost_model.predicted(shape, cost_model.Setting.of(recipe, shape, "cpu"), arms)
        for name, shape in sizes.items()
    }


def _predicted_table(predictions: dict[str, Any], arms: list[str]) -> Any:
    from rich.table import Table

    table = Table(
        title="counted from shapes, for the recipe's batch: FLOPs and bytes of a step over the "
        "first arm's"
    )
    table.add_column("learner")
    table.add_column("GFLOP/step", justify="right")
    table.add_column("GiB", justify="right")
    for arm in arms[1:]:
        table.add_column(f"{arm}: FLOPs", justify="right")
        table.add_column("bytes", justify="right")
    for name, predicted in predictions.items():
        first, to_first = predicted["totals"][arms[0]], predicted["ratios"]
        ratios = [f"{to_first[arm][what]:.3f}" for arm in arms[1:] for what in ("flops", "bytes")]
        table.add_row(name, f"{first['flops'] / 1e9:.0f}", f"{first['bytes'] / 2**30:.1f}", *ratios)
    return table
