"""Run only the part of a network that depends on the aligned parameters S.

Everything below the first aligned block is the same for ``g_pre``, for both perturbed losses and
for every direction. A modality therefore keeps the input of that block and reruns only the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vpretrain.system.errors import Problem, UserError, abbreviated, user_error

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a module call."""


def drops_out(model: nn.Module) -> bool:
    """Whether a forward pass has dropout in the current mode: of units, attention or paths.

    Modules of ``transformers`` also keep dropout rates as attributes with various names:
    ``attention_dropout``, ``residual_dropout``, ``drop_prob``, ``attn_pdrop``."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0)
        or any(
            isinstance(rate, float) and rate > 0 and "drop" in name
            for name, rate in vars(module).items()
        )
        for module in model.modules()
        if module.training
    )


class Suffix:
    """The blocks from the first aligned one on, and the final norm, as a function of S.

    All other parameters are constant. Dropout follows the mode of the modules.

    Args:
        backbone: the network without its heads.
        blocks: its blocks, in order.
        norm: the final norm.
        aligned: S, by name.
        beyond: modules after the norm whose parameters can be in S too (a language model's head).

    Attributes:
        first: index of the first block in the suffix; the number of blocks if S has none in them.
        whole: whether S includes parameters below the blocks (embeddings, a tied head), so that the
            suffix is the whole backbone.
        modules: the modules of the suffix, in order.
    """

    def __init__(
        self,
        backbone: nn.Module,
        blocks: nn.ModuleList,
        norm: nn.Module,
        aligned: Mapping[str, nn.Parameter],
        beyond: Sequence[nn.Module] = (),
    ) -> None:
        self.names = {id(parameter): name for name, parameter in aligned.items()}
        holds_aligned = [any(id(p) in self.names for p in block.parameters()) for block in blocks]
        self.first = holds_aligned.index(True) if True in holds_aligned else len(blocks)
        above = [*blocks[self.first :], norm]
        after = _parameter_ids(beyond) - _parameter_ids([backbone])
        self.whole = not set(self.names) <= _parameter_ids(above) | after
        self.modules: list[nn.Module] = [backbone] if self.whole else above

    @property
    def drops_out(self) -> bool:
        """Whether a forward pass of the suffix has dropout in the current mode."""
        return any(drops_out(module) for module in self.modules)

    def run(
        self, hidden: Tensor, calls: Sequence[Call], parameters: Mapping[str, Tensor]
    ) -> Tensor:
        """Return ``[B, T, D]`` hidden states after the final norm, in the dtype of ``parameters``.

        Gradients of any order flow to ``hidden`` and ``parameters``, in forward and reverse mode.

        Args:
            hidden: ``[B, T, D]``, input of the first module.
            calls: for each module, its arguments besides the hidden states.
            parameters: S, by name.
        """
        dtype = next(iter(parameters.values())).dtype
        for module, (args, kwargs) in zip(self.modules, calls, strict=True):
            hidden = first_output(self.call(module, parameters, dtype, (hidden, *args), kwargs))
        return hidden

    def call(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        dtype: torch.dtype,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Call any module of the network in ``dtype``, with S from ``parameters``.

        All other parameters are constant. The module's own parameters are never written to, so that
        a perturbed S leaves no trace.
        """
        weights = {
            name: self.value(parameter, parameters, dtype)
            for name, parameter in module.named_parameters(remove_duplicate=False)
        }
        return functional_call(
            module, weights, cast(args, dtype), cast(dict(kwargs), dtype), tie_weights=False
        )

    def value(
        self, parameter: Tensor, parameters: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Tensor:
        """Return a parameter's value: from ``parameters`` if it is in S, else its own, detached."""
        # By identity, not by name: a tied parameter has one entry in S but several names.
        name = self.names.get(id(parameter))
        return parameter.detach().to(dtype) if name is None else parameters[name]


def first_output(out: Any) -> Tensor:
    """Return the hidden states from a block's or backbone's output.

    The output is a tensor, a tuple, or an output object.
    """
    return out if isinstance(out, Tensor) else out[0]


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors in nested tuples, lists and dictionaries to ``dtype``."""
    return map_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, function) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    return value


def choose_aligned(
    model: nn.Module,
    trained: Mapping[str, nn.Parameter],
    blocks: nn.ModuleList,
    *,
    last: int | Literal["all"],
    patterns: Sequence[str],
    also: Iterable[nn.Parameter] = (),
) -> dict[str, nn.Parameter]:
    """Choose the subset S of the trained parameters, by name.

    Args:
        model: the model whose parameter names the patterns match.
        trained: trained parameters that the loss depends on, by their names in the model.
        blocks: the model's blocks, in order.
        last: number of last blocks whose parameters are in S, or "all" of ``trained``.
        patterns: shell patterns over parameter names; override ``last`` if given.
        also: parameters that join the last blocks if they are trained: the final norm, an untied
            head.

    Returns:
        At least one parameter, in the order of ``trained``; a tied parameter once.

    Raises:
        UserError: a pattern matches no trained parameter, no parameter of the blocks is trained, or
            the model has fewer blocks.
    """
    if patterns:
        return _matching(model, trained, patterns)
    if last != "all" and not 1 <= last <= len(blocks):
        raise user_error(
            "learner.aligned_blocks",
            "the model does not have so many blocks",
            value=last,
            accepted=f"1 to {len(blocks)}, or all",
        )
    chosen = dict(trained)
    if last != "all":
        members = _parameter_ids(blocks[-last:]) | {id(p) for p in also}
        chosen = {name: p for name, p in trained.items() if id(p) in members}
    if not chosen:
        raise user_error(
            "learner.aligned_blocks",
            "none of the parameters of these blocks trains, so there is no gradient to compare",
            value=last,
            accepted="blocks with trainable parameters; those that train: "
            + (abbreviated(trained) or "none"),
        )
    return chosen


def _matching(
    model: nn.Module, trained: Mapping[str, nn.Parameter], patterns: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Choose parameters by patterns.

    Each pattern must match something, so that a misspelt one among several is reported.
    """
    trained_ids = {id(p) for p in trained.values()}
    # A tied parameter is listed under each of its names and can be chosen by any of them.
    every = dict(model.named_parameters(remove_duplicate=False))
    chosen: set[int] = set()
    problems = []
    for pattern in patterns:
        matches = {name: id(p) for name, p in every.items() if fnmatchcase(name, pattern)}
        if used := trained_ids.intersection(matches.values()):
            chosen |= used
            continue
        message = "no parameter has a name that matches"
        if matches:
            message = (
                f"this matches frozen parameters alone ({abbreviated(matches, 3)}), which have no "
                "gradient to compare"
            )
        accepted = "patterns over the names of those that train: " + abbreviated(trained)
        problems.append(Problem("learner.aligned_patterns", pattern, accepted, message))
    if problems:
        raise UserError(*problems)
    return {name: p for name, p in trained.items() if id(p) in chosen}


def _parameter_ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(p) for module in modules for p in module.parameters()}
