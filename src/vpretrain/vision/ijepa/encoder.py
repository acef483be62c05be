"""A backbone that can be run on a part of its patches, as I-JEPA's encoders are.

Shapes: B images, L patches of the grid, P leading tokens, D width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vpretrain.system.contexts import computing, evaluating
from vpretrain.vision.backbone import Backbone, stretching


class PatchEncoder(Backbone):
    """An encoder laid out like I-JEPA, ViT or DINOv2, taken apart into embeddings and blocks.

    Args:
        model: a ``transformers`` vision model.
        autocast: the dtype of products in the blocks, if it is not the weights' own.

    Raises:
        UserError: the parts cannot be told, or do not add up to the whole.
    """

    def __init__(self, model: Any, *, autocast: torch.dtype | None = None) -> None:
        super().__init__(model)
        embeddings: Any = getattr(model, "embeddings", None)
        # Rotary positions enter in the blocks, which would have to be told which patches are left.
        if not hasattr(model, "layernorm") or not hasattr(embeddings, "patch_embeddings"):
            raise self.refused("does not add positions to its patches as I-JEPA, ViT or DINOv2 do")
        self.embeddings = embeddings
        images = self.small_images()
        with evaluating(model), torch.no_grad():
            if not self.agree(self.tokens(images), self.encode(self.embed(images))):
                raise self.refused("does more than embeddings, blocks and final norm")
        self.autocast = autocast  # only now, see Backbone

    def embed(self, pixels: Tensor) -> Tensor:
        """Tokens with their positions, ``[B, P + L, D]``."""
        return self.embeddings(pixels.to(self.norm.weight.dtype), **stretching(self.embeddings))

    def contents(self, pixels: Tensor) -> Tensor:
        """The part of the patches' tokens that comes from pixels, ``[B, L, D]``."""
        return self.embeddings.patch_embeddings(pixels.to(self.norm.weight.dtype))

    def encode(self, tokens: Tensor) -> Tensor:
        """All blocks and the final norm, over any subset of the tokens."""
        with computing(tokens.device, self.autocast):
            for block in self.blocks:
                tokens = block(tokens)
            return self.norm(tokens)
