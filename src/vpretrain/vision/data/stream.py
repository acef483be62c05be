"""Endless batches of unlabeled pictures: mixed, shuffled, cropped to one size, each with a seed for
its views.

Nothing is drawn from a buffer that a restart loses: each pass over a source is a permutation made
anew from ``(seed, source, pass)``, and the source of the next picture follows from how many each
has given. So the position is one integer a source, and resuming is exact."""

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
"""Pictures of a source whose content goes into its identity: the first, the last and what lies
evenly between."""


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Unlabeled pictures of one size.

    Args:
        pixels: uint8 [B, 3, H, W], RGB.
        indices: int64 [B]; where each picture stands in the sources, one source after the other.
        names: of the pictures, B of them.
        seed: of everything random that is done to this batch (its crops): in [0, 2^63).
        rank: which part of a batch of ``world * B`` pictures these are: the ``rank``-th and every
            ``world``-th after it. What is drawn from the seed is drawn for all of them, so that a
            picture looks the same however they are shared out.
        world: how many parts there are.
        views: of these pictures, where they have been cut already; None: they follow from the seed.
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
        """Images in this batch (local under data parallelism): what the core's budget counts."""
        return len(self.indices)

    @property
    def weight(self) -> int:
        """What the loss is a mean over: images."""
        return self.tokens

    def to(self, device: torch.device | str) -> ImageBatch:
        return replace(self, pixels=self.pixels.to(device), indices=self.indices.to(device))

    def digest(self) -> str:
        """Sixteen hexadecimal digits (SHA-256 of shape, seed, indices, pixels): proof that arms saw
        the same batch."""
        sha = hashlib.sha256(repr((tuple(self.pixels.shape), self.seed)).encode())
        for tensor in (self.indices, self.pixels):
            sha.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Source:
    """Pictures that are drawn as one ingredient of the stream; their labels are not read.

    Args:
        name: unlike every other source's; seeds the order of its pictures.
        pictures: at least one.
        weight: at least 0: the fraction of pictures drawn from here, relative to other sources.
    """

    name: str
    pictures: Pictures
    weight: float = 1.0


class Stream(roles.Stream[ImageBatch]):
    """Endless weighted mixture of sources, shuffled with a seed, in batches of one size.

    The sequence of pictures is a function of seed and sources alone (see
    :class:`vpretrain.system.sampling.Mixture`). Each is scaled so that its shorter side has
    ``load_size`` pixels, and a window of ``size`` x ``size`` is cut from it, at a place that is
    drawn anew in every pass.

    Args:
        sources: at least one, with distinct names.
        batch_size: pictures in a batch, at least 1.
        size: height and width of the batch in pixels.
        seed: of shuffles, windows and batches; a number and its digits are the same seed.
        load_size: shorter side that a picture is scaled to before it is cut; None: ``size``.
        rank: which part of every batch is read, from 0: its pictures r, r + world, ...
        world: how many parts there are.

    Raises:
        UserError: no source, one without pictures or with a weight that cannot be, no weight above
            zero, two of one name, or a batch that the parts cannot share evenly.
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
        """The exact position, fit for JSON: how many pictures each source has given, which is its
        pass and offset."""
        return {"identity": self._identity, "drawn": list(self._mixture.drawn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the position of :meth:`state_dict`.

        Raises:
            UserError: the state is of another seed or size, or of other sources or pictures.
        """
        check_identity("data.stream", state["identity"], self._identity)
        self._mixture.drawn = [int(drawn) for drawn in state["drawn"]]

    def _window(self, picture: Picture, key: str) -> Picture:
        """The pixels of one picture, scaled and cut."""
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
    """Sixteen hexadecimal digits over the pixels of a few of the pictures: cheap, and tells sets
    apart."""
    last = len(pictures) - 1
    sha = hashlib.sha256()
    for place in range(_FINGERPRINTS):
        picture = pictures[last * place // (_FINGERPRINTS - 1)]
        sha.update(unlabelled(picture).digest().encode())
    return sha.hexdigest()[:16]
