"""Small I-JEPA learners of three families of encoders, pictures of noise, and a task on them."""

from dataclasses import dataclass

import torch
from transformers import Dinov2Config, Dinov2Model, IJepaConfig, IJepaModel, ViTConfig, ViTModel

from vpretrain.vision.ijepa.blocks import BlockSettings
from vpretrain.vision.ijepa.learner import IJepaLearner, IJepaTask
from vpretrain.vision.ijepa.predictor import Predictor

SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
ENCODERS = {
    "ijepa": lambda: IJepaModel(IJepaConfig(**SIZES)),
    "vit": lambda: ViTModel(ViTConfig(**SIZES), add_pooling_layer=False),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2)),
}


@dataclass(frozen=True)
class Batch:
    pixels: torch.Tensor
    seed: int = 3
    rank: int = 0
    world: int = 1


def tiny_learner(family="ijepa", dtype=torch.float64, aligned_blocks=1, blocks=None, **options):
    torch.manual_seed(0)
    encoder = ENCODERS[family]().to(dtype)
    predictor = Predictor(32, width=16, depth=2, heads=2, seed=1).to(dtype)
    with torch.no_grad():
        for (
            parameter
        ) in predictor.parameters():  # away from the small default, so that predictions differ
            parameter.mul_(1.5)
    return IJepaLearner(
        encoder,
        predictor,
        aligned_blocks=aligned_blocks,
        blocks=blocks or BlockSettings(),
        **options,
    )


def images(count=3, size=32, seed=1):
    return torch.randn(
        count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def some_task(context, seed=5):
    """Weights of mean 1 and a mask somewhere between nothing and everything."""
    generator = torch.Generator().manual_seed(seed)
    weights = (
        torch.rand(context.blocks.targets.shape, dtype=torch.float64, generator=generator) + 0.2
    )
    patches = context.grid[0] * context.grid[1]
    mask = 0.2 + 0.7 * torch.rand(
        len(context.pixels), patches, dtype=torch.float64, generator=generator
    )
    return IJepaTask(weights / weights.mean(), mask)
