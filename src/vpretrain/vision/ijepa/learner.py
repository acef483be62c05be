"""The I-JEPA learner: predict the target encoder's outputs for masked blocks from a context block.

Shapes: B images, L = h x w patches of the grid, P leading tokens without a position (class token,
registers; I-JEPA has none), N context patches, M target blocks of K patches, D width of the
encoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vpretrain.method import vectors
from vpretrain.method.roles import Objective
from vpretrain.models.suffix import Suffix, choose_aligned, first_output
from vpretrain.system.contexts import computing, evaluating
from vpretrain.vision.data.images import IMAGENET_MEAN, IMAGENET_STD, normalised
from vpretrain.vision.data.stream import ImageBatch
from vpretrain.vision.ijepa.blocks import BlockMasks, BlockSettings, sample_blocks
from vpretrain.vision.ijepa.encoder import PatchEncoder
from vpretrain.vision.ijepa.predictor import Predictor
from vpretrain.vision.role import PictureLearner

ErrorName = Literal["smooth_l1", "squared"]


@dataclass(frozen=True)
class IJepaTask:
    """Weights of the target patches, and visibility of the context patches.

    Args:
        weights: ``[B, M, K]`` float32 or wider, >= 0, mean 1: weight of each target patch. The loss
            is linear in it.
        context_mask: ``[B, L]`` float32 or wider in [0, 1], over the whole grid row by row: how
            much of each context patch the encoder sees (see :meth:`IJepaLearner.forward`). Entries
            outside the context have no effect.
    """

    weights: Tensor
    context_mask: Tensor

    def controls(self) -> tuple[Tensor, ...]:
        return (self.weights, self.context_mask)

    def with_controls(self, controls: tuple[Tensor, ...]) -> IJepaTask:
        return IJepaTask(*controls)


@dataclass
class IJepaContext:
    """Embedded context patches and prediction targets of one batch.

    Args:
        pixels: ``[B, 3, H, W]`` normalised, float32 or wider: the designer's input, target blocks
            included.
        grid: ``(h, w)``.
        blocks: context and target patches.
        tokens: ``[B, P + N, D]`` input of the first block: leading tokens and context patches, with
            the graph.
        contents: ``[B, N, D]`` patch embeddings of the context without positions, with the graph.
        answers: ``[B, M, K, D]`` the target encoder's layer-normalised outputs, float32 or wider;
            no graph.
    """

    pixels: Tensor
    grid: tuple[int, int]
    blocks: BlockMasks
    tokens: Tensor
    contents: Tensor
    answers: Tensor


def baseline_task(context: IJepaContext) -> IJepaTask:
    """Return the unsteered task: all targets have weight 1 and the whole context is visible."""
    images, patches = len(context.pixels), context.grid[0] * context.grid[1]
    ones = torch.ones((), dtype=context.answers.dtype, device=context.answers.device)
    weights = ones.expand(context.blocks.targets.shape).clone()
    return IJepaTask(weights, ones.expand(images, patches).clone())


def prediction_loss(
    predictions: Tensor, answers: Tensor, weights: Tensor, error: ErrorName
) -> Tensor:
    """Weighted mean of the prediction error over target patches, a scalar in float32 or wider.

    The slow definition, ``rho(x) = x ** 2 / 2`` where ``|x| < 1`` and ``|x| - 1 / 2`` elsewhere
    (``smooth_l1``), or ``x ** 2`` (``squared``)::

        for b in range(B):
            for m in range(M):
                for k in range(K):
                    for d in range(D):
                        error = rho(predictions[b, m, k, d] - answers[b, m, k, d])
                        loss += weights[b, m, k] * error / (B * M * K * D)

    Args:
        predictions: ``[B, M, K, D]``; gradients flow.
        answers: ``[B, M, K, D]``, constant.
        weights: ``[B, M, K]``; gradients flow.
        error: name of rho.
    """
    measure = nn.functional.smooth_l1_loss if error == "smooth_l1" else nn.functional.mse_loss
    mistakes = measure(vectors.wide(predictions), answers, reduction="none").mean(dim=-1)
    return (weights * mistakes).mean()


class IJepaLearner(PictureLearner[IJepaContext, IJepaTask]):
    """Context encoder, its moving average (the target encoder) and a predictor.

    ``model`` holds the trained parameters, under ``encoder.`` and ``predictor.``, without the
    target encoder.

    Args:
        encoder: ``IJepaModel``, or a ``transformers`` vision model with the same layout.
        predictor: predictor for the encoder's width.
        aligned_blocks: S is this many of the encoder's last blocks and its final norm.
        blocks: settings of the block masks.
        momentum: EMA momentum of the target encoder at the start and at the end of the budget;
            linear in between.
        error: error of a prediction, see :func:`prediction_loss`.
        mean, std: per channel, on the scale [0, 1], for normalising uint8 images (default:
            ImageNet's).
        autocast: dtype of matrix products outside :meth:`objective`, if it differs from that of the
            weights.

    Raises:
        UserError: the encoder's layout is not supported, or it has too few blocks.
    """

    kind = "ijepa"
    fresh_key = "learner.predictor"
    model: nn.ModuleDict
    backbone: PatchEncoder

    def __init__(
        self,
        encoder: Any,
        predictor: Predictor,
        *,
        aligned_blocks: int,
        blocks: BlockSettings,
        momentum: tuple[float, float] = (0.996, 1.0),
        error: ErrorName = "smooth_l1",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model = nn.ModuleDict({"encoder": encoder, "predictor": predictor})
        self.backbone = PatchEncoder(encoder, autocast=autocast)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        layers, norm = self.backbone.blocks, self.backbone.norm
        self.aligned = choose_aligned(
            self.model, trained, layers, last=aligned_blocks, patterns=[], also=norm.parameters()
        )
        self.suffix = Suffix(encoder, layers, norm, self.aligned)
        self.predictor, self.blocks, self.momentum, self.error = predictor, blocks, momentum, error
        self.mean, self.std, self.autocast = mean, std, autocast
        # In float32 or wider whatever the encoder's dtype: bfloat16 would round away EMA steps of
        # 0.4%.
        wide = torch.promote_types(encoder.dtype, torch.float32)
        self.target_encoder = copy.deepcopy(encoder).to(wide).requires_grad_(False).eval()
        self.target = PatchEncoder(self.target_encoder, autocast=autocast)

    @property
    def encoder(self) -> Any:
        """The context encoder; ``save_pretrained`` writes an ordinary model folder."""
        return self.model["encoder"]

    @property
    def fresh(self) -> Predictor:
        return self.predictor

    def baseline_task(self, context: IJepaContext) -> IJepaTask:
        return baseline_task(context)

    def own_state(self) -> dict[str, Tensor]:
        predictor = self.predictor.named_parameters(prefix="predictor")
        return dict([*predictor, *self.target_encoder.named_parameters(prefix="target_encoder")])

    def forward(self, batch: ImageBatch) -> IJepaContext:
        """Embed the context patches and run the target encoder.

        The context encoder's blocks run once a task is known. With ``c_i`` the patch embedding of
        context patch i without its position, and ``c`` the mean of ``c_i`` over the image's
        context, a task's mask mu replaces ``c_i`` by ``mu_i c_i + (1 - mu_i) c``; the position is
        unchanged. As the patch embedding is linear, this is eq. 49 with an infinitely wide blur: at
        mu = 0 a patch looks like the mean context patch of its image (target patches are not in the
        mean). A learned mask itself can still reveal the targets, since it is computed from the
        whole image (:class:`vpretrain.vision.steering.surfaces.ContextMasks`).

        Raises:
            UserError: the patch size does not divide the images, or the grid is too small for the
                blocks.
        """
        pixels = self.normalised(batch.pixels)
        grid = self.backbone.grid(pixels)
        whole = sample_blocks(len(pixels) * batch.world, grid, self.blocks, seed=batch.seed)
        part = slice(batch.rank, None, batch.world)
        blocks = BlockMasks(whole.context[part], whole.targets[part]).to(pixels.device)
        tokens = self.backbone.embed(pixels)
        contents = _chosen(self.backbone.contents(pixels), blocks.context)
        leading = tokens.shape[1] - grid[0] * grid[1]
        context = _chosen(tokens[:, leading:], blocks.context)
        tokens = torch.cat([tokens[:, :leading], context], dim=1)
        with torch.no_grad():
            states = self.target.encode(self.target.embed(pixels))[:, leading:]
            answers = _chosen(states, blocks.targets.flatten(1))
            answers = answers.unflatten(1, blocks.targets.shape[1:])
            answers = nn.functional.layer_norm(answers, answers.shape[-1:])
        return IJepaContext(pixels, grid, blocks, tokens, contents, answers)

    def loss(self, context: IJepaContext, task: IJepaTask) -> Tensor:
        """Return :func:`prediction_loss` of the batch, local to this process.

        Gradients flow to encoder, predictor and the task's controls."""
        blocks = context.blocks
        hidden = _seen(context.tokens, context.contents, blocks, task.context_mask)
        states = self.backbone.encode(hidden)
        with computing(self.encoder.device, self.autocast):
            predictions = self.predictor(states, blocks.context, blocks.targets, context.grid[1])
        return prediction_loss(predictions, context.answers, task.weights, self.error)

    def objective(self, context: IJepaContext, task: IJepaTask) -> Objective:
        """Return the loss as a function of S and the inputs that depend on controls, no dropout.

        Those inputs are the weights and the input of the first aligned block, in this order; each
        only if its control requires a gradient."""
        suffix, blocks = self.suffix, context.blocks
        with evaluating(self.model), torch.enable_grad():
            hidden = _seen(
                context.tokens.detach(), context.contents.detach(), blocks, task.context_mask
            )
            for layer in self.backbone.blocks[: suffix.first]:
                hidden = first_output(suffix.call(layer, {}, hidden.dtype, (hidden,), {}))

        states_in = vectors.wide(hidden)
        steers_weights = task.weights.requires_grad
        steers_context = task.context_mask.requires_grad

        def loss(parameters: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
            weights = inputs[0] if steers_weights else task.weights
            states = inputs[-1] if steers_context else states_in
            places = (blocks.context, blocks.targets, context.grid[1])
            with evaluating(self.model):
                states = suffix.run(states, [((), {})] * len(suffix.modules), parameters)
                predictions = suffix.call(
                    self.predictor, parameters, states.dtype, (states, *places), {}
                )
            return prediction_loss(predictions, context.answers, weights, self.error)

        inputs = (task.weights,) * steers_weights + (states_in,) * steers_context
        return Objective(inputs, loss)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """``target <- m target + (1 - m) encoder``, with m interpolated by ``progress``."""
        start, end = self.momentum
        momentum = start + (end - start) * progress
        pairs = zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True)
        for target, source in pairs:
            target.lerp_(source.to(target.dtype), 1 - momentum)

    def state_dict(self) -> dict[str, Any]:
        return {"target_encoder": self.target_encoder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.target_encoder.load_state_dict(state["target_encoder"])

    def normalised(self, images: Tensor) -> Tensor:
        """Return images on the encoder's device, in float32 or wider.

        uint8 is scaled and normalised; floats are assumed to be normalised already."""
        images = images.to(self.encoder.device)
        return (
            normalised(images, self.mean, self.std)
            if images.dtype == torch.uint8
            else vectors.wide(images)
        )


def _seen(tokens: Tensor, contents: Tensor, blocks: BlockMasks, mask: Tensor) -> Tensor:
    """Apply a context mask to the encoder's input, ``[B, P + N, D]`` in the dtype of ``tokens``."""
    hidden = (1 - mask.gather(1, blocks.context))[..., None]
    # As a difference added to the token: where mu = 1 it is exactly zero, so that an all-ones mask
    # is bit-identical to the unsteered run.
    change = hidden * (contents.mean(dim=1, keepdim=True) - contents)
    leading = tokens.shape[1] - contents.shape[1]
    return tokens + nn.functional.pad(change.to(tokens.dtype), (0, 0, leading, 0))


def _chosen(patches: Tensor, ids: Tensor) -> Tensor:
    """Gather rows ``ids`` ``[B, n]`` of ``patches`` ``[B, L, D]`` to ``[B, n, D]``."""
    return patches.gather(1, ids[..., None].expand(-1, -1, patches.shape[-1]))
