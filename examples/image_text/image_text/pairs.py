"""Pairs of scenes and captions. A caption describes the light first, then names the category."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vpretrain.vision.data.scenes import CATEGORIES, Scenes

SIZE = 32  # height and width of a picture in pixels
LEVELS = 8  # light levels per colour channel, with a word for each
NAMES = sorted({word for category in CATEGORIES for word in category.split()})
VOCABULARY = 3 * LEVELS + len(NAMES) + 1
END = VOCABULARY - 1
PROMPTS = torch.tensor(
    [[3 * LEVELS + NAMES.index(word) for word in name.split()] + [END] for name in CATEGORIES]
)
"""``[categories, T]``: the tokens of each category's name."""


@dataclass(frozen=True)
class Pairs:
    """A batch of pictures and captions.

    Args:
        pixels: ``[B, 3, H, W]`` in [-1, 1].
        ids: ``[B, T]`` tokens of the captions.
        categories: ``[B]``; not used by the learner.
    """

    pixels: Tensor
    ids: Tensor
    categories: Tensor

    @property
    def tokens(self) -> int:
        """Number of pictures, counted by the budget."""
        return len(self.pixels)

    weight = tokens  # number of pictures, over which the loss is a mean

    def digest(self) -> str:
        """Return a hash of the pixels."""
        return hashlib.sha256(self.pixels.numpy().tobytes()).hexdigest()[:16]


def pairs(scenes: Scenes, light_words: int, places: Iterable[int]) -> Pairs:
    """Return scenes with captions: up to three words for red, green and blue light, and a name."""
    shown = [scenes[place] for place in places]
    pixels = torch.stack([scene.pixels for scene in shown]).float() / 127.5 - 1
    categories = torch.tensor([scene.category for scene in shown])
    light = (pixels.mean(dim=(2, 3)) + 0.5).clamp(0, 0.999)  # the middle half of the range
    words = (light * LEVELS).long() + LEVELS * torch.arange(3)
    return Pairs(
        pixels, torch.cat([words[:, :light_words], PROMPTS[categories]], dim=1), categories
    )
