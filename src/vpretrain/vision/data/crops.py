"""DINO's global and local crops of a batch, seeded by the batch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import kornia.augmentation as augment
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from vpretrain.config.section import Section
from vpretrain.system.sampling import seed_of
from vpretrain.vision.data.images import IMAGENET_MEAN, IMAGENET_STD, normalised
from vpretrain.vision.data.stream import ImageBatch
from vpretrain.vision.fields import Channels, Fraction, Range

PARTS = ("first", "other", "local")
"""The first global view, the other global views and the local views, which are distorted unlike."""
_RATIO = (3 / 4, 4 / 3)  # width to height of the window that a crop is cut from


@dataclass(frozen=True, eq=False)
class Crops:
    """The views of one batch; row b of every view is cut from picture b.

    Args:
        global_views: float32 [B, 3, G, G] each, normalised.
        local_views: float32 [B, 3, L, L] each, normalised.
    """

    global_views: tuple[Tensor, ...]
    local_views: tuple[Tensor, ...]

    @property
    def views(self) -> tuple[Tensor, ...]:
        """All views, global views first."""
        return self.global_views + self.local_views


class CropSettings(Section):
    """Global and local views of a batch; sizes and counts default to the paper's."""

    global_size: PositiveInt = 224
    """Side of a global view in pixels."""
    local_size: PositiveInt = 96
    """Side of a local view in pixels."""
    global_count: PositiveInt = 2
    local_count: NonNegativeInt = 6
    global_scale: Range = (0.32, 1.0)
    """Range of the fraction of the picture's area that a global view covers."""
    local_scale: Range = (0.05, 0.32)
    """Range of the fraction of the picture's area that a local view covers."""
    antialias: bool = True
    """Whether a view that is smaller than its window is filtered before it is sampled, as heads and
    probes see pictures; without it fine patterns become coarse ones."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    jitter: Fraction = 0.8
    """Probability of colour jitter."""
    brightness: NonNegativeFloat = 0.4
    """Largest relative change of brightness."""
    contrast: NonNegativeFloat = 0.4
    """Largest relative change of contrast."""
    saturation: NonNegativeFloat = 0.2
    """Largest relative change of saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest change of hue, as a fraction of the colour circle."""
    grayscale: Fraction = 0.2
    """Probability of conversion to grayscale."""
    blur: tuple[Fraction, Fraction, Fraction] = (1.0, 0.1, 0.5)
    """Probability of Gaussian blur in the first global view, other global views, local views."""
    blur_sigma: Range = (0.1, 2.0)
    """Lowest and highest standard deviation of the blur, in pixels of the view."""
    solarise: Fraction = 0.2
    """Probability of solarisation (inverting bright pixels) in global views after the first."""
    mean: Channels = IMAGENET_MEAN
    """Mean of R, G, B for normalising views and the pictures of feedback and probes."""
    std: Channels = IMAGENET_STD
    """Standard deviation of R, G, B for normalising views and the pictures of feedback and
    probes."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"{name}: fractions of an area, 0 < lowest <= highest <= 1, got {(low, high)}"
                )
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma: 0 < lowest <= highest, got {self.blur_sigma}")
        return self


class MultiCrop:
    """Multi-crop augmentation: crop, flip, colour jitter, grayscale, blur and solarisation.

    Each sample has its own random draws; only the order of the colour jitter's four changes is
    drawn once for a whole view. The views depend on the batch's pixels and seed and on these
    settings alone: the global random state is neither read nor changed, and a view does not depend
    on how many others there are.

    As in DINO, the blur probability differs between the first global view, the other global views
    and the local views, and only global views after the first are solarised, so that two global
    views are not distorted alike."""

    def __init__(self, settings: CropSettings) -> None:
        self.settings = settings
        # Built once, because building them is slow.
        self._distortions = [_distortions(settings, part) for part in PARTS]

    def __call__(self, batch: ImageBatch) -> Crops:
        """Return the views of a batch, on its device and without gradients.

        Equal batches give bit-identical views. A batch that already has views keeps them."""
        if batch.views is not None:
            return batch.views
        first, other, local = self._distortions
        pixels = batch.pixels.float() / 255

        def view(kind: str, number: int, steps: Sequence[Any]) -> Tensor:
            seed = seed_of(f"{batch.seed}/{kind}/{number}")
            return self._view(pixels, steps, seed, batch.rank, batch.world)

        counts = self.settings.global_count, self.settings.local_count
        whole = [view("global", at, other if at else first) for at in range(counts[0])]
        parts = [view("local", at, local) for at in range(counts[1])]
        return Crops(tuple(whole), tuple(parts))

    @torch.no_grad()
    def _view(
        self, pixels: Tensor, steps: Sequence[Any], seed: int, rank: int, world: int
    ) -> Tensor:
        # kornia draws from torch's global CPU generator, whatever the device of the pixels. Only
        # that generator is seeded (torch.manual_seed would seed every device's), then restored.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            for step in steps:
                everywhere = torch.Size((len(pixels) * world, *pixels.shape[1:]))
                drawn = step.forward_parameters(everywhere)
                pixels = step(pixels, params=_part(drawn, rank, world))
        return normalised(pixels, self.settings.mean, self.settings.std)


class _Window(augment.RandomResizedCrop):
    """kornia's crop, whose own way of resizing knows no antialiasing."""

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        if not flags["antialias"]:
            return super().apply_transform(input, params, flags, transform)
        corners = params["src"].long()
        windows = zip(input, corners[:, 0].tolist(), corners[:, 2].tolist(), strict=True)
        return torch.stack(
            [
                functional.interpolate(
                    picture[None, :, top : bottom + 1, left : right + 1],
                    flags["size"],
                    mode="bilinear",
                    antialias=True,
                )[0]
                for picture, (left, top), (right, bottom) in windows
            ]
        )


def _distortions(settings: CropSettings, part: str) -> list[nn.Module]:
    """Build the distortions of one kind of view, in order.

    A distortion of probability 0 is left out, because it would still cost time."""
    local = part == "local"
    size = settings.local_size if local else settings.global_size
    scale = settings.local_scale if local else settings.global_scale
    blur = settings.blur[PARTS.index(part)]
    solarise = settings.solarise if part == "other" else 0.0
    # Three standard deviations to each side, at most half the view.
    reach = min(int(3 * settings.blur_sigma[1] + 0.5), (size - 1) // 2)
    window = _Window((size, size), scale=scale, ratio=_RATIO)
    window.flags["antialias"] = settings.antialias
    steps: list[nn.Module] = [window]
    if settings.flip:
        steps.append(augment.RandomHorizontalFlip(p=settings.flip))
    if settings.jitter:
        strengths = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
        steps.append(augment.ColorJitter(*strengths, p=settings.jitter))
    if settings.grayscale:
        steps.append(augment.RandomGrayscale(p=settings.grayscale))
    if blur and reach:
        kernel = (2 * reach + 1, 2 * reach + 1)
        steps.append(augment.RandomGaussianBlur(kernel, settings.blur_sigma, p=blur))
    if solarise:
        steps.append(
            augment.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=solarise)
        )
    return steps


def _part(drawn: Mapping[str, Tensor], rank: int, world: int) -> dict[str, Tensor]:
    """Select kornia's random parameters for pictures ``rank``, ``rank + world``, ...

    Every parameter has one value per picture, except ``order`` (of ColorJitter's steps), which all
    pictures share."""
    part = {name: value if name == "order" else value[rank::world] for name, value in drawn.items()}
    whole = drawn["forward_input_shape"]
    return part | {"forward_input_shape": torch.cat([whole[:1] // world, whole[1:]])}
