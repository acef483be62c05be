"""The task designer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from vpretrain.config.recipe import Layers, Section
from vpretrain.language.recipe.common import Share


class DesignerSection(Section):
    """The task designer; each arm reads what concerns it."""

    kind: Literal[
        "closed_form",
        "field",
        "ascent",
        "token_weights",
        "weight_field",
        "weighted_targets",
        "document_weights",
        "source_weights",
    ] = "token_weights"
    """What arms that only replace the feedback (random directions, say) steer with."""
    candidates: PositiveInt = 64
    """K: the true token and the learner's K - 1 most probable others (eq. 14)."""
    gate_max: Share = 0.5
    """alpha_max: the most mass that may leave the true token (eq. 15)."""
    temperature: PositiveFloat = 1.0
    """tau of the anchored rule, in standard deviations of the token value."""
    clip: PositiveFloat = 2.0
    """Bound on the tilt of the anchored rule."""
    tilt: NonNegativeFloat = 0.4
    """c of the token weights."""
    control_gate: Share = 0.1
    """The constant gate of uniform smoothing and self-distillation."""
    hidden: PositiveInt = 256
    layers: Layers = 6
    heads: PositiveInt = 4
    learning_rate: NonNegativeFloat = 1e-4
    updates: PositiveInt = 1
    """Steps of the designer's network a meta step: the values that it learns from do not depend on
    it.
    """
    replay: PositiveInt = 1
    """Batches that ``field`` and ``weight_field`` learn from: the present one and remembered ones.
    """
    entropy_bonus: NonNegativeFloat = 0.0
    """lambda of ``ascent``'s regulariser R(phi): entropy of the targets."""
    anchor: NonNegativeFloat = 0.0
    """``ascent``: price of a nat of KL from the targets to the learner, in standard deviations of
    the token value.
    """
    gate_price: NonNegativeFloat = 0.0
    """``ascent``: price of an open gate, in standard deviations of the token value."""

    init_from: Path | None = None
    """Folder of a finished run whose designer this run starts with (``ascent``, ``field``,
    ``weight_field``); its learner must have used the same tokenizer."""
    frozen: bool = False
    """Whether the carried designer stays as it is: it hears no feedback, and there are no meta
    steps.
    """
    companion: bool = False
    """Whether the carried designer goes on reading the hidden states of the model it was trained
    with, which then runs beside the learner: for a learner of another size or origin."""

    @model_validator(mode="after")
    def _carries_something(self) -> Self:
        if self.init_from is None and (self.frozen or self.companion):
            raise ValueError(
                "designer.init_from names no run, and only a carried designer can be "
                "frozen or have a companion"
            )
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(
                f"designer.heads is {self.heads}, which does not divide designer.hidden, "
                f"{self.hidden}"
            )
        return self
