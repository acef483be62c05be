"""A causal language model as the learner: one forward pass per batch, the loss at the predicted
tokens only.

Shapes: B rows, T tokens, N predicted tokens of the batch, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from vpretrain.language.data.stream import TokenBatch
from vpretrain.language.learner.head import HeadPass
from vpretrain.language.learner.head_tied import TiedGradient, tied, tied_lookup
from vpretrain.language.learner.predictions import Predictions, WholeLogits, chunked_head
from vpretrain.language.learner.suffix import Anatomy, DecoderSuffix, Trace
from vpretrain.language.learner.targets import SoftTargets, one_hot, soft_target_loss
from vpretrain.method import vectors
from vpretrain.method.roles import Objective
from vpretrain.system.contexts import computing, evaluating
from vpretrain.system.errors import UserError, user_error
from vpretrain.system.memory import out_of_memory


@dataclass
class Context:
    """What the learner made of one batch.

    Args:
        batch: the tokens.
        where: ``(row, position)``, each ``[N]`` int64: the positions whose hidden state predicts
            the next token.
        labels: ``[N]`` int64, the tokens predicted there.
        hidden: ``[B, T, D]`` final hidden states, with the graph to the learner.
        predictions: what it says of the predicted tokens.
        trace: the suffix's inputs.
    """

    batch: TokenBatch
    where: tuple[Tensor, Tensor]
    labels: Tensor
    hidden: Tensor
    predictions: Predictions
    trace: Trace

    @property
    def logits(self) -> Tensor:
        """``[N, V]`` in the learner's dtype, with the graph to the learner; made anew where they
        are not held.
        """
        return self.predictions.logits()

    @property
    def document(self) -> Tensor:
        """``[N]`` int64 index into ``batch.documents``: where each predicted token stands."""
        row, at = self.where
        return self.batch.document[row, at + 1]


class CausalLearner:
    """A ``transformers`` causal language model behind the learner role.

    Args:
        model: any decoder-only ``AutoModelForCausalLM``.
        aligned: the subset S, by the model's parameter names.
        autocast: the dtype of products in forward and backward passes of the whole model, where it
            is not the weights' own; the suffix (:meth:`objective`) always runs in float32 or wider,
            where a small perturbation shows.

    Raises:
        UserError: the model is none that can be trained here (see :meth:`_check_layout`).
    """

    def __init__(
        self, model: Any, aligned: dict[str, nn.Parameter], *, autocast: torch.dtype | None = None
    ) -> None:
        self.model = model
        self.aligned = aligned
        self.autocast = autocast
        self.anatomy = Anatomy.of(model)
        self.suffix = DecoderSuffix(self.anatomy, aligned)
        self._check_layout()

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def forward(self, batch: TokenBatch) -> Context:
        """One forward pass; the head sees the predicted tokens only (masked prompts are never
        projected).
        """
        batch = batch.to(self.device)
        with self.suffix.trace() as trace:
            hidden, predictions = self._predictions(batch)
        row, at = batch.predicted.nonzero(as_tuple=True)
        return Context(batch, (row, at - 1), predictions.labels, hidden, predictions, trace)

    def loss(self, context: Context, task: SoftTargets) -> Tensor:
        """Mean soft-target cross-entropy over the batch's predicted tokens (eq. 37); a float32
        scalar.
        """
        return context.predictions.loss(task)

    def objective(self, context: Context, task: SoftTargets) -> Objective:
        """The loss as a function of S alone, dropout off; where the head is passed over in chunks,
        so is it here.

        Where S does not reach the head it is taken to first order about the learner's S
        (:meth:`HeadPass.tangent_loss`): all directional derivatives there are the same, and no
        perturbed suffix is projected to the vocabulary.
        """
        passed = context.predictions if isinstance(context.predictions, HeadPass) else None
        tangent = (
            None if passed is None or self.suffix.reaches_head else self._valued(context, passed)
        )

        def loss(parameters: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
            shaped = task.with_controls(inputs)
            with evaluating(self.model):
                states = self.suffix.hidden(context.trace, parameters)[context.where]
                if tangent is not None:
                    return tangent.tangent_loss(states, shaped)
                if passed is not None and not _tracked(parameters):
                    return HeadPass(
                        states, self.suffix.head(passed.head, parameters), context.labels
                    ).loss(shaped)
                return soft_target_loss(self.suffix.project(states, parameters), shaped)

        return Objective(task.controls(), loss)

    def _valued(self, context: Context, passed: HeadPass) -> HeadPass:
        """The pass over the head of what is valued: the learner's own, or another one.

        Another one where a part of the batch is valued on its own, or where dropout above S made
        the learner's pass another function.
        """
        if passed.labels is context.labels and not self.suffix.drops_out:
            return passed
        point = {name: vectors.wide(parameter.detach()) for name, parameter in self.aligned.items()}
        with evaluating(self.model):
            states = self.suffix.hidden(context.trace, point)[context.where]
        with torch.enable_grad():
            return HeadPass(
                states.detach().requires_grad_(),
                self.suffix.head(passed.head, point),
                context.labels,
            )

    def token_losses(self, batch: TokenBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """NLL of every predicted token, ``[N]`` float32 or wider, and the row it belongs to,
        ``[N]``; the graph is alive.

        Args:
            batch: of any kind.
            temperature: > 0; the logits are divided by it.
        """
        _, predictions = self._predictions(batch.to(self.device), temperature)
        row, _ = batch.predicted.nonzero(as_tuple=True)
        labels = predictions.labels
        if isinstance(predictions, WholeLogits):
            logits = vectors.wide(predictions.scores)
            return nn.functional.cross_entropy(logits, labels, reduction="none"), row.to(
                labels.device
            )
        return predictions.token_losses(one_hot(labels)), row.to(labels.device)

    def stepped(self, fraction: float) -> None:
        """Nothing follows a step here."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def computing(self) -> AbstractContextManager[Any]:
        """The learner's precision, for whatever runs the model inside the block."""
        return computing(self.device, self.autocast)

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Final hidden states ``[B, T, D]`` of a batch on the model's device, with the graph to the
        learner.
        """
        out = self.anatomy.backbone(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        )
        return out.last_hidden_state

    def _predictions(
        self, batch: TokenBatch, temperature: float = 1.0
    ) -> tuple[Tensor, Predictions]:
        """Final hidden states ``[B, T, D]``, and what the head makes of them at the predicted
        tokens.
        """
        row, at = batch.predicted.nonzero(as_tuple=True)
        labels = batch.input_ids[row, at]
        head, table = (
            chunked_head(self.anatomy, len(labels), temperature),
            self.model.get_input_embeddings(),
        )
        shared = TiedGradient() if head is not None and tied(table, head.weight) else None
        with self.computing():
            with nullcontext() if shared is None else tied_lookup(table, shared):
                hidden = self.hidden(batch)
            states = hidden[row, at - 1]
            if head is not None:
                return hidden, HeadPass(states, head, labels, tied=shared)
            logits = self.anatomy.finished(self.anatomy.head(states))
            return hidden, WholeLogits(logits if temperature == 1 else logits / temperature, labels)

    @torch.no_grad()
    def _check_layout(self) -> None:
        """Tries what training relies on, so that an architecture that breaks it is refused and
        never mistrained.

        The parts give the logits of the whole, no token sees a later one, and none sees another
        document of its row.
        """
        config, device = self.model.config, self.device
        ids = torch.arange(8, device=device)[None] % config.vocab_size
        apart = torch.arange(8, device=device)[None] % 4  # two documents of four tokens

        def logits(ids: Tensor, positions: Tensor) -> Tensor:
            return self.model(input_ids=ids, position_ids=positions, use_cache=False).logits

        def refused(what: str, accepted: str) -> UserError:
            return user_error(
                "learner.model", f"{type(self.model).__name__} {what}", accepted=accepted
            )

        decoders = "decoder-only models laid out like Qwen, Llama, Gemma or GPT-2"
        with evaluating(self.model):
            try:
                whole = logits(ids, apart)
            except TypeError:
                raise refused(
                    "takes no position ids, by which packed documents are told apart", decoders
                ) from None
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                # sizes that can be built and do not go together: more key heads than heads, say
                said = str(error).splitlines()[0][:200]
                raise refused(
                    f"cannot run: {said}", "a configuration whose sizes go together"
                ) from error
            with self.suffix.trace() as trace:
                self.anatomy.backbone(input_ids=ids, position_ids=apart, use_cache=False)
            point = {name: parameter.detach() for name, parameter in self.aligned.items()}
            parts = self.suffix.project(self.suffix.hidden(trace, point).to(whole.dtype), point)
            alone = logits(ids[:, 4:], apart[:, 4:])
            other = ids.clone()
            other[:, -1] = (other[:, -1] + 1) % config.vocab_size
            later = logits(other, apart)[:, :-1]
        if not _close(whole[:, :-1], later):
            raise refused(
                "lets tokens see later ones, so next-token prediction would teach it to copy",
                decoders,
            )
        if not _close(whole[:, 4:], alone):
            raise refused(
                "lets a token see other documents of its packed row",
                "models that read position_ids apart",
            )
        if not _close(whole, parts):
            raise refused(
                "does more than blocks, final norm, head, scale and soft cap, so its parts do "
                "not give the logits of the "
                "whole",
                decoders,
            )


def _tracked(parameters: Mapping[str, Tensor]) -> bool:
    """Whether derivatives of more than first order, or in forward mode, are taken with respect to
    them.
    """
    return any(
        p.requires_grad or forward_ad.unpack_dual(p).tangent is not None
        for p in parameters.values()
    )


def _close(whole: Tensor, found: Tensor) -> bool:
    """Equal but for rounding in the dtype of the whole."""
    tolerance = 2e-2 if whole.dtype.itemsize < 4 else 1e-3
    whole, found = whole.float(), found.float()
    return torch.allclose(whole, found, rtol=tolerance, atol=tolerance * float(whole.std()))
