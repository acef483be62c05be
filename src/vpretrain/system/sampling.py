"""Endless orders of finite sets of items, and which set is next, with positions that are integers:
what exact resume rests on."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence

import torch

from vpretrain.system.errors import user_error


class Order:
    """The endless sequence of the indices of some items, each pass over them in an order of its
    own.

    Args:
        count: items, at least 1.
        key: seeds the orders, together with the number of the pass.
    """

    def __init__(self, count: int, key: str) -> None:
        if count < 1:
            raise ValueError(f"an order needs items, got {count}")
        self.count, self.key = count, key
        self._passes: dict[int, array[int]] = {}

    def __getitem__(self, number: int) -> int:
        """The index at the ``number``-th place of the sequence, from 0."""
        number_of_pass, at = divmod(number, self.count)
        if number_of_pass not in self._passes:
            # Two at most: who looks ahead goes to and fro between the last and the next.
            self._passes = {
                n: order for n, order in self._passes.items() if abs(n - number_of_pass) == 1
            }
            generator = torch.Generator().manual_seed(seed_of(f"{self.key}/{number_of_pass}"))
            order = torch.randperm(self.count, generator=generator)
            self._passes[number_of_pass] = array("i", order.int().numpy().tobytes())
        return self._passes[number_of_pass][at]


def seed_of(key: str) -> int:
    """A seed in [0, 2^63) for what the key names: different keys give seeds that have nothing to do
    with each other."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def fractions(sources: Sequence[tuple[str, int, float]], items: str, fix: str) -> list[float]:
    """The share of each source of a stream, from its name, how many items it holds, and its weight.

    Args:
        sources: ``(name, count, weight)`` of each.
        items: what they hold, in messages: ``documents``.
        fix: what to do about a source that holds none.

    Raises:
        UserError: no source, two of one name, one without items or with a weight that cannot be, or
            no weight above zero.
    """
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
    total = math.fsum(weight for _, _, weight in sources)
    if not total:
        message = "all weights are zero, so that nothing would be drawn: give one source a weight"
        weights = {name: weight for name, _, weight in sources}
        raise user_error(where, message, value=weights, accepted="at least one weight above 0")
    return [weight / total for _, _, weight in sources]


def lagging(fractions: Sequence[float], drawn: Sequence[int]) -> int:
    """Which source gives the next item: the one that lags most behind its share (the first of
    equals).

    So shares hold in every stretch of the stream.

    Args:
        fractions: of each source, summing to 1.
        drawn: how many items each has given.
    """
    count = sum(drawn) + 1
    lags = [fraction * count - given for fraction, given in zip(fractions, drawn, strict=True)]
    return max(
        (source for source, fraction in enumerate(fractions) if fraction > 0), key=lags.__getitem__
    )
