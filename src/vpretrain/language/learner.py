"""A causal language model as the learner: one forward pass per batch, the loss at the predicted tokens only.

Shapes: B rows, T tokens, N predicted tokens of the batch, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain import vectors
from vpretrain.contracts import Objective
from vpretrain.errors import user_error
from vpretrain.language.stream import TokenBatch
from vpretrain.language.suffix import Anatomy, Suffix, Trace
from vpretrain.language.targets import SoftTargets, soft_target_loss
from vpretrain.modes import evaluating


@dataclass
class Context:
    """What the learner made of one batch.

    Args:
        batch: the tokens.
        where: ``(row, position)``, each ``[N]`` int64: the positions whose hidden state predicts the next token.
        labels: ``[N]`` int64, the tokens predicted there.
        hidden: ``[B, T, D]`` final hidden states, with the graph to the learner.
        logits: ``[N, V]`` in the learner's dtype, with the graph to the learner.
        trace: the suffix's inputs.
    """

    batch: TokenBatch
    where: tuple[Tensor, Tensor]
    labels: Tensor
    hidden: Tensor
    logits: Tensor
    trace: Trace

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
    """

    def __init__(self, model: Any, aligned: dict[str, nn.Parameter]) -> None:
        self.model = model
        self.aligned = aligned
        self.anatomy = Anatomy.of(model)
        self.suffix = Suffix(self.anatomy, aligned)
        self._check_layout()

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def observe(self, batch: TokenBatch) -> Context:
        """One forward pass; logits are computed at the predicted tokens only (masked prompts are never projected)."""
        batch = batch.to(self.device)
        row, at = batch.predicted.nonzero(as_tuple=True)
        with self.suffix.trace() as trace:
            hidden = self._hidden(batch)
        logits = self.anatomy.head(hidden[row, at - 1])
        return Context(batch, (row, at - 1), batch.input_ids[row, at], hidden, logits, trace)

    def loss(self, context: Context, task: SoftTargets) -> Tensor:
        """Mean soft-target cross-entropy over the batch's predicted tokens (eq. 37); a float32 scalar."""
        return soft_target_loss(context.logits, task)

    def objective(self, context: Context, task: SoftTargets) -> Objective:
        """The loss as a function of S alone, dropout off."""

        def loss(parameters: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
            with evaluating(self.model):
                states = self.suffix.hidden(context.trace, parameters)[context.where]
                return soft_target_loss(self.suffix.project(states, parameters), task.with_controls(inputs))

        return Objective(task.controls(), loss)

    def token_losses(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """NLL of every predicted token, ``[N]`` float32 or wider, and the row it belongs to, ``[N]``; the graph is alive."""
        batch = batch.to(self.device)
        row, at = batch.predicted.nonzero(as_tuple=True)
        logits = vectors.wide(self.anatomy.head(self._hidden(batch)[row, at - 1]))
        return nn.functional.cross_entropy(logits, batch.input_ids[row, at], reduction="none"), row

    def stepped(self, share: float) -> None:
        """Nothing follows a step here."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: all is in the model."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def _hidden(self, batch: TokenBatch) -> Tensor:
        out = self.anatomy.backbone(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        return out.last_hidden_state

    @torch.no_grad()
    def _check_layout(self) -> None:
        """Holds the parts against the whole once, so that an unknown architecture is refused and never mistrained."""
        ids = torch.arange(8, device=self.device)[None] % self.model.config.vocab_size
        positions = torch.arange(8, device=self.device)[None]
        with evaluating(self.model):
            whole = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits
            with self.suffix.trace() as trace:
                self.anatomy.backbone(input_ids=ids, position_ids=positions, use_cache=False)
            point = {name: parameter.detach() for name, parameter in self.aligned.items()}
            parts = self.suffix.project(self.suffix.hidden(trace, point).to(whole.dtype), point)
        if not torch.allclose(whole.float(), parts.float(), rtol=2e-2, atol=2e-2 * float(whole.float().std())):
            raise user_error(
                "learner.model",
                f"{type(self.model).__name__} does more than blocks, final norm and head (a scaled or capped head, say), "
                "so its parts do not give the logits of the whole",
                accepted="decoder-only models laid out like Qwen, Llama or GPT-2",
            )
