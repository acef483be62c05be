"""A small modality's recipe, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, PositiveInt, model_validator

from vpretrain.config.recipe import Evaluate, Recipe, Section, load
from vpretrain.system.errors import Problem, UserError


class Source(Section):
    path: Path
    weight: float = Field(1.0, gt=0, le=10)


class Data(Section):
    stream: tuple[Source, ...] = Field(min_length=1)


class Learner(Section):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    model: int | str | None = None
    shard: bool = False


class FieldDesigner(Section):
    kind: Literal["field"]
    hidden: PositiveInt = 64


class Onehot(Section):
    kind: Literal["onehot"]


class ToyEvaluate(Evaluate):
    split: str | None = None


class Toy(Recipe):
    data: Data
    learner: Learner = Learner()
    designer: Annotated[FieldDesigner | Onehot, Field(discriminator="kind")]
    weights: dict[str, float] = Field(default_factory=dict)
    evaluate: ToyEvaluate = ToyEvaluate()

    @model_validator(mode="after")
    def _split_is_known(self) -> Self:
        if self.evaluate.split == "nope":
            raise ValueError("evaluate.split is 'nope'; data has ['test']")
        if self.evaluate.split == "odd":
            raise ValueError("e.g. this opens with no key")
        return self


def never() -> type[Recipe]:
    raise AssertionError("the recipe of another modality was asked for")


SCHEMAS: dict[str, Callable[[], type[Recipe]]] = {"toy": lambda: Toy, "vision": never}

GOOD = """\
modality: toy
description: A toy.
arm: onehot
budget:
  steps: 10
value:
  meta_period: 2
data:
  stream:
    - {path: a.jsonl}
    - {path: b.jsonl, weight: 5e-5}
designer: {kind: field}
"""


def read(path: Path | str, *overrides: str) -> Toy:
    recipe = load(path, overrides, schemas=SCHEMAS)
    assert isinstance(recipe, Toy)
    return recipe


def refused(path: Path | str, *overrides: str) -> dict[str, Problem]:
    """The problems by where they are, the folder of the file left out."""
    with pytest.raises(UserError) as caught:
        load(path, overrides, schemas=SCHEMAS)
    folder = f"{Path(path).parent}/"
    result = {problem.where.replace(folder, ""): problem for problem in caught.value.problems}
    assert len(result) == len(caught.value.problems), "one problem, one place"
    return result
