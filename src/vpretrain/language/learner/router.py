"""The load-balancing loss of a mixture of experts, if the model's configuration enables it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpretrain.system.errors import user_error


@dataclass(frozen=True)
class RouterLoss:
    """The load-balancing loss of ``transformers`` (Switch Transformer, eq. 4 to 6), which keeps the
    router from sending all tokens to a few experts.

    Args:
        experts: E, number of experts.
        chosen: k, number of experts per token.
        weight: weight of this loss relative to the prediction loss.
    """

    experts: int
    chosen: int
    weight: float

    @classmethod
    def of(cls, config: Any) -> RouterLoss | None:
        """The router loss of a configuration; None unless it sets ``output_router_logits``.

        Raises:
            UserError: the configuration sets it, but its loss is not supported here.
        """
        if not getattr(config, "output_router_logits", False):
            return None
        experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
        chosen = getattr(config, "num_experts_per_tok", None)
        weight = getattr(config, "router_aux_loss_coef", None)
        if not experts or not chosen or weight is None:
            raise user_error(
                "learner.model",
                f"its configuration asks for a router loss, and that of {config.model_type} is not "
                "known here; set output_router_logits to false in config.json to train without",
                value="output_router_logits: true",
                accepted="models with router_aux_loss_coef (Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE)",
            )
        return cls(experts, chosen, weight)

    def __call__(self, logits: Sequence[Tensor], counted: Tensor) -> Tensor:
        """``weight * E * sum_e (fraction of tokens sent to e) * (mean probability of e)``, a
        float32 scalar; gradients flow through the probabilities.

        Args:
            logits: router logits of each layer, ``[B * T, E]``.
            counted: ``[B, T]`` bool; False on padding.
        """
        kept = counted.flatten()
        probabilities = torch.cat([layer[kept].softmax(dim=-1) for layer in logits]).float()
        sent = torch.zeros_like(probabilities)
        sent.scatter_(1, probabilities.topk(self.chosen, dim=-1).indices, 1)
        balance = (sent.mean(dim=0) * probabilities.mean(dim=0)).sum()
        return self.weight * self.experts * balance
