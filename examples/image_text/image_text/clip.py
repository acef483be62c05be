"""CLIP as the learner, with tasks that mask pixels or weight words."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from image_text.pairs import END, PROMPTS, SIZE, VOCABULARY, Pairs
from vpretrain.method.network import Surface


@dataclass(frozen=True)
class Task:
    """Match masked pictures with weighted captions.

    Args:
        mask: ``[B, 1, H, W]`` in [0, 1]: 1 keeps a pixel, 0 replaces it with its picture's mean
            colour; None keeps all.
        words: ``[B, T]`` in [0, 1], factors of the words' embeddings; None keeps all.
    """

    mask: Tensor | None = None
    words: Tensor | None = None

    def controls(self) -> tuple[Tensor, ...]:
        """Return mask and words, without those that are None."""
        return tuple(each for each in (self.mask, self.words) if each is not None)

    def with_controls(self, controls: tuple[Tensor, ...]) -> "Task":
        """Return the task with other controls."""
        given = [name for name in ("mask", "words") if getattr(self, name) is not None]
        return replace(self, **dict(zip(given, controls, strict=True)))


class TwoTowers(nn.Module):
    """A small CLIP whose pixels are masked, and whose words are weighted, by a task."""

    def __init__(self) -> None:
        super().__init__()
        tower = dict(
            hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
        )
        ends = dict(eos_token_id=END, bos_token_id=END, pad_token_id=END)
        text = CLIPTextConfig(
            **tower, **ends, vocab_size=VOCABULARY, max_position_embeddings=16, projection_dim=64
        )
        vision = CLIPVisionConfig(**tower, image_size=SIZE, patch_size=8, projection_dim=64)
        self.clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))

    def forward(self, pixels: Tensor, ids: Tensor, task: Task) -> Tensor:
        """Return logits ``[pictures, captions]``."""
        pixels = pixels.to(self.clip.logit_scale.dtype)
        if task.mask is not None:
            pixels = task.mask * pixels + (1 - task.mask) * pixels.mean(dim=(2, 3), keepdim=True)
        if task.words is None:
            return self.clip(ids, pixels).logits_per_image
        table, weights = self.clip.text_model.embeddings.token_embedding, task.words[..., None]
        hook = table.register_forward_hook(lambda module, given, found: found * weights)
        try:
            return self.clip(ids, pixels).logits_per_image
        finally:
            hook.remove()


def contrastive(model: Callable[..., Tensor], batch: Pairs, task: Task) -> Tensor:
    """CLIP's symmetric contrastive loss between the pictures and captions of a batch."""
    logits, own = model(batch.pixels, batch.ids, task), torch.arange(len(batch.pixels))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def zero_shot(model: Callable[..., Tensor], batch: Pairs) -> tuple[Tensor, Tensor]:
    """Return zero-shot logits ``[B, categories]``, and each picture's cross-entropy ``[B]``."""
    logits = model(batch.pixels, PROMPTS, Task())
    return logits, cross_entropy(logits, batch.categories, reduction="none")


@dataclass(frozen=True)
class Kept(Surface[Pairs, Task]):
    """The surface of masks or word weights (see :class:`vpretrain.method.network.Surface`)."""

    what: Literal["mask", "words"]

    def baseline_task(self, context: Pairs) -> Task:
        """Return the task that keeps everything."""
        return Task()

    def valued_baseline_task(self, context: Pairs) -> Task:
        """Return the task that keeps everything, with a control of ones."""
        ones = (
            torch.ones_like(context.pixels[:, :1])
            if self.what == "mask"
            else torch.ones(context.ids.shape)
        )
        return self.task(context, ones)

    def inputs(self, context: Pairs) -> Tensor:
        """Return the input of the network: pixels for masks, tokens for words."""
        return context.pixels if self.what == "mask" else context.ids

    def task(self, context: Pairs, choice: Tensor) -> Task:
        """Return the task of a network's output."""
        return Task(**{self.what: choice})

    def part(self, context: Pairs, rows: int) -> Pairs:
        """Return the first rows of the batch."""
        return Pairs(context.pixels[:rows], context.ids[:rows], context.categories[:rows])

    def metrics(self, choice: Tensor) -> dict[str, float]:
        """Return ``gate``, the mean fraction removed, and the standard deviation of the choice."""
        return {"gate": 1 - float(choice.mean()), "choice_std": float(choice.std())}


def network(what: Literal["mask", "words"]) -> nn.Module:
    """Make the network from pictures to masks, or from words to weights; it starts at 0.9."""
    if what == "words":
        table = nn.Embedding.from_pretrained(torch.full((VOCABULARY, 1), log(9)), freeze=False)
        return nn.Sequential(table, nn.Flatten(1), nn.Sigmoid())
    last = nn.Conv2d(16, 1, 5, padding=2)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, log(9))
    return nn.Sequential(nn.Conv2d(3, 16, 5, padding=2), nn.GELU(), last, nn.Sigmoid())
