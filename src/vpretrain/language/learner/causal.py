"""A causal language model as the learner: one pass a batch, the loss at predicted tokens only.

Shapes: B rows, T tokens, N predicted tokens of the batch, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from vpretrain.language.data.stream import TokenBatch
from vpretrain.language.learner.head import HeadPass
from vpretrain.language.learner.head_chunks import Head
from vpretrain.language.learner.head_tied import TiedWeight, tied, tied_lookup
from vpretrain.language.learner.layout import check_layout
from vpretrain.language.learner.predictions import Predictions, WholeLogits, chunked_head
from vpretrain.language.learner.router import RouterLoss
from vpretrain.language.learner.suffix import Anatomy, DecoderSuffix, Trace
from vpretrain.language.learner.targets import (
    SoftTargets,
    expected_losses,
    one_hot,
    soft_target_loss,
)
from vpretrain.method import vectors
from vpretrain.method.roles import Learner, Objective
from vpretrain.system.contexts import computing, evaluating


@dataclass
class Context:
    """What the learner made of one batch.

    Args:
        batch: the tokens.
        where: ``(row, position)``, each ``[N]`` int64: the positions whose hidden state predicts
            the next token.
        labels: ``[N]`` int64, the tokens predicted there.
        hidden: ``[B, T, D]`` final hidden states, with the graph to the learner.
        predictions: of the predicted tokens.
        trace: the suffix's inputs.
        router_loss: of a mixture of experts, a float32 scalar with its graph; None: there is none.
        partial: whether ``where`` and ``labels`` are of a part of the predicted tokens, while
            ``predictions`` are of all of them.
    """

    batch: TokenBatch
    where: tuple[Tensor, Tensor]
    labels: Tensor
    hidden: Tensor
    predictions: Predictions
    trace: Trace
    router_loss: Tensor | None = None
    partial: bool = False

    def part(self, tokens: Tensor) -> Context:
        """The same with the predicted tokens of these indices ``[n]`` alone."""
        row, at = self.where
        where, labels = (row[tokens], at[tokens]), self.labels[tokens]
        return replace(self, where=where, labels=labels, partial=True)

    @property
    def logits(self) -> Tensor:
        """``[N, V]`` in the learner's dtype, with the graph to the learner."""
        return self.predictions.logits()

    @property
    def document(self) -> Tensor:
        """``[N]`` int64 index into ``batch.documents``: where each predicted token stands."""
        row, at = self.where
        return self.batch.document[row, at + 1]


class CausalLearner(Learner[TokenBatch, Context, SoftTargets]):
    """A ``transformers`` causal language model behind the learner role.

    Args:
        model: any decoder-only ``AutoModelForCausalLM``.
        aligned: the subset S, by the model's parameter names.
        autocast: the dtype of products in forward and backward passes of the whole model, where it
            is not the weights' own; the suffix (:meth:`objective`) always runs in float32 or wider,
            where a small perturbation shows.
        packed: whether rows of batches may hold several documents.

    Raises:
        UserError: the model is none that can be trained here (see
            :func:`~vpretrain.language.learner.layout.check_layout`).
    """

    model: Any

    def __init__(
        self,
        model: Any,
        aligned: dict[str, nn.Parameter],
        *,
        autocast: torch.dtype | None = None,
        packed: bool = True,
    ) -> None:
        self.model = model
        self.aligned = aligned
        self.autocast = autocast
        self.packed = packed
        self.anatomy = Anatomy.of(model)
        self.suffix = DecoderSuffix(self.anatomy, aligned)
        self.router_loss = RouterLoss.of(model.config)
        check_layout(self)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def forward(self, batch: TokenBatch) -> Context:
        """One forward pass; the head sees the predicted tokens only."""
        batch = batch.to(self.device)
        with self.suffix.trace() as trace:
            hidden, predictions, router_loss = self._predictions(batch)
        row, at = batch.predicted.nonzero(as_tuple=True)
        where, labels = (row, at - 1), predictions.labels
        return Context(batch, where, labels, hidden, predictions, trace, router_loss)

    def loss(self, context: Context, task: SoftTargets) -> Tensor:
        """Soft-target cross-entropy, and the router loss of a mixture of experts that asks for it;
        a float32 scalar.

        ``batch.loss_mean: example`` is eq. 37, a mean over documents of means over their predicted
        tokens; ``token`` is the mean over all predicted tokens, in which a long document counts
        more. The slow definition of eq. 37::

            for document in documents:
                for n in tokens_of[document]:
                    loss -= (mass[n] * log_p[n]).sum() / len(tokens_of[document]) / len(documents)

        No task changes the router loss, so that what is valued (:meth:`objective`) is without it.
        """
        loss = context.predictions.loss(_averaged(context, task))
        return loss if context.router_loss is None else loss + context.router_loss

    def objective(self, context: Context, task: SoftTargets) -> Objective:
        """The loss as a function of S alone, dropout off; where the head is passed over in chunks,
        so is it here.

        Where S does not reach the head it is taken to first order about the learner's S
        (:meth:`HeadPass.tangent_loss`): all directional derivatives there are the same, and no
        perturbed suffix is projected to the vocabulary.
        """
        passed = context.predictions if isinstance(context.predictions, HeadPass) else None
        tangent = None
        if passed is not None and not self.suffix.reaches_head:
            tangent = self._valued(context, passed)

        def loss(parameters: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
            shaped = _averaged(context, task.with_controls(inputs))
            with evaluating(self.model):
                states = self.suffix.hidden(context.trace, parameters)[context.where]
                if tangent is not None:
                    return tangent.tangent_loss(states, shaped)
                if passed is not None and not _tracked(parameters):
                    head = self.suffix.head(passed.head, parameters)
                    return HeadPass(states, head, context.labels).loss(shaped)
                return soft_target_loss(self.suffix.project(states, parameters), shaped)

        def here(inputs: tuple[Tensor, ...]) -> Tensor:
            shaped = _averaged(context, task.with_controls(inputs))
            log_p = context.predictions.log_p(shaped.ids)
            return expected_losses(shaped.mass, log_p).mean()

        return Objective(task.controls(), loss, here if self._passes_as_valued(context) else None)

    def _passes_as_valued(self, context: Context) -> bool:
        """Whether the learner's own pass computes what is valued, but for rounding: the same
        positions, no dropout in the suffix, no narrow dtype."""
        exact = vectors.wide(context.hidden).dtype == context.hidden.dtype and not self.autocast
        return exact and not context.partial and not self.suffix.drops_out

    def _valued(self, context: Context, passed: HeadPass) -> HeadPass:
        """The pass over the head of what is valued: the learner's own, or another one.

        Another one where a part of the batch is valued on its own, or where dropout above S made
        the learner's pass another function.
        """
        if not context.partial and not self.suffix.drops_out:
            return passed
        point = {name: vectors.wide(parameter.detach()) for name, parameter in self.aligned.items()}
        with evaluating(self.model):
            states = self.suffix.hidden(context.trace, point)[context.where]
        head = self.suffix.head(passed.head, point)
        with torch.enable_grad():
            return HeadPass(states.detach().requires_grad_(), head, context.labels)

    def token_losses(self, batch: TokenBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """NLL of every predicted token, ``[N]`` float32 or wider, and the row it belongs to,
        ``[N]``; the graph is alive.

        Args:
            batch: of any kind.
            temperature: > 0; the logits are divided by it.
        """
        batch = batch.to(self.device)
        _, predictions, _ = self._predictions(batch, temperature)
        row, labels = batch.predicted.nonzero(as_tuple=True)[0], predictions.labels
        if isinstance(predictions, WholeLogits):
            logits = vectors.wide(predictions.scores)
            return nn.functional.cross_entropy(logits, labels, reduction="none"), row
        return predictions.token_losses(one_hot(labels)), row

    def computing(self) -> AbstractContextManager[Any]:
        """The learner's precision, for whatever runs the model inside the block."""
        return computing(self.device, self.autocast)

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Final hidden states ``[B, T, D]`` of a batch on its device, with their graph."""
        return self._backbone(batch).last_hidden_state

    def _backbone(self, batch: TokenBatch) -> Any:
        options: dict[str, Any] = {}
        if self.packed:
            options["position_ids"] = batch.position_ids
        if self.router_loss is not None:
            options["output_router_logits"] = True
        return self.anatomy.backbone(input_ids=batch.input_ids, use_cache=False, **options)

    def _predictions(
        self, batch: TokenBatch, temperature: float = 1.0
    ) -> tuple[Tensor, Predictions, Tensor | None]:
        """Final hidden states ``[B, T, D]``, what the head makes of them at the predicted tokens,
        and the router loss."""
        row, at = batch.predicted.nonzero(as_tuple=True)
        labels = batch.input_ids[row, at]
        head = chunked_head(self.anatomy, len(labels), temperature)
        with self.computing():
            with self._lookup_for(head) as shared:
                out = self._backbone(batch)
            hidden, routed = out.last_hidden_state, None
            if self.router_loss is not None:
                routed = self.router_loss(out.router_logits, batch.document >= 0)
            states = hidden[row, at - 1]
            if head is not None:
                weight = None if shared is None else shared.weight
                return hidden, HeadPass(states, head, labels, weight=weight), routed
            logits = self.anatomy.finished(self.anatomy.head(states))
            scores = logits if temperature == 1 else logits / temperature
            return hidden, WholeLogits(scores, labels), routed

    def _lookup_for(self, head: Head | None) -> AbstractContextManager[TiedWeight | None]:
        """Around a pass that ``head`` is to follow: what both read as one matrix, the lookup in it
        and the head, gets one gradient."""
        table = self.model.get_input_embeddings()
        shares = head is not None and tied(table, head.weight)
        return tied_lookup(table) if shares else nullcontext()


def _averaged(context: Context, task: SoftTargets) -> SoftTargets:
    """The task whose mean over tokens is the loss: under ``loss_mean: example`` its tokens are
    weighted, the mean weight being 1, so that the head is passed over as ever."""
    if context.batch.loss_mean == "token":
        return task
    document = context.document
    counts = document.bincount(minlength=len(context.batch.documents))
    weight = len(document) / ((counts > 0).sum() * counts[document])
    return replace(task, mass=task.mass * weight.to(task.mass.dtype)[:, None])


def _tracked(parameters: Mapping[str, Tensor]) -> bool:
    """Whether their derivatives are taken in forward mode, or more than once."""
    each = parameters.values()
    return any(p.requires_grad or forward_ad.unpack_dual(p).tangent is not None for p in each)
