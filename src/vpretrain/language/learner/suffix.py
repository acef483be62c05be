"""The parts of a causal language model, and the suffix of it that depends on S."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vpretrain.language.learner.head_chunks import Head
from vpretrain.models.suffix import Call, Suffix, choose_aligned, first_output, map_tensors
from vpretrain.system.errors import user_error

DECODERS = "decoder-only models laid out like Qwen, Llama, Gemma or GPT-2"
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "embedding_norm")


@dataclass
class Anatomy:
    """The parts of a ``transformers`` causal language model.

    Args:
        backbone: the decoder without the head.
        blocks: the transformer blocks, in order.
        norm: the final norm, after the last block.
        head: the projection to the vocabulary.
        scale: factor of the head's scores (Cohere, Granite, Falcon-H1; 1 elsewhere).
        cap: soft cap of the scaled scores, ``cap tanh(scores / cap)`` (Gemma 2); None for none.
    """

    backbone: nn.Module
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Anatomy:
        """Finds the parts of a model; ``UserError`` if they cannot be identified."""
        backbone, head = model.base_model, model.get_output_embeddings()
        children = dict(backbone.named_children())
        lists = [
            each for each in children.values() if isinstance(each, nn.ModuleList) and len(each)
        ]
        norms = [child for name, child in children.items() if name in _FINAL_NORMS]
        if len(lists) != 1 or len(norms) != 1 or head is None:
            message = f"{type(model).__name__} does not have one list of blocks, one final norm and"
            message += " one head, so its suffix cannot be run on its own"
            if model.config.get_text_config() is not model.config:
                message += "; of a model of images and text load the text part alone"
                message += " (Gemma3ForCausalLM, say)"
            raise user_error("learner.model", message, accepted=DECODERS)
        config = model.config
        factors = (getattr(config, name, None) for name in ("logit_scale", "lm_head_multiplier"))
        scale = next(filter(None, factors), 1) / (getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(backbone, lists[0], norms[0], head, scale, cap)

    def finished(self, scores: Tensor) -> Tensor:
        """Logits from the head's scores (scale, then soft cap), same shape and dtype; gradients
        flow."""
        if self.scale != 1:
            scores = scores * self.scale
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap


def aligned_parameters(
    model: nn.Module,
    anatomy: Anatomy,
    *,
    blocks: int | Literal["all"],
    patterns: list[str],
    norm: bool = True,
    head: bool = True,
) -> dict[str, nn.Parameter]:
    """The subset S (see :func:`vpretrain.models.suffix.choose_aligned`).

    S is the last ``blocks`` (``all``: all parameters) with, optionally, the final ``norm`` and an
    untied ``head`` (the paper's S is the last two layers without either), or the parameters whose
    names match shell ``patterns``. Under LoRA it is the adapters of the last blocks. A head tied to
    the input embedding would draw the whole network into the suffix; only patterns can select it,
    by either of its names.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    also = list(anatomy.norm.parameters()) if norm else []
    if head:
        below = {id(p) for p in anatomy.backbone.parameters()}
        also += [p for p in anatomy.head.parameters() if id(p) not in below]
    return choose_aligned(model, trained, anatomy.blocks, last=blocks, patterns=patterns, also=also)


Trace = list[Call]
"""Detached arguments of each module of the suffix in one forward pass."""


class DecoderSuffix(Suffix):
    """The suffix of a causal language model, and its head as a function of S.

    Args:
        anatomy: the model's parts.
        aligned: S.
    """

    def __init__(self, anatomy: Anatomy, aligned: Mapping[str, nn.Parameter]) -> None:
        parts = (anatomy.backbone, anatomy.blocks, anatomy.norm)
        super().__init__(*parts, aligned, beyond=[anatomy.head])
        self.anatomy = anatomy
        self.reaches_head = any(id(p) in self.names for p in anatomy.head.parameters())
        """Whether S contains a parameter of the head (also one tied to the input embedding)."""

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """Records the arguments of every module of the suffix inside the block."""
        trace: Trace = []

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            trace.append(map_tensors((args, kwargs), Tensor.detach))

        hooks = [
            module.register_forward_pre_hook(record, with_kwargs=True) for module in self.modules
        ]
        try:
            yield trace
        finally:
            for hook in hooks:
                hook.remove()

    def hidden(self, trace: Trace, parameters: Mapping[str, Tensor]) -> Tensor:
        """Final hidden states ``[B, T, D]`` as a function of S, in the dtype of ``parameters``."""
        if self.whole:
            dtype = next(iter(parameters.values())).dtype
            return first_output(self.call(self.modules[0], parameters, dtype, *trace[0]))
        # Architectures differ in whether a block gets its hidden states by position or by name.
        states = [args[0] if args else kwargs["hidden_states"] for args, kwargs in trace]
        rest: list[Call] = [
            (args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"})
            for args, kwargs in trace
        ]
        return self.run(states[0], rest, parameters)

    def project(self, states: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Logits of final hidden states as a function of S."""
        scores = self.call(self.anatomy.head, parameters, states.dtype, (states,), {})
        return self.anatomy.finished(scores)

    def head(self, head: Head, parameters: Mapping[str, Tensor]) -> Head:
        """The head with S replaced by ``parameters``, in their dtype and without a graph to the
        learner."""
        dtype = next(iter(parameters.values())).dtype
        bias = None if head.bias is None else self.value(head.bias, parameters, dtype)
        return replace(head, weight=self.value(head.weight, parameters, dtype), bias=bias)
