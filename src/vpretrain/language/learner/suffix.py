"""The part of a causal language model that depends on the aligned parameters, run again from where
it begins.

Everything below the first aligned block is the same for ``g_pre``, for both perturbed losses and
for every direction, so a context keeps that block's input and only the blocks above it, the final
norm and the head are repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vpretrain.language.learner.head import Head
from vpretrain.system.errors import Problem, UserError, abbreviated, user_error


@dataclass
class Anatomy:
    """Where a ``transformers`` causal language model keeps its parts.

    Args:
        backbone: the decoder without the head.
        blocks: its transformer blocks, in order.
        norm: what runs after the last block.
        head: the projection to the vocabulary.
        scale: what its scores are multiplied by (Cohere, Granite; 1 elsewhere).
        cap: where they are bounded, ``cap tanh(scores / cap)`` (Gemma 2 and later); None: nowhere.
    """

    backbone: nn.Module
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Anatomy:
        """Finds the parts; a model whose parts cannot be told is a
        :class:`~vpretrain.system.errors.UserError`.
        """
        backbone, head = model.base_model, model.get_output_embeddings()
        lists = [
            module
            for module in backbone.children()
            if isinstance(module, nn.ModuleList) and len(module)
        ]
        norms = [
            m
            for name, m in backbone.named_children()
            if name in ("norm", "ln_f", "final_layer_norm", "final_layernorm")
        ]
        if len(lists) != 1 or len(norms) != 1 or head is None:
            raise user_error(
                "learner.model",
                f"{type(model).__name__} does not have one list of blocks, one final norm and "
                "one head, "
                "so its suffix cannot be run on its own",
                accepted="decoder-only models laid out like Qwen, Llama, Gemma or GPT-2",
            )
        config = model.config
        scale = getattr(config, "logit_scale", None) or 1 / (
            getattr(config, "logits_scaling", None) or 1
        )
        return cls(
            backbone,
            lists[0],
            norms[0],
            head,
            scale,
            getattr(config, "final_logit_softcapping", None),
        )

    def finished(self, scores: Tensor) -> Tensor:
        """Logits from what the head projects, same shape and dtype; gradients flow."""
        if self.scale != 1:
            scores = scores * self.scale
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap


def aligned_parameters(
    model: nn.Module, anatomy: Anatomy, *, blocks: int | Literal["all"], patterns: list[str]
) -> dict[str, nn.Parameter]:
    """The subset S: the last ``blocks`` blocks with final norm and head, everything, or what
    matches ``patterns``.

    Only parameters that train belong to S: under LoRA it is the adapters of these blocks. A head
    that is tied to the input embedding is left out of "last blocks", since it would drag the whole
    network below into the suffix; chosen by either of its names, it is in S once.

    Args:
        model: the causal language model.
        anatomy: its parts.
        blocks: how many of the last blocks, or ``all`` parameters of the model.
        patterns: shell patterns over parameter names; they take the place of ``blocks`` when given.

    Returns:
        The parameters by the model's names for them, in the model's order; at least one.

    Raises:
        UserError: a pattern matches no parameter that trains, none of the blocks' parameters
            trains, or there are fewer blocks than asked for.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if patterns:
        return _matching(model, trainable, patterns)
    if blocks == "all":
        return trainable
    if not 1 <= blocks <= len(anatomy.blocks):
        raise user_error(
            "learner.aligned_blocks",
            "the model does not have so many blocks",
            value=blocks,
            accepted=f"1 to {len(anatomy.blocks)}, or all",
        )
    below = {id(p) for p in anatomy.backbone.parameters()}
    members = {
        id(p) for module in (*anatomy.blocks[-blocks:], anatomy.norm) for p in module.parameters()
    }
    members |= {id(p) for p in anatomy.head.parameters() if id(p) not in below}
    chosen = {name: p for name, p in trainable.items() if id(p) in members}
    if not chosen:
        raise user_error(
            "learner.aligned_blocks",
            "none of the parameters of these blocks trains, so there is no gradient to compare",
            value=blocks,
            accepted="blocks with trainable parameters; those that train: "
            + abbreviated(trainable),
        )
    return chosen


def _matching(
    model: nn.Module, trainable: dict[str, nn.Parameter], patterns: list[str]
) -> dict[str, nn.Parameter]:
    """What the patterns choose; each has to choose something, or a misspelt one among several would
    pass in silence.
    """
    every = dict(
        model.named_parameters(remove_duplicate=False)
    )  # a tied parameter under each of its names
    chosen: set[int] = set()
    problems = []
    for pattern in patterns:
        found = {name: p for name, p in every.items() if fnmatchcase(name, pattern)}
        if any(p.requires_grad for p in found.values()):
            chosen |= {id(p) for p in found.values()}
            continue
        said = "no parameter has a name that matches"
        if found:
            said = (
                f"this matches frozen parameters alone ({abbreviated(found, 3)}), which have "
                "no "
                "gradient to compare"
            )
        accepted = "patterns over the names of those that train: " + abbreviated(trainable)
        problems.append(Problem("learner.aligned_patterns", pattern, accepted, said))
    if problems:
        raise UserError(*problems)
    return {name: p for name, p in trainable.items() if id(p) in chosen}


@dataclass
class Trace:
    """One forward pass as the suffix needs it: the inputs of its blocks (detached), or of the whole
    backbone.
    """

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class Suffix:
    """The blocks from the first aligned one on, final norm and head, as a function of S.

    Args:
        anatomy: the model's parts.
        aligned: S. If part of it lies below the blocks (embeddings, or a tied head), the suffix is
            the whole model.
    """

    def __init__(self, anatomy: Anatomy, aligned: Mapping[str, nn.Parameter]) -> None:
        self.anatomy = anatomy
        self.names = {id(parameter): name for name, parameter in aligned.items()}
        in_blocks = [
            any(id(p) in self.names for p in block.parameters()) for block in anatomy.blocks
        ]
        first = in_blocks.index(True) if True in in_blocks else len(in_blocks)
        above = [*anatomy.blocks[first:], anatomy.norm]
        reached = {id(p) for module in above for p in module.parameters()}
        head_only = {id(p) for p in anatomy.head.parameters()} - {
            id(p) for p in anatomy.backbone.parameters()
        }
        self.whole = not set(self.names) <= reached | head_only
        self.modules: list[nn.Module] = [anatomy.backbone] if self.whole else above
        self.reaches_head = any(id(p) in self.names for p in anatomy.head.parameters())
        """Whether the head, or what is tied to it, is in S."""

    @property
    def drops_out(self) -> bool:
        """Whether a forward pass of these modules is random now."""
        return any(
            module.training
            and (
                (isinstance(module, nn.Dropout) and module.p > 0)
                or getattr(module, "attention_dropout", 0)
            )
            for above in self.modules
            for module in above.modules()
        )

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """Records, during the forward pass inside the block, what every module of the suffix was
        called with.
        """
        trace = Trace()

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            trace.calls.append((_detached(args), _detached(kwargs)))

        hooks = [
            module.register_forward_pre_hook(record, with_kwargs=True) for module in self.modules
        ]
        try:
            yield trace
        finally:
            for hook in hooks:
                hook.remove()

    def hidden(self, trace: Trace, parameters: Mapping[str, Tensor]) -> Tensor:
        """Final hidden states ``[B, T, D]`` as a function of S, in the dtype of ``parameters``,
        without dropout.
        """
        dtype = next(iter(parameters.values())).dtype
        first_args, first_kwargs = trace.calls[0]
        if self.whole:
            out = self._call(self.modules[0], parameters, dtype, first_args, first_kwargs)
            return out[0] if isinstance(out, tuple) else out.last_hidden_state
        hidden = first_args[0] if first_args else first_kwargs["hidden_states"]
        hidden = hidden.to(dtype)
        for module, (args, kwargs) in zip(self.modules, trace.calls, strict=True):
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            out = self._call(module, parameters, dtype, (hidden, *args[1:]), rest)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden

    def project(self, states: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Logits of final hidden states, as a function of S."""
        return self.anatomy.finished(
            self._call(self.anatomy.head, parameters, states.dtype, (states,), {})
        )

    def head(self, head: Head, parameters: Mapping[str, Tensor]) -> Head:
        """The head under S, in the dtype of ``parameters`` and without a graph to the learner."""
        dtype = next(iter(parameters.values())).dtype
        bias = None if head.bias is None else self._value(head.bias, parameters, dtype)
        return replace(head, weight=self._value(head.weight, parameters, dtype), bias=bias)

    def _value(
        self, parameter: Tensor, parameters: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Tensor:
        # By identity, not by name: a tied parameter has one entry in S and several names in the
        # modules.
        return (
            parameters[self.names[id(parameter)]]
            if id(parameter) in self.names
            else parameter.detach().to(dtype)
        )

    def _call(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        dtype: torch.dtype,
        args: Any,
        kwargs: Any,
    ) -> Any:
        weights = {
            name: self._value(parameter, parameters, dtype)
            for name, parameter in module.named_parameters(remove_duplicate=False)
        }
        return functional_call(
            module, weights, _cast(args, dtype), _cast(kwargs, dtype), tie_weights=False
        )


def _detached(value: Any) -> Any:
    return _map_tensors(value, lambda t: t.detach())


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return _map_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def _map_tensors(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_map_tensors(item, function) for item in value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    return value
