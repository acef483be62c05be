"""Rows of several lengths in few passes with little padding."""

import random
import statistics
from itertools import combinations, pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpretrain.language.feedback import passes as module
from vpretrain.language.feedback.passes import (
    MOST_TOKENS,
    PASS_TOKENS,
    batch_tokens,
    passes,
)

CPU = torch.device("cpu")


def cost(cut, length):
    return sum(len(run) * max(map(length, run)) + PASS_TOKENS["cpu"] for run in cut)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 1500), min_size=1, max_size=7))
def test_no_way_to_cut_them_costs_less(lengths):
    result = passes(lengths, lambda length: length, CPU)
    ordered = sorted(lengths)
    assert [length for run in result for length in run] == ordered
    ways = []
    for count in range(len(ordered)):
        for cuts in combinations(range(1, len(ordered)), count):
            edges = [0, *cuts, len(ordered)]
            way = [ordered[a:b] for a, b in pairwise(edges)]
            if all(len(run) == 1 or len(run) * run[-1] <= MOST_TOKENS["cpu"] for run in way):
                ways.append(cost(way, int))
    assert cost(result, int) == min(ways)


def test_short_rows_stand_together_and_a_row_that_is_too_long_alone():
    assert [len(run) for run in passes([30] * 64, int, CPU)] == [64]
    assert [len(run) for run in passes([5000, 40, 6000], int, CPU)] == [1, 1, 1]
    assert passes([], int, CPU) == []


def test_half_of_the_padding_of_real_lengths_is_gone():
    """Lengths of word problems: a long tail, which pads all that stand beside it."""
    rows = torch.distributions.LogNormal(5.1, 0.4)
    torch.manual_seed(0)
    lengths = rows.sample((16,)).int().tolist()
    together = len(lengths) * max(lengths)
    cut = sum(len(run) * max(run) for run in passes(lengths, int, CPU))
    assert cut - sum(lengths) < (together - sum(lengths)) / 2


def test_a_device_that_passes_cost_more_on_takes_fewer(monkeypatch):
    lengths = list(range(100, 500, 25))
    here, there = (passes(lengths, int, torch.device(kind)) for kind in ("cpu", "cuda"))
    assert len(there) < len(here)
    monkeypatch.setitem(module.PASS_TOKENS, "cpu", 0)
    assert len(passes(lengths, int, CPU)) == len(lengths)


def test_what_a_batch_takes_is_told_from_all_lengths():
    lengths = sorted(torch.distributions.LogNormal(5.1, 0.4).sample((1000,)).int().tolist())
    rng = random.Random(0)
    drawn = [
        sum(len(run) * max(run) for run in passes(rng.sample(lengths, 16), int, CPU))
        for _ in range(100)
    ]
    assert abs(batch_tokens(lengths, 16, CPU) / statistics.fmean(drawn) - 1) < 0.1
    assert batch_tokens([], 16, CPU) == 0
