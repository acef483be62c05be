"""Endless shuffled orders and mixtures with integer positions, the basis of exact resumption."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vpretrain.system.errors import user_error


class Order:
    """An endless sequence of item indices, reshuffled in each pass.

    Args:
        count: number of items, at least 1.
        key: seeds the orders, together with the number of the pass.
    """

    def __init__(self, count: int, key: str) -> None:
        if count < 1:
            raise ValueError(f"an order needs items, got {count}")
        self.count, self.key = count, key
        self._passes: dict[int, array[int]] = {}

    def __getitem__(self, number: int) -> int:
        """Returns the index at position ``number`` of the sequence, from 0."""
        number_of_pass, at = divmod(number, self.count)
        if number_of_pass not in self._passes:
            # Keep two passes, because looking ahead alternates between adjacent ones.
            self._passes = {
                n: order for n, order in self._passes.items() if abs(n - number_of_pass) == 1
            }
            generator = torch.Generator().manual_seed(seed_of(f"{self.key}/{number_of_pass}"))
            order = torch.randperm(self.count, generator=generator)
            self._passes[number_of_pass] = array("i", order.int().numpy().tobytes())
        return self._passes[number_of_pass][at]


def seed_of(key: str) -> int:
    """Returns a seed in [0, 2^63) for a key; different keys give independent seeds."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


class Mixture:
    """An endless weighted mixture of sources.

    The next item comes from the source that lags most behind its fraction (the first among equals),
    so that fractions hold in every stretch and not only on average. Within a source, every item
    comes once before any is repeated. The position is one integer per source.

    Args:
        sources: ``(name, count, weight)`` of each: its number of items, and its relative weight.
        seed: of the orders, together with a source's name.
        items: what the items are called in messages: ``documents``.
        fix: advice for an empty source.

    Attributes:
        drawn: number of items drawn from each source.
        orders: of each source's items.

    Raises:
        UserError: there is no source, two have the same name, one is empty or has an invalid
            weight, or no weight is above zero.
    """

    def __init__(
        self, sources: Sequence[tuple[str, int, float]], *, seed: int | str, items: str, fix: str
    ) -> None:
        _check_sources(sources, items, fix)
        total = math.fsum(weight for _, _, weight in sources)
        self._fractions = [weight / total for _, _, weight in sources]
        self.orders = [Order(count, f"{seed}/{name}") for name, count, _ in sources]
        self.drawn = [0] * len(sources)

    def draw(self) -> tuple[int, int, int]:
        """Returns the next item's source, the number drawn from it before, and the item's index."""
        count = sum(self.drawn) + 1
        lags = [
            (fraction * count - given if fraction else -math.inf)
            for fraction, given in zip(self._fractions, self.drawn, strict=True)
        ]
        source = lags.index(max(lags))
        number = self.drawn[source]
        self.drawn[source] += 1
        return source, number, self.orders[source][number]


def _check_sources(sources: Sequence[tuple[str, int, float]], items: str, fix: str) -> None:
    where = "data.stream"
    if not sources:
        raise user_error(
            where,
            "there is nothing to train on: name at least one source",
            accepted="a list of sources",
        )
    names = [name for name, _, _ in sources]
    for name, count, weight in sources:
        if names.count(name) > 1:
            message = (
                f"two sources have this name, and it seeds the order of their {items}: rename one"
            )
            raise user_error(where, message, value=name, accepted="distinct names")
        if not count:
            message = f"source {name!r} holds no {items}{fix}"
            raise user_error(where, message, value=f"0 {items}", accepted="at least one")
        if not (math.isfinite(weight) and weight >= 0):
            message = f"the weight of source {name!r} is no share"
            raise user_error(where, message, value=weight, accepted="a finite number, at least 0")
    if not math.fsum(weight for _, _, weight in sources):
        message = "all weights are zero, so that nothing would be drawn: give one source a weight"
        weights = {name: weight for name, _, weight in sources}
        raise user_error(where, message, value=weights, accepted="at least one weight above 0")


def check_parts(batch_size: int, rank: int, world: int) -> None:
    """Rejects a batch size that ``world`` ranks cannot divide evenly."""
    if not 0 <= rank < world:
        raise ValueError(f"there is no rank {rank} of {world}")
    if batch_size % world:
        message = f"{world} ranks cannot share a batch evenly: change it, or their number"
        accepted = f"a multiple of {world}"
        raise user_error("data.batch_size", message, value=batch_size, accepted=accepted)


def check_identity(where: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Rejects a saved position that belongs to other data."""
    for key, value in here.items():
        if saved.get(key) != value:
            message = f"{key}: not as in the checkpoint; resume with the recipe and data of its run"
            raise user_error(where, message, value=value, accepted=repr(saved.get(key)))
