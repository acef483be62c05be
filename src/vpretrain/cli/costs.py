"""Commands about what things cost."""

from __future__ import annotations

from typing import Annotated

import typer

from vpretrain.cli.shell import Json, Overrides, RecipeName, console_for_people, emit, resolved_recipe

app = typer.Typer()


@app.command()
def profile(
    recipe: RecipeName,
    overrides: Overrides = None,
    arms: Annotated[
        str | None,
        typer.Option(help="Comma-separated; the first is compared with. Default: baseline, the recipe's arm."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds of one meta period each.")] = 5,
    warm_up: Annotated[int, typer.Option(min=1, help="Rounds before them.")] = 1,
    as_json: Json = False,
) -> None:
    """What steering costs: tokens a second, peak memory and FLOPs of arms in turn, and where the time goes."""
    from vpretrain.modalities import MODALITIES
    from vpretrain.profiling import profile as measure
    from vpretrain.tables import profile_table

    resolved = resolved_recipe(recipe, overrides)
    chosen = [MODALITIES[resolved.modality]().demo[0], resolved.arm] if arms is None else arms.split(",")
    found = measure(resolved, arms=list(dict.fromkeys(chosen)), rounds=rounds, warm_up=warm_up)
    console_for_people(as_json).print(profile_table(found))
    emit(found, as_json)
