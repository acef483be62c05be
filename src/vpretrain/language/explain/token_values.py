"""Values of a stream's tokens, documents and sources under the latest feedback, for ``explain``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Stream
from vpretrain.language.learner.causal import Context
from vpretrain.language.learner.targets import SoftTargets, mix
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.rules import Candidates, ClosedFormArm
from vpretrain.method.reliability import Reliability, correlation
from vpretrain.method.roles import Designer, ValueFunction, detached
from vpretrain.method.rules import anchored, standardised
from vpretrain.run.parts import Parts

STEERED_SHOWN = 6
"""Maximum number of steered tokens of a document whose candidates are listed."""
_REACH = 8
"""Number of earlier characters (or tokens of several) that a token's text may depend on."""


@dataclass(frozen=True)
class ValuedBatch:
    """Token values of one batch; all tensors are detached.

    Args:
        ids: ``[N, K]``, candidates, the true token first.
        log_p: ``[N, K]``, the learner's log probabilities of the candidates.
        each: ``[F, N, K]``, token values under each of F feedback batches.
        task: the designer's targets, ``[N, M]``.
        own: ``[N, M]``, token values of the designer's candidates.
        own_p: ``[N, M]``, the learner's probabilities of the designer's candidates.
        predicted: ``[N, M]``, values (or scores) predicted by a learned designer's network, in its
            units; None for other designers.
        document, at: ``[N]``, index into ``documents``, and the token's position in the document.
        documents: the documents of the batch.
        weight: ``[N]``, weights of the tokens in the learner's loss, with mean 1.
    """

    ids: Tensor
    log_p: Tensor
    each: Tensor
    task: SoftTargets
    own: Tensor
    own_p: Tensor
    predicted: Tensor | None
    document: Tensor
    at: Tensor
    documents: tuple[Document, ...]
    weight: Tensor

    @property
    def values(self) -> Tensor:
        """Token values ``[N, K]``, averaged over the feedback batches."""
        return self.each.mean(dim=0)


@dataclass(frozen=True)
class TaskValues:
    """V of four tasks on the same tokens, as a mean over tokens.

    Args:
        onehot, designer: one-hot targets, and those of the run's designer.
        closed_form: targets of the recipe's anchored rule on the exact values.
        bound: targets of the same rule as its temperature goes to 0, without a clip: no targets
            over these candidates with this ``gate_max`` have a higher value.
        agreement: Pearson's r of the values under two halves of the feedback; None if there is only
            one batch.
        correlation: Pearson's r of a learned designer's predictions with the exact values; None for
            other designers.
        tokens: number of tokens.
    """

    onehot: float
    designer: float
    closed_form: float
    bound: float
    agreement: float | None
    correlation: float | None
    tokens: int


@dataclass(frozen=True)
class SteeredToken:
    """One steered token: its position in the document, its candidates with the learner's
    probability p, target q and value s, and the gate."""

    at: int
    ids: list[int]
    p: list[float]
    q: list[float]
    s: list[float]
    gate: float


@dataclass(frozen=True)
class ValuedDocument:
    """One document: values and weights by position (None: not predicted), and its steered tokens in
    order of decreasing gate."""

    document: Document
    values: list[float | None]
    weights: list[float | None]
    steered: list[SteeredToken]

    @property
    def valued(self) -> list[float]:
        """The values of the predicted tokens."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float:
        """The mean value of the predicted tokens."""
        return sum(self.valued) / len(self.valued)


def valued_batches(
    parts: Parts, value_of: ValueFunction[Context], stream: Stream, count: int, documents: int
) -> Iterator[ValuedBatch]:
    """Yields valued batches until there are ``documents`` documents, without training on them."""
    seen = 0
    while seen < documents:
        context: Context = parts.learner.forward(next(stream))
        yield valued_batch(context, parts.designer, value_of, count)
        seen += len(context.batch.documents)


def valued_batch(
    context: Context, designer: Designer, value_of: ValueFunction[Context], count: int
) -> ValuedBatch:
    """Exact values of ``count`` candidates a token, and the designer's targets for the batch."""
    probe = Candidates.among(context, count)
    ids, tokens = probe.ids, len(probe.ids)
    each = tokens * torch.stack(
        [probe.values(estimate.gradient[0]) for estimate in value_of.each(context, probe)]
    )
    task: SoftTargets = detached(designer.make_task(context, value_of))
    if torch.equal(task.ids, ids[:, : task.ids.shape[1]]):
        own = each.mean(dim=0)[:, : task.ids.shape[1]]
    else:  # the designer has other candidates
        own = tokens * probe.values(value_of(context, task).gradient[0])
    predicted = designer.predicted_values(context)
    row, at = context.where
    where = context.document.cpu()
    place = context.batch.position_ids[row, at + 1].cpu()
    return ValuedBatch(
        ids,
        probe.log_p,
        each.detach(),
        task,
        own.detach(),
        context.predictions.log_p(task.ids).exp(),
        predicted,
        where,
        place,
        context.batch.documents,
        1 / probe.values(torch.ones_like(probe.mass[:, :1]))[:, 0],
    )


def task_values(batches: Sequence[ValuedBatch], recipe: LanguageRecipe) -> TaskValues:
    """V of one-hot targets, the designer's, the recipe's closed form and the bound, over all
    batches; to first order, if the alignment is not linear."""
    section = ARMS.keys_of(recipe, ClosedFormArm)
    reliability = Reliability(recipe.value.shrink, unit=recipe.value.unit)
    for batch in batches:
        reliability.update(list(batch.each))
    sums = dict.fromkeys(("onehot", "designer", "closed_form", "bound"), 0.0)
    for batch in batches:
        values, weight = batch.values.double(), batch.weight[:, None].double()
        rules = {
            "closed_form": (section.temperature, section.clip, reliability.factor),
            "bound": (1e-9, math.inf, 1.0),
        }
        for rule, (temperature, clip, factor) in rules.items():
            proposal, gate = anchored(
                factor * standardised(values),
                batch.log_p.double(),
                temperature=temperature,
                clip=clip,
                gate_max=section.gate_max,
            )
            sums[rule] += float((weight * mix(batch.ids, proposal, gate).mass * values).sum())
        sums["onehot"] += float((weight * values)[:, 0].sum())
        sums["designer"] += float((weight * batch.task.mass.double() * batch.own.double()).sum())
    tokens = sum(len(batch.ids) for batch in batches)
    pairs = [
        (batch.predicted, standardised(batch.own))
        for batch in batches
        if batch.predicted is not None
    ]
    return TaskValues(
        **{task: total / tokens for task, total in sums.items()},
        agreement=reliability.agreement,
        correlation=correlation(*(torch.cat(side) for side in zip(*pairs, strict=True)))
        if pairs
        else None,
        tokens=tokens,
    )


def documents_of(batch: ValuedBatch) -> Iterator[ValuedDocument]:
    """Yields the documents of a batch that have predicted tokens, with their values."""
    weight = batch.task.mass.sum(dim=1)
    gate = torch.where(
        weight > 0, 1 - batch.task.mass[:, 0] / weight.clamp_min(1e-12), torch.zeros_like(weight)
    )
    values = batch.values
    for index, document in enumerate(batch.documents):
        chosen = (batch.document == index).nonzero()[:, 0]
        by_place: list[float | None] = [None] * len(document.ids)
        weights: list[float | None] = [None] * len(document.ids)
        for n, at in zip(
            chosen.tolist(), batch.at[chosen.to(batch.at.device)].tolist(), strict=True
        ):
            by_place[at], weights[at] = float(values[n, 0]), float(weight[n])
        ranked = sorted(chosen.tolist(), key=lambda n: -float(gate[n]))
        steered = [
            SteeredToken(
                int(batch.at[n]),
                batch.task.ids[n].tolist(),
                batch.own_p[n].tolist(),
                (batch.task.mass[n] / weight[n]).tolist(),
                batch.own[n].tolist(),
                float(gate[n]),
            )
            for n in ranked[:STEERED_SHOWN]
            if gate[n] > 0.01
        ]
        if len(chosen):
            yield ValuedDocument(document, by_place, weights, steered)


def by_source(
    documents: Iterable[ValuedDocument],
) -> dict[str, tuple[float, list[float], int]]:
    """By source: the sum of the token values, the values, and the number of documents."""
    sources: dict[str, tuple[float, list[float], int]] = {}
    for each in documents:
        total, values, count = sources.get(name := each.document.source, (0.0, [], 0))
        sources[name] = (total + sum(each.valued), values + each.valued, count + 1)
    return sources


def spelled(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token in context; joined, they are the document's text.

    A token that ends within a character has the text ''; the token that completes the character has
    all of it.

    Args:
        tokenizer: the learner's tokenizer.
        ids: token ids of the document.
    """

    def decode(part: Sequence[int]) -> str:
        return str(
            tokenizer.decode(
                list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    # Whole characters end before the tokens `ends`. A text read from within a character would be
    # spoilt beyond it: some tokenizers decode adjacent bytes together, or not at all.
    texts, ends = [], [0]
    for at in range(len(ids)):
        start, done = ends[max(0, len(ends) - 1 - _REACH)], ends[-1]
        before, after = decode(ids[start:done]), decode(ids[start : at + 1])
        if after.endswith("\N{REPLACEMENT CHARACTER}") and at + 1 - done < 4 and at + 1 < len(ids):
            texts.append("")
            continue
        texts.append(
            after[len(before) :] if after.startswith(before) else decode(ids[done : at + 1])
        )
        ends.append(at + 1)
    return texts
