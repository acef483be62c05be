"""Endless batches of unlabeled pictures: mixed, shuffled and cropped to one size.

Each batch carries the seed of its views. There is no shuffle buffer that a restart would lose: each
pass over a source is a permutation seeded by ``(seed, source, pass)``, and the source of the next
picture follows from how many pictures each source has given. The position is one integer per
source, so resuming is exact."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vpretrain.method import roles
from vpretrain.system.sampling import Mixture, check_identity, check_parts, seed_of
from vpretrain.vision.data.images import (
    Picture,
    Pictures,
    cropped,
    resized,
    scaled_size,
    stacked,
    unlabelled,
)

if TYPE_CHECKING:
    from vpretrain.vision.data.crops import Crops

_FINGERPRINTS = 3
"""Number of pictures, evenly spaced from the first to the last, whose content identifies a
source."""


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Unlabeled pictures of one size.

    Args:
        pixels: uint8 [B, 3, H, W], RGB.
        indices: int64 [B]; index of each picture in the concatenation of all sources.
        names: names of the B pictures.
        seed: seed in [0, 2^63) of the batch's random crops.
        rank: part of a global batch of ``world * B`` pictures: picture ``rank`` and every
            ``world``-th after it. Random draws are made for the global batch, so that the views of
            a picture do not depend on how the batch is split.
        world: number of parts.
        views: views that have been cut already. None: they are cut from the seed.
    """

    pixels: Tensor
    indices: Tensor
    names: tuple[str, ...]
    seed: int
    rank: int = 0
    world: int = 1
    views: Crops | None = None

    @property
    def tokens(self) -> int:
        """Number of images in this batch (local under data parallelism); counted by the budget."""
        return len(self.indices)

    @property
    def weight(self) -> int:
        """Number of images, over which the loss is a mean."""
        return self.tokens

    def to(self, device: torch.device | str) -> ImageBatch:
        return replace(self, pixels=self.pixels.to(device), indices=self.indices.to(device))

    def digest(self) -> str:
        """Sixteen hexadecimal digits (SHA-256 of shape, seed, indices, pixels).

        Equal digests prove that two arms saw the same batch."""
        sha = hashlib.sha256(repr((tuple(self.pixels.shape), self.seed)).encode())
        for tensor in (self.indices, self.pixels):
            sha.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Source:
    """One source of the stream's mixture; labels are not read.

    Args:
        name: unique among sources; seeds the order of the pictures.
        pictures: one picture or more.
        weight: relative sampling weight among the sources, at least 0.
    """

    name: str
    pictures: Pictures
    weight: float = 1.0


class Stream(roles.Stream[ImageBatch]):
    """Endless weighted mixture of sources, shuffled with a seed, in batches of one size.

    The sequence of pictures depends on seed and sources alone (see
    :class:`vpretrain.system.sampling.Mixture`). Each picture is scaled so that its shorter side has
    ``load_size`` pixels, then cropped to ``size`` x ``size`` at a position drawn anew in each pass.

    Args:
        sources: one source or more, with distinct names.
        batch_size: pictures in a global batch, at least 1.
        size: height and width of the batch in pixels.
        seed: seed of shuffles, windows and batches; a number and its digits are the same seed.
        load_size: shorter side that a picture is scaled to before it is cropped; None: ``size``.
        rank: part of every batch that is read, from 0: pictures rank, rank + world, ...
        world: number of parts.

    Raises:
        UserError: there is no source, a source has no pictures or an invalid weight, no weight is
            above zero, two sources share a name, or the parts cannot split the batch evenly.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int,
        size: int,
        seed: int | str,
        load_size: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        load_size = size if load_size is None else load_size
        if batch_size < 1 or size < 1 or load_size < size:
            shown = f"{batch_size} pictures of {size} pixels from {load_size}"
            raise ValueError(f"a batch needs pictures, no larger than they are loaded; got {shown}")
        check_parts(batch_size, rank, world)
        each = [(source.name, len(source.pictures), source.weight) for source in sources]
        fix = ": fill its folder, or take it out"
        self._mixture = Mixture(each, seed=seed, items="pictures", fix=fix)
        self.rank, self.world = rank, world
        self.sources = tuple(sources)
        self.batch_size, self.size, self.load_size, self.seed = batch_size, size, load_size, seed
        self._starts = [0, *accumulate(len(source.pictures) for source in sources)]
        self._identity: dict[str, Any] = {
            "seed": seed,
            "size": [batch_size, size, load_size],
            "sources": [
                [s.name, s.weight, len(s.pictures), fingerprint(s.pictures)] for s in sources
            ],
        }

    def __next__(self) -> ImageBatch:
        seed = seed_of(f"{self.seed}/batch/{sum(self._mixture.drawn)}")
        pictures: list[Picture] = []
        indices: list[int] = []
        for place in range(self.batch_size):
            source, number, index = self._mixture.draw()
            if place % self.world != self.rank:
                continue
            key = f"{self.seed}/{self.sources[source].name}/window/{number}"
            pictures.append(self._window(self.sources[source].pictures[index], key))
            indices.append(self._starts[source] + index)
        names = tuple(picture.name for picture in pictures)
        return ImageBatch(
            stacked(pictures), torch.tensor(indices), names, seed, self.rank, self.world
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the exact position as JSON values: how many pictures each source has given.

        That number determines the pass and the offset in it."""
        return {"identity": self._identity, "drawn": list(self._mixture.drawn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position saved by :meth:`state_dict`.

        Raises:
            UserError: the state has another seed or size, or other sources or pictures.
        """
        check_identity("data.stream", state["identity"], self._identity)
        self._mixture.drawn = [int(drawn) for drawn in state["drawn"]]

    def _window(self, picture: Picture, key: str) -> Picture:
        """Scale and crop one picture; its labels are dropped."""
        height, width = scaled_size(picture.size, self.load_size)
        picture = resized(unlabelled(picture), (height, width))
        if (height, width) == (self.size, self.size):
            return picture
        generator = torch.Generator().manual_seed(seed_of(key))
        top, left = (
            int(torch.randint(s - self.size + 1, (), generator=generator)) for s in (height, width)
        )
        return cropped(picture, top, left, self.size, self.size)


def fingerprint(pictures: Pictures) -> str:
    """Sixteen hexadecimal digits over the pixels of a few pictures: a cheap identity of a set."""
    last = len(pictures) - 1
    sha = hashlib.sha256()
    for place in range(_FINGERPRINTS):
        picture = pictures[last * place // (_FINGERPRINTS - 1)]
        sha.update(unlabelled(picture).digest().encode())
    return sha.hexdigest()[:16]
