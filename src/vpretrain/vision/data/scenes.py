"""Small rendered scenes: textured solids on a ground plane, with exact labels and depth.

An object's category is its pattern: two colours on opposite sides of a grey, in stripes or
chequers. The six categories combine three colour pairs with two textures, so neither colour nor
texture alone identifies one. Patterns are finer than a small patch and every category has the same
grey mean, so the category shows only in how colour varies, which needs a feature that is not linear
in pixels. Shape, size, position, light and room are random. A scene holds few categories, because
objects in photographs are correlated. Every pixel shows the first surface that the ray through its
centre meets, and has that surface's label and depth."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vpretrain.system.errors import user_error
from vpretrain.system.sampling import seed_of
from vpretrain.vision.data.images import Picture, unlabelled
from vpretrain.vision.data.raycast import FOCAL, SHAPES, TEXTURES, Room, Surface, Thing, render

COLOURS = ("red and cyan", "green and magenta", "blue and yellow")
KINDS = tuple((colours, texture) for texture in (0, 1) for colours in range(3))
"""Colours and texture of each category, as indices into ``COLOURS`` and ``TEXTURES``."""
CATEGORIES = tuple(f"{TEXTURES[texture]} {COLOURS[colours]}" for colours, texture in KINDS)
"""Names of :attr:`Picture.category`."""
CLASSES = ("background", *CATEGORIES)
"""Names of :attr:`Picture.labels`; the label of an object is its category + 1."""
SPLITS = ("stream", "feedback", "dev", "test")

NEAREST_METRES, FARTHEST_METRES = 0.5, 10.0
"""Range of all depths in a scene."""

# Fraction of objects above the ground; with all of them on it, the row would reveal the background.
_HANGING = 1 / 3
_HEIGHTS = (1.0, 0.85, 1.2)  # ball, box and cone, so that each covers about as many pixels
_COMPANY = 2  # most categories in one scene


def scene(seed: int, index: int, size: int, *, name: str | None = None) -> Picture:
    """Render one scene, a pure function of the arguments.

    On another kind of machine, sines may differ in the last bit. The layout does not depend on the
    size, which changes only the resolution and the sensor noise. Labels are 0..6 (``CLASSES``),
    depth is 0.5..10 metres at every pixel, and the category (0..5, ``CATEGORIES``) is that of the
    object with most visible pixels.

    Args:
        seed: seed of a sequence of scenes, at least 0.
        index: index of the scene in the sequence, at least 0.
        size: height and width in pixels, at least 8.
        name: name of the picture; default ``scene/SEED/INDEX``.
    """
    if seed < 0 or index < 0 or size < 8:
        raise ValueError(f"seed and index start at 0 and size at 8, got {seed}, {index} and {size}")
    draw = np.random.default_rng([seed, index])
    room, things = _room(draw), _things(draw)
    colour, owner, depth = render(room, things, size)
    noise = draw.standard_normal((size, size, 3), dtype=np.float32) * draw.uniform(0.01, 0.03)
    pixels = np.clip((colour + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
    labels = np.array([0, *(1 + thing.category for thing in things)], dtype=np.int64)[owner]
    name = f"scene/{seed}/{index}" if name is None else name
    largest = int(np.bincount(owner.ravel(), minlength=len(things) + 1)[1:].argmax())
    return Picture(
        name,
        torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
        torch.from_numpy(labels),
        torch.from_numpy(depth),
        things[largest].category,
        origin=name,
    )


class Scenes:
    """The scenes of a split, each rendered on first access and kept.

    Args:
        split: one of ``SPLITS``, which share no scenes.
        count: number of scenes; a longer set begins with the scenes of a shorter one.
        size: height and width in pixels.
        seed: seed of the scenes.
        labelled: False leaves out labels, depth and category, which saves most of the memory.

    Raises:
        UserError: there is no such split, or ``count`` is below 1.
    """

    def __init__(
        self, split: str, count: int, size: int, seed: int, *, labelled: bool = True
    ) -> None:
        if split not in SPLITS:
            message = "there is no such split of the scenes"
            raise user_error("split", message, value=split, accepted=", ".join(SPLITS))
        if count < 1:
            message = "a set of scenes holds at least one"
            raise user_error("count", message, value=count, accepted="1 or more")
        self.split, self.size, self.labelled = split, size, labelled
        self._seed = seed_of(f"{split}/{seed}")
        self._name = f"scenes/{split}/{seed}"
        self._kept: list[Picture | None] = [None] * count

    def __len__(self) -> int:
        return len(self._kept)

    def names(self) -> list[str]:
        """Return the names of all pictures without rendering them."""
        return [f"{self._name}/{number}" for number in range(len(self))]

    def __getitem__(self, index: int, /) -> Picture:
        number = range(len(self))[index]  # iteration stops at the IndexError past the end
        kept = self._kept[number]
        if kept is None:
            made = scene(self._seed, number, self.size, name=f"{self._name}/{number}")
            kept = self._kept[number] = made if self.labelled else unlabelled(made)
        return kept


def _room(draw: np.random.Generator) -> Room:
    light = np.array([draw.uniform(-1, 1), -draw.uniform(0.4, 1.2), -draw.uniform(0.3, 1)])
    return Room(
        horizon=draw.uniform(0.3, 0.6),
        camera_metres=draw.uniform(0.9, 1.2),
        wall_metres=draw.uniform(6.5, FARTHEST_METRES),
        ground=_backdrop(draw),
        wall=_backdrop(draw),
        light=(light / np.linalg.norm(light)).astype(np.float32),
        exposure=np.asarray(draw.uniform(0.8, 1.15) * draw.uniform(0.92, 1.08, 3), np.float32),
    )


def _things(draw: np.random.Generator) -> list[Thing]:
    """Draw two or three large objects, spread over the width."""
    count = 2 + int(draw.random() * 2)
    # Evenly spread in 1 / z, hence in apparent size, and in random order from left to right.
    spread = (np.arange(count) + draw.random(count)) / count
    depths = 1 / (1 / 2.3 + spread * (1 / 1.5 - 1 / 2.3))
    places = (draw.permutation(count) + draw.random(count)) / count
    company = draw.permutation(len(KINDS))[:_COMPANY]
    things = []
    for z, place in zip(depths, places, strict=True):
        category = int(company[int(draw.random() * _COMPANY)])
        shape = int(draw.random() * len(SHAPES))
        height = draw.uniform(1.05, 1.5) * _HEIGHTS[shape]
        x = (place - 0.5) * z / FOCAL
        lift = draw.uniform(0.2, 0.9) if draw.random() < _HANGING else 0.0
        turn = draw.uniform(0, 2 * np.pi)
        pattern = _pattern(draw, category)
        things.append(Thing(category, shape, float(x), float(z), height, lift, turn, pattern))
    return things


def _pattern(draw: np.random.Generator, category: int) -> Surface:
    """Draw an object's pattern, so fine that a patch of a few pixels holds both its colours."""
    colours, texture = KINDS[category]
    grey = draw.uniform(0.4, 0.6) + draw.uniform(-0.08, 0.08, 3)
    apart = draw.uniform(0.28, 0.42) * np.where(np.arange(3) == colours, 1, -0.5)
    both = np.stack((grey + apart, grey - apart)).clip(0, 1)
    return _surface(draw, texture, draw.uniform(0.2, 0.26), both)


def _backdrop(draw: np.random.Generator) -> Surface:
    """Draw a faint, blurred pattern of tinted greys for the ground or the wall."""
    grey = draw.uniform(0.25, 0.75) + draw.uniform(-0.06, 0.06, 3)
    both = np.stack((grey - 0.08, grey + 0.08)).clip(0, 1)
    return _surface(draw, 2, draw.uniform(1.5, 3.0), both)


def _surface(
    draw: np.random.Generator, texture: int, period_metres: float, colours: NDArray[np.float64]
) -> Surface:
    """Draw directions and phases for a texture of this period and these colours."""
    along, other = draw.standard_normal((2, 3))
    across = np.cross(along, other)
    axes = np.stack((along, across, np.cross(along, across)), 1)
    axes /= np.linalg.norm(axes, axis=0)
    if texture == 0:
        directions = axes[:, :1]
    elif texture == 1:
        directions = axes
    else:  # waves of many directions and lengths add up to irregular blots
        directions = draw.standard_normal((3, 6))
        directions *= draw.uniform(0.4, 1, 6) / np.linalg.norm(directions, axis=0)
    return Surface(
        texture,
        colours.astype(np.float32),
        (directions * (2 * np.pi / period_metres)).astype(np.float32),
        np.asarray(draw.uniform(0, 2 * np.pi, directions.shape[1]), np.float32),
        period_metres,
    )
