"""DINO's global and local crops of a batch, seeded by the batch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import kornia.augmentation as augment
import torch
from torch import Tensor, nn

from vpretrain.system.sampling import seed_of
from vpretrain.vision.data.images import IMAGENET_MEAN, IMAGENET_STD, normalised
from vpretrain.vision.data.stream import ImageBatch

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


@dataclass(frozen=True)
class MultiCrop:
    """Multi-crop augmentation: crop, flip, colour jitter, grayscale, blur and solarisation.

    Each sample has its own random draws; only the order of the colour jitter's four changes is
    drawn once for a whole view. The views depend on the batch's pixels and seed and on these
    settings alone: the global random state is neither read nor changed, and a view does not depend
    on how many others there are.

    As in DINO, the blur probability differs between the first global view, the other global views
    and the local views, and only global views after the first are solarised, so that two global
    views are not distorted alike.

    Each setting is described in :class:`vpretrain.vision.recipe.learner.Crops`.

    Raises:
        ValueError: a size, count, scale or probability is out of range.
    """

    global_size: int = 224
    local_size: int = 96
    global_count: int = 2
    local_count: int = 6
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.2
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        sizes = self.global_size, self.local_size
        if self.global_count < 1 or self.local_count < 0 or min(sizes) < 1:
            raise ValueError("a batch needs a global view, and a view needs pixels")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"{name}: shares of an area, 0 < lowest <= highest <= 1, got {(low, high)}"
                )
        for name in ("flip", "jitter", "grayscale", "solarise", "blur"):
            chances = getattr(self, name)
            for chance in chances if isinstance(chances, tuple) else (chances,):
                if not 0 <= chance <= 1:
                    raise ValueError(f"{name}: a probability is in [0, 1], got {chance}")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma: 0 < lowest <= highest, got {self.blur_sigma}")

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

        whole = [view("global", at, other if at else first) for at in range(self.global_count)]
        parts = [view("local", at, local) for at in range(self.local_count)]
        return Crops(tuple(whole), tuple(parts))

    @cached_property
    def _distortions(self) -> list[list[nn.Module]]:
        """Distortions of the first global view, the other global views and the local views.

        Cached, because building them is slow."""
        return [self._steps(part) for part in ("first", "other", "local")]

    @torch.no_grad()
    def _view(
        self, pixels: Tensor, steps: Sequence[Any], seed: int, rank: int, world: int
    ) -> Tensor:
        # kornia draws from torch's global CPU generator, whatever the device of the pixels. Only
        # that generator is seeded (torch.manual_seed would seed every device's), then restored.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            for step in steps:
                if world == 1:
                    pixels = step(pixels)
                else:
                    whole = step.forward_parameters(
                        torch.Size((len(pixels) * world, *pixels.shape[1:]))
                    )
                    pixels = step(pixels, params=_part(whole, rank, world))
        return normalised(pixels, self.mean, self.std)

    def _steps(self, part: str) -> list[nn.Module]:
        """Build the distortions of one kind of view, in order.

        A distortion of probability 0 is left out, because it would still cost time."""
        local = part == "local"
        size = self.local_size if local else self.global_size
        scale = self.local_scale if local else self.global_scale
        blur = self.blur[("first", "other", "local").index(part)]
        solarise = self.solarise if part == "other" else 0.0
        # Three standard deviations to each side, at most half the view.
        reach = min(int(3 * self.blur_sigma[1] + 0.5), (size - 1) // 2)
        steps: list[nn.Module] = [
            augment.RandomResizedCrop((size, size), scale=scale, ratio=_RATIO)
        ]
        if self.flip:
            steps.append(augment.RandomHorizontalFlip(p=self.flip))
        if self.jitter:
            strengths = (self.brightness, self.contrast, self.saturation, self.hue)
            steps.append(augment.ColorJitter(*strengths, p=self.jitter))
        if self.grayscale:
            steps.append(augment.RandomGrayscale(p=self.grayscale))
        if blur and reach:
            kernel = (2 * reach + 1, 2 * reach + 1)
            steps.append(augment.RandomGaussianBlur(kernel, self.blur_sigma, p=blur))
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
