"""Anchors stand for what they name, and a few lines for no more than any recipe holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.config.toy import GOOD, SCHEMAS, read
from vpretrain.config import recipe as recipes
from vpretrain.config.yaml_places import parse
from vpretrain.system.errors import UserError


def test_anchors_may_be_used_and_share_nothing(write: Callable[..., Path]) -> None:
    text = GOOD.replace("- {path: a.jsonl}", "- &a {path: a.jsonl, weight: 2}")
    path = write(text.replace("- {path: b.jsonl, weight: 5e-5}", "- *a\n    - {<<: *a, weight: 3}"))
    weights = [source.weight for source in read(path, "data.stream.0.weight=7").data.stream]
    assert weights == [7.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "bomb",
    [
        "\n".join(
            ["a0: &a0 {k0: 1}"]
            + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]
        ),
        "\n".join(
            ["a0: &a0 {k0: 1}"]
            + [
                f"a{n}: &a{n} {{<<: *a{n - 1}, {', '.join(f'k{n}x{i}: 1' for i in range(10))}}}"
                for n in range(1, 300)
            ]
        ),
        f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1_000)}]",
    ],
    ids=["merges of merges", "a chain of merges", "long text"],
)
def test_a_few_lines_that_stand_for_much_are_refused_at_once(bomb: str) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match="with anchors written out"):
        parse(bomb, str)
    assert time.process_time() - began < 5  # a second, on a machine that has nothing else to do


@pytest.mark.parametrize("text", ["x: [" + "1, " * 60_000 + "]", "x" * 20_000_000])
def test_more_than_any_recipe_holds_is_refused_at_once(
    text: str, write: Callable[..., Path]
) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=r"more than 20000 values|too long for a recipe"):
        recipes.load(write(text), schemas=SCHEMAS)
    assert time.process_time() - began < 5  # a second, on a machine that has nothing else to do
