"""A backbone that can run on a subset of its patches, as I-JEPA's encoders do.

Shapes: B images, L patches of the grid, P leading tokens, D width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vpretrain.system.contexts import computing, evaluating
from vpretrain.vision.backbone import Backbone, stretching


class PatchEncoder(Backbone):
    """An encoder laid out like I-JEPA, ViT or DINOv2, split into embeddings and blocks.

    Args:
        model: a ``transformers`` vision model.
        autocast: dtype of matrix products in the blocks, if it differs from that of the weights.

    Raises:
        UserError: the layout is not supported, or the parts do not reproduce the whole model.
    """

    def __init__(self, model: Any, *, autocast: torch.dtype | None = None) -> None:
        super().__init__(model)
        embeddings: Any = getattr(model, "embeddings", None)
        # Rotary positions enter in the blocks, which would need to know which patches are left.
        if not hasattr(model, "layernorm") or not hasattr(embeddings, "patch_embeddings"):
            raise self.refused("does not add positions to its patches as I-JEPA, ViT or DINOv2 do")
        self.embeddings = embeddings
        images = self.small_images()
        with evaluating(model), torch.no_grad():
            if not self.agree(self.tokens(images), self.encode(self.embed(images))):
                raise self.refused("does more than embeddings, blocks and final norm")
        self.autocast = autocast  # after the comparison, see Backbone

    def embed(self, pixels: Tensor) -> Tensor:
        """Return tokens with position embeddings, ``[B, P + L, D]``."""
        return self.embeddings(pixels.to(self.norm.weight.dtype), **stretching(self.embeddings))

    def contents(self, pixels: Tensor) -> Tensor:
        """Return patch embeddings without positions, ``[B, L, D]``."""
        return self.embeddings.patch_embeddings(pixels.to(self.norm.weight.dtype))

    def encode(self, tokens: Tensor) -> Tensor:
        """Run all blocks and the final norm on any subset of the tokens."""
        with computing(tokens.device, self.autocast):
            for block in self.blocks:
                tokens = block(tokens)
            return self.norm(tokens)
