"""A recipe with its search space, validated before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from pydantic import create_model

from vpretrain.config.recipe import Recipe, load
from vpretrain.config.sweep import Range, Sweep
from vpretrain.run.modalities import SCHEMAS
from vpretrain.system.errors import Problem, UserError


@dataclass(frozen=True)
class Plan:
    """A recipe with its search space.

    Args:
        source, overrides: as in :func:`vpretrain.config.recipe.load`; each trial's values are
            applied after the overrides.
        recipe: without the trial's values.
        sweep: its ``sweep`` section.
    """

    source: str
    overrides: tuple[str, ...]
    recipe: Recipe
    sweep: Sweep

    @classmethod
    def read(cls, source: str, overrides: Sequence[str]) -> Plan:
        """Reads the recipe, and validates it with both ends of every range and every alternative.

        Raises:
            UserError: lists everything that is wrong with the recipe or with a value that a trial
                could take.
        """
        swept: Any = load(source, overrides, schemas=Swept())
        plan = cls(source, tuple(overrides), _without_sweep(swept), swept.sweep)
        problems: dict[str, Problem] = {}
        for key, space in plan.sweep.keys.items():
            for value in [space.low, space.high] if isinstance(space, Range) else space:
                try:
                    plan.at({key: value})
                except UserError as error:
                    problems |= {
                        f"{key} {p.message}": Problem(
                            f"sweep.keys.{key}", str(value), p.accepted, p.message
                        )
                        for p in error.problems
                    }
        unused = ("sweep",) if plan.sweep.budget is None else ("sweep", "budget")
        for key in plan.sweep.keys:
            if key.partition(".")[0] in unused:
                message = "trials have the budget of sweep.budget, and are searched by one `sweep`"
                problems[key] = Problem(
                    f"sweep.keys.{key}", key, "a key that changes a trial", message
                )
        if plan.sweep.prune and plan.recipe.evaluate.every == 0:
            message = (
                "pruning compares trials on the way: give a number of steps, or set "
                "sweep.prune to false"
            )
            problems["every"] = Problem("evaluate.every", "0", "1 or more", message)
        if problems:
            raise UserError(*problems.values())
        return plan

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """All trials that can differ, by their values; empty if a key has a range."""
        spaces = self.sweep.keys
        lists = [space for space in spaces.values() if not isinstance(space, Range)]
        if len(lists) < len(spaces):
            return []
        return [dict(zip(spaces, values, strict=True)) for values in product(*lists)]

    def at(self, values: Mapping[str, Any], *, own_budget: bool = False) -> Recipe:
        """Returns the recipe of a trial; ``own_budget`` keeps the recipe's budget, not the
        sweep's.
        """
        overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        recipe = _without_sweep(load(self.source, [*self.overrides, *overrides], schemas=Swept()))
        budget = recipe.budget if own_budget or self.sweep.budget is None else self.sweep.budget
        return recipe.model_copy(update={"budget": budget})


class Swept(Mapping[str, Callable[[], type[Recipe]]]):
    """The recipe schemas of all modalities, with the section ``sweep`` required.

    Those of other packages are among them as soon as they are installed.
    """

    def __getitem__(self, name: str) -> Callable[[], type[Recipe]]:
        schema = SCHEMAS[name]
        return lambda: _with_sweep(schema())

    def __iter__(self) -> Iterator[str]:
        return iter(SCHEMAS)

    def __len__(self) -> int:
        return len(SCHEMAS)


@cache  # the recipe is read for every value and trial, and building a class is slow
def _with_sweep(schema: type[Recipe]) -> type[Recipe]:
    return create_model("Swept", __base__=schema, sweep=(Sweep, ...))


def _without_sweep(swept: Recipe) -> Recipe:
    return SCHEMAS[swept.modality]().model_validate_json(swept.model_dump_json(exclude={"sweep"}))
