"""Backbone features for heads and probes, with their graph or frozen.

Shapes: N pictures, D feature width, h x w patches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vpretrain.system.contexts import evaluating
from vpretrain.system.phases import phase
from vpretrain.vision.backbone import Backbone, Features
from vpretrain.vision.data.images import IMAGENET_MEAN, IMAGENET_STD, Picture, normalised


class Encoder(Protocol):
    """Interface of a backbone for heads and probes."""

    @property
    def mean(self) -> Sequence[float]:
        """Mean of R, G and B on the scale [0, 1], for normalising images."""
        ...

    @property
    def std(self) -> Sequence[float]:
        """Standard deviation of R, G and B on the scale [0, 1], for normalising images."""
        ...

    @property
    def model(self) -> nn.Module:
        """The module that is in evaluation mode while features are computed."""
        ...

    def features(self, images: Tensor) -> Features:
        """Return features of normalised images ``[B, 3, H, W]`` (float); gradients flow."""
        ...


@dataclass(frozen=True)
class LastBlocks:
    """An encoder whose features are the concatenated outputs of a backbone's last blocks.

    Args:
        backbone: the backbone.
        blocks: number of last blocks.
        mean, std: normalisation of images, on the scale [0, 1]; the learner's.
    """

    backbone: Backbone
    blocks: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def width(self) -> int:
        """D."""
        return self.blocks * self.backbone.width

    @property
    def model(self) -> nn.Module:
        return self.backbone.model

    def features(self, images: Tensor) -> Features:
        return self.backbone.features(images, self.blocks)


class FrozenFeatures(ABC):
    """Pictures of one size with their features, without a graph.

    Attributes:
        pictures: the N pictures.
        pooled: ``[N, D]`` pooled features.
    """

    pictures: Sequence[Picture]
    pooled: Tensor

    @property
    def width(self) -> int:
        """D."""
        return self.pooled.shape[1]

    @abstractmethod
    def at(self, places: Sequence[int]) -> StoredFeatures:
        """Return some of the pictures, by index, with their features in memory."""

    @abstractmethod
    def part(self, places: Sequence[int]) -> FrozenFeatures:
        """Return some of the pictures, by index, with features stored in the same way."""


@dataclass(frozen=True, eq=False)
class StoredFeatures(FrozenFeatures):
    """Features in memory: ``[N, D, h, w]`` patches and ``[N, D]`` pooled."""

    pictures: Sequence[Picture]
    features: Features

    @property
    def pooled(self) -> Tensor:  # type: ignore[override]
        return self.features.pooled

    def at(self, places: Sequence[int]) -> StoredFeatures:
        chosen = torch.tensor(places, device=self.features.pooled.device)
        features = Features(self.features.patches[chosen], self.features.pooled[chosen])
        return StoredFeatures([self.pictures[place] for place in places], features)

    part = at


@dataclass(frozen=True, eq=False)
class RecomputedFeatures(FrozenFeatures):
    """Patch features that are recomputed on each access; pooled features are kept.

    The encoder must not change meanwhile."""

    encoder: Encoder
    pictures: Sequence[Picture]
    pooled: Tensor

    def at(self, places: Sequence[int]) -> StoredFeatures:
        return freeze(self.encoder, [self.pictures[place] for place in places])

    def part(self, places: Sequence[int]) -> RecomputedFeatures:
        chosen = torch.tensor(places, device=self.pooled.device)
        return RecomputedFeatures(
            self.encoder, [self.pictures[place] for place in places], self.pooled[chosen]
        )


def freeze(
    encoder: Encoder, pictures: Sequence[Picture], *, batch_size: int = 32
) -> StoredFeatures:
    """Compute the features of pictures of one size, without dropout and gradients.

    They are kept on the encoder's device in its dtype (N h w D numbers). The encoder's mode is
    restored."""
    parts = list(_in_batches(encoder, pictures, batch_size))
    features = Features(torch.cat([f.patches for f in parts]), torch.cat([f.pooled for f in parts]))
    return StoredFeatures(pictures, features)


def freeze_within(
    encoder: Encoder,
    pictures: Sequence[Picture],
    memory_bytes: float,
    *,
    patches: bool = True,
    batch_size: int = 32,
) -> FrozenFeatures:
    """Compute features as :func:`freeze` does, in bounded memory.

    Args:
        encoder: the encoder, which must not change as long as the features are used.
        pictures: pictures of one size.
        memory_bytes: memory for patch features; if they need more, the result is
            :class:`RecomputedFeatures`.
        patches: False if only pooled features are needed.
        batch_size: pictures in one forward pass.
    """
    first = freeze(encoder, pictures[:1]).features.patches
    if patches and first.nbytes * len(pictures) <= memory_bytes:
        return freeze(encoder, pictures, batch_size=batch_size)
    pooled = torch.cat([each.pooled for each in _in_batches(encoder, pictures, batch_size)])
    return RecomputedFeatures(encoder, pictures, pooled)


@torch.no_grad()
def _in_batches(
    encoder: Encoder, pictures: Sequence[Picture], batch_size: int
) -> Iterator[Features]:
    with evaluating(encoder.model):
        starts = range(0, len(pictures), batch_size)
        for at in phase("features, batches of pictures", starts, len(starts)):
            yield encoder.features(images_for(encoder, pictures[at : at + batch_size]))


def images_for(encoder: Encoder, pictures: Sequence[Picture]) -> Tensor:
    """Normalise pictures to the encoder's input, on its device and in its dtype."""
    images = normalised(pictures, encoder.mean, encoder.std)
    return images.to(next(encoder.model.parameters()))
