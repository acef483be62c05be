"""Held-out measures of a language learner: NLL per solution token, and exact match of the greedy
answer (Pass@1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vpretrain.language.data.batch import left_padded, padded
from vpretrain.language.data.layout import Layout
from vpretrain.language.data.rows import Document, Row
from vpretrain.language.evaluation.extraction import plain_match
from vpretrain.language.evaluation.generation import check_positions, own_generation
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.run.scores import Score, score
from vpretrain.system.contexts import evaluating
from vpretrain.system.phases import EVERY_SECONDS, phase


@torch.no_grad()
def negative_log_likelihood(
    learner: CausalLearner, documents: Sequence[Document], *, batch_size: int, pad_id: int
) -> Score:
    """Mean NLL in nats over all predicted tokens of the documents (see
    :func:`mean_over_tokens`)."""
    totals, counts = torch.zeros(2, len(documents), dtype=torch.float64)
    with evaluating(learner.model):
        # Longest first: the rows of a batch then have similar lengths, and a batch that does not
        # fit into memory fails at once.
        ordered = sorted(range(len(documents)), key=lambda at: -len(documents[at].ids))
        for chunk in _batches(ordered, batch_size, "measuring the held-out NLL, batches"):
            losses, row = learner.token_losses(
                padded([documents[at] for at in chunk], pad_id=pad_id)
            )
            places = torch.tensor(chunk)[row.cpu()]
            totals.index_add_(0, places, losses.double().cpu())
            counts.index_add_(0, places, torch.ones_like(losses, dtype=torch.float64).cpu())
    return mean_over_tokens(totals, counts)


def mean_over_tokens(totals: Tensor, counts: Tensor) -> Score:
    """The mean over all tokens of a measure given as a sum for each document; lower is better.

    The standard error is that of a ratio of sums over documents, since tokens of one document are
    not independent.

    Args:
        totals: ``[documents]`` float64, sum of the measure over each document's tokens.
        counts: ``[documents]`` float64, number of tokens of each document.
    """
    value = float(totals.sum() / counts.sum())
    deviation = totals - value * counts
    stderr = float(deviation.square().sum().sqrt() / counts.sum())
    # Scaled so that the mean over items is the mean over tokens.
    items = tuple((totals * len(totals) / counts.sum()).tolist())
    return Score(value, stderr, int(counts.sum()), higher_is_better=False, items=items)


@torch.no_grad()
def greedy_exact_match(
    learner: CausalLearner,
    layout: Layout,
    rows: Sequence[Row],
    *,
    pattern: str,
    new_tokens: int,
    batch_size: int,
) -> Score:
    """The fraction of rows whose greedy answer equals the solution's (see
    :func:`~vpretrain.language.evaluation.extraction.plain_match`); prompts end as in training, and
    the checkpoint's generation settings are set aside (:func:`own_generation`).

    Raises:
        UserError: see :func:`check_positions`, and :meth:`Layout.prompts`.
    """
    tokenizer = layout.tokenizer
    prompts = layout.prompts(rows)
    longest = max(map(len, prompts), default=0)
    check_positions(learner.model, longest, new_tokens, "evaluate.new_tokens")
    right = [0.0] * len(rows)
    with evaluating(learner.model), own_generation(learner.model, tokenizer):
        ordered = sorted(range(len(rows)), key=lambda at: -len(rows[at].prompt))
        for chunk in _batches(ordered, batch_size, "answering held-out prompts, batches"):
            pad = layout.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            ids, mask = left_padded(
                [prompts[at] for at in chunk], pad_id=pad, device=learner.device
            )
            out = learner.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=new_tokens,
                pad_token_id=pad,
            )
            texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            for at, text in zip(chunk, texts, strict=True):
                expected = plain_match(rows[at].text, pattern)
                right[at] = float(expected is not None and plain_match(text, pattern) == expected)
    return score(torch.tensor(right), higher_is_better=True)


def _batches(items: Sequence[Any], size: int, name: str) -> Iterator[Sequence[Any]]:
    """Batches of the items, with progress reports if they take long."""
    starts = range(0, len(items), size)
    batches = (items[start : start + size] for start in starts)
    return phase(name, batches, len(starts), first_seconds=EVERY_SECONDS)
