"""Forward passes over rows of several lengths, with little padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from vpretrain.system.devices import for_kind

MOST_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Tokens of a pass, padding included, by kind of device (others as ``cuda``); a longer row has a
pass of its own."""
PASS_TOKENS = {"cpu": 256, "cuda": 2048}
"""What a pass costs whatever it holds, in tokens: so much padding is as dear as another pass."""

ItemT = TypeVar("ItemT")


def passes(
    items: Sequence[ItemT], length: Callable[[ItemT], int], device: torch.device
) -> list[list[ItemT]]:
    """The items, shortest first, cut where padding and passes together cost least.

    The slow definition: of all ways to cut the sorted items into runs of at most ``MOST_TOKENS``,
    a run taking ``len(run) * max(length)``, the one with the smallest sum of what they take and of
    ``PASS_TOKENS`` each.

    Args:
        items: any number.
        length: of an item, in tokens, at least 1.
        device: where they are passed over.
    """
    most, fixed = (for_kind(figures, device.type) for figures in (MOST_TOKENS, PASS_TOKENS))
    items = sorted(items, key=length)
    cheapest, begins = [0], []  # of the first n items, and where their last pass begins
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
    """Tokens that the passes over a batch of ``size`` rows take, padding included, about.

    Args:
        lengths: of all rows that batches are drawn from, sorted.
        size: at least 1.
        device: where they are passed over.
    """
    typical = [lengths[len(lengths) * (2 * at + 1) // (2 * size)] for at in range(size) if lengths]
    return sum(len(run) * max(run) for run in passes(typical, int, device))
