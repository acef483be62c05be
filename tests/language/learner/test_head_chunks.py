"""Passes over the vocabulary in chunks."""

import torch

from tests.language.learner.slow_head import mass_of, next_batches
from vpretrain.language.learner.head import HeadPass
from vpretrain.language.learner.head_chunks import Head
from vpretrain.language.learner.targets import SoftTargets


def test_never_more_logits_than_a_chunk(monkeypatch):
    sizes = []
    mm = torch.mm

    def noted(a, b, **rest):
        sizes.append(max(a.numel(), mm(a, b).numel()))
        return mm(a, b, **rest)

    monkeypatch.setattr(torch, "mm", noted)
    hidden, weight, _, labels = next_batches(50, 200, width=4)
    made = HeadPass(hidden, Head(weight), labels, rows=7)
    made.loss(SoftTargets(made.candidates(5), mass_of(50, 5, weighted=True))).backward()
    assert sizes and max(sizes) <= 7 * 200
