"""Grouping of rows of different lengths into forward passes with little padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from vpretrain.system.devices import for_kind

MOST_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Maximum number of tokens in a pass, padding included, by kind of device (other kinds use
``cuda``); a longer row gets a pass of its own."""
PASS_TOKENS = {"cpu": 256, "cuda": 2048}
"""Fixed cost of a pass in tokens: this much padding is as expensive as another pass."""

ItemT = TypeVar("ItemT")


def passes(
    items: Sequence[ItemT], length: Callable[[ItemT], int], device: torch.device
) -> list[list[ItemT]]:
    """Sorts items by length and divides them into passes of the least total cost.

    The slow definition: a run of sorted items has ``len(run) * max(length)`` tokens. Of all ways to
    divide the items into runs of at most ``MOST_TOKENS`` tokens, take the one with the smallest sum
    of tokens plus ``PASS_TOKENS`` per run.

    Args:
        items: any number of items.
        length: returns the length of an item in tokens, at least 1.
        device: device of the passes.
    """
    most, fixed = (for_kind(figures, device.type) for figures in (MOST_TOKENS, PASS_TOKENS))
    items = sorted(items, key=length)
    cheapest, begins = [0], []  # for the first n items: least cost, and start of their last pass
    for end, item in enumerate(items, start=1):
        fit = range(max(0, end - max(1, most // length(item))), end)
        begin = min(fit, key=lambda begin: cheapest[begin] + (end - begin) * length(item))
        cheapest.append(cheapest[begin] + (end - begin) * length(item) + fixed)
        begins.append(begin)
    cut: list[list[ItemT]] = []
    end = len(items)
    while end:
        cut.append(items[begins[end - 1] : end])
        end = begins[end - 1]
    return cut[::-1]


def batch_tokens(lengths: Sequence[int], size: int, device: torch.device) -> int:
    """Approximate number of tokens, padding included, in the passes over a batch of ``size`` rows.

    Args:
        lengths: sorted lengths of all rows that batches are drawn from.
        size: at least 1.
        device: device of the passes.
    """
    typical = [lengths[len(lengths) * (2 * at + 1) // (2 * size)] for at in range(size) if lengths]
    return sum(len(run) * max(run) for run in passes(typical, int, device))
