"""The task designer."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from vpretrain.config.recipe import Layers, Section
from vpretrain.vision.recipe.common import Share


class DesignerSection(Section):
    """The task designer; each arm reads what concerns it."""

    kind: Literal["ascent", "closed_form", "view_weights", "patch_weights"] = "ascent"
    """What arms that only replace the feedback (random directions, say) steer with."""
    network: Literal["unet", "patch"] = "unet"
    """``ascent``: what looks at a view and emits its mask; ``patch`` is the tiny transformer
    (DiT/SiT style).
    """
    base: PositiveInt = 16
    """``unet``: channels at full resolution, a multiple of 8."""
    depth: Layers = 3
    """Halvings of ``unet``; blocks of ``patch``."""
    patch_size: PositiveInt = 16
    """``patch``: the mask's grain in pixels."""
    width: PositiveInt = 64
    """``patch``: of its tokens."""
    heads: PositiveInt = 4
    """``patch``: of its attention."""
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Mean of the mask that every arm with masks keeps to; 1 leaves views as they are (not for
    ``ascent``).
    """
    sparsity: NonNegativeFloat = 0.131
    """l_spars of eq. 54: price of the squared distance of the mask's mean from the keep ratio."""
    total_variation: NonNegativeFloat = 0.144
    """l_tv of eq. 54: price of a rough mask."""
    value_unit: Literal["standard_deviation", "raw"] = "standard_deviation"
    """What those prices are in: standard deviations of dV/dmu over pixels (ours: the scale of the
    losses drops out), or the value itself (the paper's)."""
    learning_rate: NonNegativeFloat = 1.54e-4
    """Of Adam on the mask network."""
    updates: PositiveInt = 1
    """Steps of the mask network a meta step, along the same dV/dmu."""
    meta_images: PositiveInt | None = None
    """``ascent``: images of the learner's batch whose masks are valued at a meta step; null: all of
    them.
    """
    blur_sigma: PositiveFloat = 4.0
    """Standard deviation in pixels of the blur that a mask lets through (eq. 49; the paper gives
    none).
    """
    grain: PositiveInt = 16
    """``random_masks``: side in pixels of the grid that they are drawn on."""
    candidates: PositiveInt | None = None
    """``closed_form``: the teacher's most probable prototypes, among which mass may move; null:
    all.
    """
    gate_max: Share = 0.5
    """``closed_form``: the most mass that may leave the teacher's own distribution."""
    temperature: PositiveFloat = 1.0
    """``closed_form``: tau of the anchored rule, in standard deviations of the value."""
    clip: PositiveFloat = 2.0
    """``closed_form``: bound on the tilt of the anchored rule."""
    tilt: NonNegativeFloat = 0.4
    """``view_weights``, ``patch_weights``: weight per standard deviation of the value."""
    control_gate: Share = 0.1
    """``uniform_smoothing``: the constant share of mass that is spread evenly."""
    direct_weight: PositiveFloat = 1.0
    """``direct``: what g_down is multiplied by before it is added to the step."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"designer.width is {self.width}; designer.heads ({self.heads}) and 4 have to "
                "divide it"
            )
        return self
