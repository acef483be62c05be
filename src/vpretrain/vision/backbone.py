"""A vision transformer taken apart: dense features, the subset S, and the suffix that depends on S.

Shapes: B images, T tokens (prefix tokens first, then patches row by row), D hidden width, (h, w)
the grid of patches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vpretrain.method import vectors
from vpretrain.models.suffix import (
    Call,
    Suffix,
    choose_aligned,
    drops_out,
    first_output,
    map_tensors,
)
from vpretrain.system.contexts import computing, evaluating, frozen
from vpretrain.system.errors import UserError, user_error

LAYOUTS = "vision transformers with patch tokens, laid out like DINOv3, DINOv2, ViT or I-JEPA"
NORMS = ("norm", "layernorm")


@dataclass(frozen=True)
class Features:
    """Features of a batch of images.

    Args:
        patches: ``[B, D, h, w]`` patch tokens after the final norm.
        pooled: ``[B, D]`` first prefix token (CLS), or the mean over patches if there is none.
    """

    patches: Tensor
    pooled: Tensor


class Backbone:
    """Any ``transformers`` vision transformer with square patches.

    On construction, the output of the parts is compared with that of the whole model on a tiny
    image, and a layout that is not supported is refused. Gradients flow through all methods.
    Training or evaluation mode (dropout) is the model's.

    Args:
        model: for example a ``DINOv3ViTModel``, ``Dinov2Model``, ``Dinov2WithRegistersModel`` or
            ``ViTModel``.
        autocast: dtype of matrix products where the whole model runs, if it differs from that of
            the weights. A suffix with S runs in the dtype of S, so that small perturbations are not
            rounded away.

    Attributes:
        width: D.
        patch_size: side of a patch in pixels.
        prefix_tokens: number of tokens before the patches (CLS, registers).
        blocks: the transformer blocks, in order.
        norm: the final norm.
        reached: names of the parameters that the features depend on (not those of a pooler or a
            mask token).

    Raises:
        UserError: the layout is not supported.
    """

    def __init__(self, model: Any, *, autocast: torch.dtype | None = None) -> None:
        self.model = model
        # None while the parts are compared with the whole model, in the dtype of the weights: after
        # twelve blocks, the rounding of bfloat16 would look like another layout.
        self.autocast: torch.dtype | None = None
        depth = getattr(model.config, "num_hidden_layers", None)
        patch = getattr(model.config, "patch_size", None)
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        norms = [module for name, module in model.named_children() if name in NORMS]
        if len(lists) != 1 or len(norms) != 1:
            raise self.refused("does not have one list of blocks and one final norm")
        if isinstance(patch, (list, tuple)) and len({*patch}) == 1:
            patch = patch[0]
        if not isinstance(patch, int):
            raise self.refused("does not have square patches")
        self.patch_size, self.width = patch, int(model.config.hidden_size)
        self.blocks, self.norm = lists[0], norms[0]
        self.options = stretching(model)
        self.reached: frozenset[str] = frozenset()
        self.prefix_tokens = self._check_layout()
        self.autocast = autocast

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return next(self.model.parameters()).device

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches in ``[B, 3, H, W]`` images.

        Raises:
            UserError: patches do not tile the images.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            side = self.patch_size
            raise user_error(
                "learner.model",
                "its patches do not tile images of this size; make crops and images multiples of "
                f"{side} x {side} pixels",
                value=f"{height} x {width}",
                accepted=f"height and width that {side} divides",
            )
        return height // self.patch_size, width // self.patch_size

    def tokens(self, images: Tensor) -> Tensor:
        """Return ``[B, T, D]`` tokens of ``[B, 3, H, W]`` images, after the final norm.

        Raises:
            UserError: patches do not tile the images.
        """
        self.grid(images)
        with computing(self.device, self.autocast):
            return self.model(images, **self.options).last_hidden_state

    def features(self, images: Tensor, blocks: int = 1) -> Features:
        """Return the features of normalised ``[B, 3, H, W]`` images.

        Args:
            images: cast to the model's dtype; H and W are multiples of the patch size.
            blocks: number of last blocks whose outputs, each after the final norm, are concatenated
                in order, so that D is ``blocks * width``.

        Raises:
            UserError: patches do not tile the images, or the model has fewer blocks.
        """
        if blocks == 1:
            return self.split(self.tokens(images), self.grid(images))
        if not 1 <= blocks <= len(self.blocks):
            message, accepted = "the model does not have so many blocks", f"1 to {len(self.blocks)}"
            raise user_error("evaluate.blocks", message, value=blocks, accepted=accepted)
        outputs: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _, __, out: outputs.append(first_output(out)))
            for block in self.blocks[-blocks:]
        ]
        try:
            self.tokens(images)
        finally:
            for hook in hooks:
                hook.remove()
        return self.split(torch.cat([self.norm(out) for out in outputs], dim=-1), self.grid(images))

    def split(self, tokens: Tensor, grid: tuple[int, int]) -> Features:
        """Arrange ``[B, T, D]`` tokens as features over a grid of patches."""
        patches = tokens[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, grid)
        return Features(patches, self.pooled(tokens))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Pool ``[B, T, D]`` tokens to ``[B, D]``; see :class:`Features`."""
        return tokens[:, 0] if self.prefix_tokens else tokens.mean(dim=1)

    def refused(self, what: str) -> UserError:
        """Return the error for a layout that is not supported."""
        message = f"{type(self.model).__name__} {what}, so its suffix cannot be run on its own"
        return user_error("learner.model", message, accepted=LAYOUTS)

    @property
    def draws(self) -> bool:
        """Whether a forward pass is random in the current mode.

        By dropout, or by DINOv3's shifted, jittered and rescaled positions in training."""
        moved = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
        config = self.model.config
        return drops_out(self.model) or (
            self.model.training and any(getattr(config, name, None) for name in moved)
        )

    def _check_layout(self) -> int:
        """Compare parts and whole, set :attr:`reached`, return the number of prefix tokens."""
        parameters = dict(self.model.named_parameters())
        first = next(self.blocks.parameters())
        images = self.small_images()
        with evaluating(self.model), torch.enable_grad():
            try:
                whole = self.tokens(images)
            except ValueError as error:
                raise self.refused(f"does not take images of other sizes ({error})") from error
            leaves = [p for p in parameters.values() if p.requires_grad]
            reached = torch.autograd.grad(whole.sum(), leaves, allow_unused=True) if leaves else ()
        pairs = zip(leaves, reached, strict=True)
        reached_ids = {id(p) for p, gradient in pairs if gradient is not None}
        self.reached = frozenset(name for name, p in parameters.items() if id(p) in reached_ids)
        with torch.no_grad():
            suffix = EncoderSuffix(self, {"first": first})
            parts = suffix.features(suffix.enter(images), {"first": first.detach()})
            same = self.agree(whole, parts)
        if whole.shape[1] < 6 or not same:
            raise self.refused("does more than embeddings, blocks and final norm")
        return whole.shape[1] - 6

    def small_images(self) -> Tensor:
        """Return one image of 2 x 3 patches, for comparing the parts with the whole model."""
        first, side = next(self.blocks.parameters()), self.patch_size
        values = torch.linspace(-1, 1, 18 * side**2, dtype=first.dtype, device=first.device)
        return values.view(1, 3, 2 * side, 3 * side)

    def agree(self, whole: Tensor, parts: Tensor) -> bool:
        """Whether the tokens of the parts equal those of the whole model up to rounding."""
        if whole.is_meta:  # meta tensors have no values
            return True
        whole = vectors.wide(whole)
        atol = 2e-2 * float(whole.detach().std())
        return whole.shape == parts.shape and torch.allclose(whole, parts.to(whole), 2e-2, atol)


def stretching(module: nn.Module) -> dict[str, bool]:
    """Return the options that make a module interpolate its position embeddings to other sizes."""
    takes = inspect.signature(module.forward).parameters
    return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}


def aligned_parameters(
    backbone: Backbone, *, blocks: int | Literal["all"], patterns: list[str]
) -> dict[str, nn.Parameter]:
    """Return the subset S, by parameter names in ``backbone.model``.

    S is the last ``blocks`` blocks and the final norm (G.2), all parameters that the features
    depend on ("all"), or those that match ``patterns``; see
    :func:`vpretrain.models.suffix.choose_aligned`."""
    trained = {
        name: p
        for name, p in backbone.model.named_parameters()
        if p.requires_grad and name in backbone.reached
    }
    also = backbone.norm.parameters()
    return choose_aligned(
        backbone.model, trained, backbone.blocks, last=blocks, patterns=patterns, also=also
    )


@dataclass(frozen=True)
class Entry:
    """Input of the suffix for a batch of images.

    Args:
        hidden: ``[B, T, D]`` hidden states at the first module of the suffix, or the images
            themselves if the suffix is the whole model; float32 or wider.
        rest: the other arguments of its blocks, such as rotary position embeddings.
    """

    hidden: Tensor
    rest: Call = ((), {})


class EncoderSuffix(Suffix):
    """The suffix of a vision transformer, without dropout.

    Args:
        backbone: the whole model.
        aligned: S. If it includes parameters below the blocks (patch or position embeddings), the
            suffix is the whole model.
    """

    def __init__(self, backbone: Backbone, aligned: Mapping[str, nn.Parameter]) -> None:
        super().__init__(backbone.model, backbone.blocks, backbone.norm, aligned)
        self.backbone = backbone

    def enter(self, images: Tensor) -> Entry:
        """Run the modules below S once, without dropout.

        Gradients flow to ``images`` (``[B, 3, H, W]``), not to parameters."""
        if self.whole:
            self.backbone.grid(images)
            return Entry(vectors.wide(images), ((), self.backbone.options))

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Entered(args, kwargs)

        # Each architecture prepares the arguments of its blocks in its own way, so the model itself
        # runs up to the first module of the suffix, where the hook stops it.
        hook = self.modules[0].register_forward_pre_hook(stop, with_kwargs=True)
        model = self.backbone.model
        try:
            with evaluating(model), frozen(model.parameters()):
                self.backbone.tokens(images)
        except _Entered as entered:
            return _entry(*entered.args)
        finally:
            hook.remove()
        raise self.backbone.refused("does not run its blocks one after another")

    @contextmanager
    def entering(self) -> Iterator[list[Entry]]:
        """Record the suffix's input in passes of the whole model inside the ``with`` block.

        One detached entry per pass; none if the suffix is the whole model."""
        entries: list[Entry] = []
        if self.whole:
            yield entries
            return

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = map_tensors((args, dict(kwargs)), Tensor.detach)
            entries.append(_entry(*call))

        hook = self.modules[0].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield entries
        finally:
            hook.remove()

    def features(self, entry: Entry, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return ``[B, T, D]`` tokens after the final norm as a function of S and ``entry.hidden``.

        Computed in the dtype of ``parameters``."""
        norm: list[Call] = [] if self.whole else [((), {})]
        calls = [entry.rest] * (len(self.modules) - len(norm)) + norm
        with evaluating(self.backbone.model):
            return self.run(entry.hidden, calls, parameters)


def _entry(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
    """Make an entry from the arguments of the suffix's first module."""
    hidden = args[0] if args else kwargs.pop("hidden_states")
    return Entry(vectors.wide(hidden), (args[1:], kwargs))


class _Entered(Exception):
    """Carries the first suffix module's arguments out of the model's forward pass."""
