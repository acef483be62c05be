"""I-JEPA's predictor, and the transformer parts that it shares with the patchwise mask network.

Shapes: B images, P leading tokens, N context patches, M target blocks of K patches, D the encoder's
width, W the predictor's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vpretrain.system.contexts import own_random_state
from vpretrain.system.errors import user_error


def patch_positions(ids: Tensor, columns: int, width: int, dtype: torch.dtype) -> Tensor:
    """Fixed sine-cosine position embeddings ``[*ids.shape, width]`` of patches.

    Half of the channels encode the row and half the column, counted in patches, so that one network
    works on grids of any size.

    Args:
        ids: int64 of any shape, patches numbered row by row.
        columns: columns of the grid.
        width: width of the embedding, a multiple of 4.
        dtype: dtype of the embedding.
    """
    steps = torch.arange(width // 4, device=ids.device, dtype=torch.float64) / (width // 4)
    frequency = 10_000.0**-steps
    angles = [place[..., None] * frequency for place in (ids // columns, ids % columns)]
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.cat(waves, dim=-1).to(dtype)


class Block(nn.Module):
    """A pre-norm transformer block without dropout, over ``[B, tokens, width]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(tokens)


class Predictor(nn.Module):
    """Predicts the target encoder's output at each target patch from the encoded context.

    A mask token at the position of every target patch attends to the context. As in I-JEPA, each
    target block is predicted independently of the others.

    Args:
        encoder_width: D.
        width: W, a multiple of 4 and of ``heads``.
        depth: number of transformer blocks.
        heads: number of attention heads.
        seed: seed of the initial weights; the global generator is not changed.

    Raises:
        UserError: ``width`` is not such a multiple.
    """

    def __init__(
        self, encoder_width: int, *, width: int = 384, depth: int = 6, heads: int = 12, seed: int
    ) -> None:
        super().__init__()
        check_width("learner.predictor.width", width, heads)
        with own_random_state(seed):
            self.read = nn.Linear(encoder_width, width)
            self.mask_token = nn.Parameter(0.02 * torch.randn(width))
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
            self.write = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, encoder_width))

    def forward(self, states: Tensor, context: Tensor, targets: Tensor, columns: int) -> Tensor:
        """Predict ``[B, M, K, D]`` in the predictor's dtype; gradients flow to ``states``.

        Args:
            states: ``[B, P + N, D]`` encoded context; the P leading tokens (class token, registers)
                have no position.
            context: ``[B, N]`` int64 patch numbers of the context.
            targets: ``[B, M, K]`` int64 patch numbers to predict.
            columns: columns of the grid.
        """
        dtype, width = self.mask_token.dtype, len(self.mask_token)
        tokens = self.read(states.to(dtype))
        leading = tokens.shape[1] - context.shape[1]
        places = patch_positions(context, columns, width, dtype)
        tokens = tokens + nn.functional.pad(places, (0, 0, leading, 0))
        queries = self.mask_token + patch_positions(targets, columns, width, dtype)  # [B, M, K, W]
        images, blocks, patches = targets.shape
        tokens = tokens[:, None].expand(-1, blocks, -1, -1)
        sequence = torch.cat([tokens, queries], dim=2).flatten(0, 1)  # [B * M, P + N + K, W]
        for block in self.blocks:
            sequence = block(sequence)
        return self.write(sequence[:, -patches:]).unflatten(0, (images, blocks))


def check_width(where: str, width: int, heads: int) -> None:
    """Raise a UserError unless ``width`` is a multiple of 4 and of ``heads``."""
    if width % 4 or width % heads:
        message, accepted = (
            "heads and position embeddings do not divide it",
            f"a multiple of 4 and of {heads}",
        )
        raise user_error(where, message, value=width, accepted=accepted)
