"""What heads and probes read: features of a backbone, with their graph or frozen.

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
    """A backbone, as heads see it."""

    @property
    def mean(self) -> Sequence[float]:
        """Of R, G, B, on the scale [0, 1], that its images are normalised with."""
        ...

    @property
    def std(self) -> Sequence[float]:
        """Likewise."""
        ...

    @property
    def model(self) -> nn.Module:
        """The module that is put into evaluation mode while features are taken."""
        ...

    def features(self, images: Tensor) -> Features:
        """Features of normalised images ``[B, 3, H, W]`` (float); the graph is alive unless under
        ``no_grad``."""
        ...


@dataclass(frozen=True)
class LastBlocks:
    """The outputs of the last ``blocks`` blocks of a backbone, side by side, as the features, of
    images that are normalised with ``mean`` and ``std``, as the learner's are."""

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
    """Pictures of one size with their features, which have no graph.

    Attributes:
        pictures: N of them.
        pooled: ``[N, D]``.
    """

    pictures: Sequence[Picture]
    pooled: Tensor

    @property
    def width(self) -> int:
        """D."""
        return self.pooled.shape[1]

    @abstractmethod
    def at(self, places: Sequence[int]) -> Frozen:
        """Some of the pictures with their features, in memory."""

    @abstractmethod
    def part(self, places: Sequence[int]) -> FrozenFeatures:
        """Some of the pictures, kept as these are."""


@dataclass(frozen=True, eq=False)
class Frozen(FrozenFeatures):
    """Features that are all in memory: ``[N, D, h, w]`` and ``[N, D]``."""

    pictures: Sequence[Picture]
    features: Features

    @property
    def pooled(self) -> Tensor:  # type: ignore[override]
        return self.features.pooled

    def at(self, places: Sequence[int]) -> Frozen:
        chosen = torch.tensor(places, device=self.features.pooled.device)
        features = Features(self.features.patches[chosen], self.features.pooled[chosen])
        return Frozen([self.pictures[place] for place in places], features)

    part = at


@dataclass(frozen=True, eq=False)
class Recomputed(FrozenFeatures):
    """Features of patches that are computed whenever they are asked for, by an encoder that stands
    still meanwhile; those of whole pictures are kept."""

    encoder: Encoder
    pictures: Sequence[Picture]
    pooled: Tensor

    def at(self, places: Sequence[int]) -> Frozen:
        return freeze(self.encoder, [self.pictures[place] for place in places])

    def part(self, places: Sequence[int]) -> Recomputed:
        chosen = torch.tensor(places, device=self.pooled.device)
        return Recomputed(
            self.encoder, [self.pictures[place] for place in places], self.pooled[chosen]
        )


def freeze(encoder: Encoder, pictures: Sequence[Picture], *, batch_size: int = 32) -> Frozen:
    """Features of pictures of one size, without dropout and gradients, kept on the encoder's device
    in its dtype (N h w D figures); the encoder is as before."""
    parts = list(_in_batches(encoder, pictures, batch_size))
    features = Features(torch.cat([f.patches for f in parts]), torch.cat([f.pooled for f in parts]))
    return Frozen(pictures, features)


def freeze_within(
    encoder: Encoder,
    pictures: Sequence[Picture],
    memory_bytes: float,
    *,
    patches: bool = True,
    batch_size: int = 32,
) -> FrozenFeatures:
    """The same in bounded memory: features of patches that do not fit are :class:`Recomputed`.

    Args:
        encoder: that stands still as long as the features are used.
        pictures: of one size.
        memory_bytes: for features of patches.
        patches: False where features of whole pictures are all that is needed.
        batch_size: pictures in one forward pass.
    """
    first = freeze(encoder, pictures[:1]).features.patches
    if patches and first.nbytes * len(pictures) <= memory_bytes:
        return freeze(encoder, pictures, batch_size=batch_size)
    pooled = torch.cat([each.pooled for each in _in_batches(encoder, pictures, batch_size)])
    return Recomputed(encoder, pictures, pooled)


@torch.no_grad()
def _in_batches(
    encoder: Encoder, pictures: Sequence[Picture], batch_size: int
) -> Iterator[Features]:
    with evaluating(encoder.model):
        starts = range(0, len(pictures), batch_size)
        for at in phase("features, batches of pictures", starts, len(starts)):
            yield encoder.features(images_for(encoder, pictures[at : at + batch_size]))


def images_for(encoder: Encoder, pictures: Sequence[Picture]) -> Tensor:
    """What the encoder takes, on its device and in its dtype."""
    images = normalised(pictures, encoder.mean, encoder.std)
    return images.to(next(encoder.model.parameters()))
