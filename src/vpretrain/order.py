"""Endless orders of a finite set of items, with a position that is one integer: what exact resume rests on."""

from __future__ import annotations

import hashlib

import torch


class Order:
    """The endless sequence of the indices of some items, each pass over them in an order of its own.

    Args:
        count: items, at least 1.
        key: seeds the orders, together with the number of the pass.
    """

    def __init__(self, count: int, key: str) -> None:
        if count < 1:
            raise ValueError(f"an order needs items, got {count}")
        self.count, self.key = count, key
        self._pass: tuple[int, list[int]] | None = None  # the one that is being gone through

    def __getitem__(self, number: int) -> int:
        """The index at the ``number``-th place of the sequence, from 0."""
        number_of_pass, at = divmod(number, self.count)
        if self._pass is None or self._pass[0] != number_of_pass:
            generator = torch.Generator().manual_seed(seed_of(f"{self.key}/{number_of_pass}"))
            self._pass = number_of_pass, torch.randperm(self.count, generator=generator).tolist()
        return self._pass[1][at]


def seed_of(key: str) -> int:
    """A seed in [0, 2^63) for what the key names: different keys give seeds that have nothing to do with each other."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
