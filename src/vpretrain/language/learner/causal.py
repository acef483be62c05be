"""A causal language model as the learner: one forward pass a batch, loss at predicted tokens only.

Shapes: B rows, T tokens, N predicted tokens of the batch, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from vpretrain.method.directional import EstimatorUnsupported
from vpretrain.method.roles import Learner, Objective
from vpretrain.system.contexts import computing, evaluating


@dataclass
class Context:
    """The result of the learner's forward pass on one batch.

    Args:
        batch: the tokens.
        where: ``(row, position)``, each ``[N]`` int64: the positions whose hidden state predicts
            the next token.
        labels: ``[N]`` int64, the true tokens at the positions after ``where``.
        hidden: ``[B, T, D]`` final hidden states, with the graph to the learner.
        predictions: predictions of the N tokens.
        trace: the inputs of the suffix.
        router_loss: router loss of a mixture of experts, a float32 scalar with its graph; None if
            there is none.
        partial: whether ``where`` and ``labels`` cover only some of the predicted tokens, while
            ``predictions`` covers all of them.
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
        """A copy restricted to the predicted tokens with these indices, ``[n]`` int64."""
        row, at = self.where
        where, labels = (row[tokens], at[tokens]), self.labels[tokens]
        return replace(self, where=where, labels=labels, partial=True)

    @property
    def logits(self) -> Tensor:
        """``[N, V]`` in the learner's dtype, with the graph to the learner."""
        return self.predictions.logits()

    @property
    def document(self) -> Tensor:
        """``[N]`` int64, index into ``batch.documents`` of the document of each predicted token."""
        row, at = self.where
        return self.batch.document[row, at + 1]


WHOLE_SCORES = 2**28
"""Attention scores of a block that forward mode may make, whose kernel holds them whole: half a
gibibyte in bfloat16, some six times as much with tangents and softmax."""


class CausalLearner(Learner[TokenBatch, Context, SoftTargets]):
    """A ``transformers`` causal language model behind the learner role.

    Args:
        model: any decoder-only ``AutoModelForCausalLM``.
        aligned: the subset S, by the model's parameter names.
        autocast: autocast dtype of forward and backward passes of the whole model; None for the
            dtype of the weights. The suffix (:meth:`objective`) runs in float32 or wider, so that a
            small perturbation is not rounded away, except under forward mode.
        packed: whether rows of batches may hold several documents.

    Raises:
        UserError: the model cannot be trained here (see
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
        """Device of the model."""
        return next(self.model.parameters()).device

    def forward(self, batch: TokenBatch) -> Context:
        """Runs one forward pass, with the head at the predicted tokens only."""
        batch = batch.to(self.device)
        with self.suffix.trace() as trace:
            hidden, predictions, router_loss = self._predictions(batch)
        row, at = batch.predicted.nonzero(as_tuple=True)
        where, labels = (row, at - 1), predictions.labels
        return Context(batch, where, labels, hidden, predictions, trace, router_loss)

    def loss(self, context: Context, task: SoftTargets) -> Tensor:
        """Soft-target cross-entropy, plus the router loss if the model has one; a float32 scalar.

        ``batch.loss_mean: example`` is eq. 37, the mean over documents of the means over their
        predicted tokens; ``token`` is the mean over all predicted tokens, in which a long document
        counts more. The slow definition of eq. 37::

            for document in documents:
                for n in tokens_of[document]:
                    loss -= (mass[n] * log_p[n]).sum() / len(tokens_of[document]) / len(documents)

        :meth:`objective` leaves the router loss out, since it does not depend on the task.
        """
        loss = context.predictions.loss(_for_loss_mean(context, task))
        return loss if context.router_loss is None else loss + context.router_loss

    def objective(self, context: Context, task: SoftTargets) -> Objective:
        """The loss as a function of S alone, with dropout off.

        If the forward pass runs the head in chunks (:class:`HeadPass`), so does the objective,
        unless it is differentiated in S (forward mode, or parameters that require gradients), which
        needs whole logits. If S also does not reach the head, the loss is instead linearised around
        the learner's S (:meth:`HeadPass.tangent_loss`): all directional derivatives there are the
        same, and no perturbed suffix is projected to the vocabulary.
        """
        predictions = context.predictions
        head_pass = predictions if isinstance(predictions, HeadPass) else None
        tangent = None
        if head_pass is not None and not self.suffix.reaches_head:
            tangent = self._objective_pass(context, head_pass)

        def loss(parameters: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
            weighted = _for_loss_mean(context, task.with_controls(inputs))
            with evaluating(self.model):
                states = self.suffix.hidden(context.trace, parameters)[context.where]
                if tangent is not None:
                    return tangent.tangent_loss(states, weighted)
                if head_pass is not None and not _tracked(parameters):
                    head = self.suffix.head(head_pass.head, parameters)
                    return HeadPass(states, head, context.labels).loss(weighted)
                return soft_target_loss(self.suffix.project(states, parameters), weighted)

        def here(inputs: tuple[Tensor, ...]) -> Tensor:
            weighted = _for_loss_mean(context, task.with_controls(inputs))
            log_p = context.predictions.log_p(weighted.ids)
            return expected_losses(weighted.mass, log_p).mean()

        return Objective(
            task.controls(),
            loss,
            here if self._equals_objective(context) else None,
            None if self.suffix.reaches_head else self._narrow(context),
        )

    def _equals_objective(self, context: Context) -> bool:
        """Whether the learner's own forward pass equals the objective up to rounding: same
        positions, no dropout in the suffix, no narrow dtype."""
        wide = self._narrow(context) is None
        return wide and not context.partial and not self.suffix.drops_out

    def _narrow(self, context: Context) -> Callable[[], AbstractContextManager[Any]] | None:
        """The arithmetic of the learner's forward pass if it is in a narrow dtype.

        Some batches it does not serve. Entering it raises then, since processes may have others.
        """
        dtype = self.autocast or context.hidden.dtype
        if torch.promote_types(dtype, torch.float32) == dtype:
            return None
        rows, tokens = context.batch.input_ids.shape
        heads = getattr(self.model.config.get_text_config(), "num_attention_heads", 1)

        def narrow() -> AbstractContextManager[Any]:
            if not isinstance(context.predictions, HeadPass):
                raise EstimatorUnsupported("logits as a whole would be as coarse as the dtype")
            if rows * heads * tokens**2 > WHOLE_SCORES:
                raise EstimatorUnsupported("forward mode would make too many attention scores")
            return computing(self.device, dtype)

        return narrow

    def _objective_pass(self, context: Context, head_pass: HeadPass) -> HeadPass:
        """The head pass of the objective at the learner's S.

        This is the learner's own pass, unless only a part of the batch is valued, or dropout in the
        suffix made the learner's pass a different function.
        """
        if not context.partial and not self.suffix.drops_out:
            return head_pass
        point = {name: vectors.wide(parameter.detach()) for name, parameter in self.aligned.items()}
        with evaluating(self.model):
            states = self.suffix.hidden(context.trace, point)[context.where]
        head = self.suffix.head(head_pass.head, point)
        with torch.enable_grad():
            return HeadPass(states.detach().requires_grad_(), head, context.labels)

    def token_losses(self, batch: TokenBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """NLL of every predicted token, ``[N]`` float32 or wider with its graph, and the index of
        its row, ``[N]`` int64.

        Args:
            batch: a packed or padded batch.
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
        """A context in which the model runs at the learner's precision."""
        return computing(self.device, self.autocast)

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Final hidden states ``[B, T, D]`` of a batch on the model's device, with their graph."""
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
        """Final hidden states ``[B, T, D]``, the head's predictions, and the router loss."""
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
        """A context for the backbone's pass before ``head``. If the embedding and the head share
        one matrix, both uses get a single gradient."""
        table = self.model.get_input_embeddings()
        shares = head is not None and tied(table, head.weight)
        return tied_lookup(table) if shares else nullcontext()


def _for_loss_mean(context: Context, task: SoftTargets) -> SoftTargets:
    """The task with mass weighted such that the mean over tokens is the loss of ``loss_mean``.

    Under ``example`` the weights have mean 1; the head needs no change.
    """
    if context.batch.loss_mean == "token":
        return task
    document = context.document
    counts = document.bincount(minlength=len(context.batch.documents))
    weight = len(document) / ((counts > 0).sum() * counts[document])
    return replace(task, mass=task.mass * weight.to(task.mass.dtype)[:, None])


def _tracked(parameters: Mapping[str, Tensor]) -> bool:
    """Whether parameters require gradients or carry forward-mode tangents."""
    each = parameters.values()
    return any(p.requires_grad or forward_ad.unpack_dual(p).tangent is not None for p in each)
