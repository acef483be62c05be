"""Scenes and what is said of them. Captions say how light a picture is before they name what is in
it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vpretrain.vision.data.scenes import CATEGORIES, Scenes

SIZE = 32  # of a picture, in pixels
LEVELS = 8  # of light, a word each, for every colour channel
NAMES = sorted({word for category in CATEGORIES for word in category.split()})
VOCABULARY = 3 * LEVELS + len(NAMES) + 1
END = VOCABULARY - 1
PROMPTS = torch.tensor(
    [[3 * LEVELS + NAMES.index(word) for word in name.split()] + [END] for name in CATEGORIES]
)
"""``[categories, T]``: the name of each."""


@dataclass(frozen=True)
class Pairs:
    """Pictures ``[B, 3, H, W]`` in [-1, 1], captions ``[B, T]``, categories ``[B]`` (the learner
    does not look at them).
    """

    pixels: Tensor
    ids: Tensor
    categories: Tensor

    @property
    def tokens(self) -> int:
        """What a budget counts: pictures."""
        return len(self.pixels)

    weight = tokens  # what the loss is a mean over

    def digest(self) -> str:
        """What was drawn."""
        return hashlib.sha256(self.pixels.numpy().tobytes()).hexdigest()[:16]


def pairs(scenes: Scenes, light_words: int, places: Iterable[int]) -> Pairs:
    """Those scenes with captions of up to three words on light, red, green and blue, and a name."""
    shown = [scenes[place] for place in places]
    pixels = torch.stack([scene.pixels for scene in shown]).float() / 127.5 - 1
    categories = torch.tensor([scene.category for scene in shown])
    light = (pixels.mean(dim=(2, 3)) + 0.5).clamp(0, 0.999)  # the middle half of the range
    words = (light * LEVELS).long() + LEVELS * torch.arange(3)
    return Pairs(
        pixels, torch.cat([words[:, :light_words], PROMPTS[categories]], dim=1), categories
    )
