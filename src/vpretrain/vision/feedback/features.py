"""What heads and probes read: features of a backbone, with their graph or frozen.

Shapes: N pictures, D feature width, h x w patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vpretrain.system.contexts import evaluating
from vpretrain.vision.backbone import Backbone, Features
from vpretrain.vision.data.images import Picture, normalised


class Encoder(Protocol):
    """A backbone, as heads see it."""

    @property
    def model(self) -> nn.Module:
        """The module that is put into evaluation mode while features are taken."""
        ...

    def features(self, images: Tensor) -> Features:
        """Features of normalised images ``[B, 3, H, W]`` (float); the graph is alive unless under
        ``no_grad``.
        """
        ...


@dataclass(frozen=True)
class LastBlocks:
    """The outputs of several last blocks as the features (``backbone.features(images, blocks)``).

    Args:
        backbone: whose.
        blocks: how many; the width is this times the backbone's.
    """

    backbone: Backbone
    blocks: int

    @property
    def model(self) -> nn.Module:
        return self.backbone.model

    def features(self, images: Tensor) -> Features:
        return self.backbone.features(images, self.blocks)


@dataclass(frozen=True, eq=False)
class Frozen:
    """Pictures of one size with their features, which have no graph.

    Args:
        pictures: N of them.
        features: ``[N, D, h, w]`` and ``[N, D]``.
    """

    pictures: Sequence[Picture]
    features: Features

    def at(self, places: Sequence[int]) -> Frozen:
        """Some of the pictures with theirs."""
        chosen = torch.tensor(places, device=self.features.pooled.device)
        features = Features(self.features.patches[chosen], self.features.pooled[chosen])
        return Frozen([self.pictures[place] for place in places], features)


@torch.no_grad()
def freeze(encoder: Encoder, pictures: Sequence[Picture], *, batch_size: int = 32) -> Frozen:
    """Features of pictures of one size, without dropout, kept on the encoder's device in its dtype
    (N h w D figures).

    Gradients do not flow; parameters, their ``.grad``, the modules' modes and the global RNG are as
    before.
    """
    with evaluating(encoder.model):
        found = [
            encoder.features(images_for(encoder, pictures[at : at + batch_size]))
            for at in range(0, len(pictures), batch_size)
        ]
    features = Features(torch.cat([f.patches for f in found]), torch.cat([f.pooled for f in found]))
    return Frozen(pictures, features)


def images_for(encoder: Encoder, pictures: Sequence[Picture]) -> Tensor:
    """What the encoder takes, on its device and in its dtype."""
    return normalised(pictures).to(next(encoder.model.parameters()))
