"""Types of recipe values that several sections use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Range = tuple[NonNegativeFloat, NonNegativeFloat]
Level = Annotated[int, Field(ge=0, le=255)]
Side = tuple[PositiveInt, PositiveInt]
Channels = tuple[float, float, float]
Downstream = Literal["segmentation", "depth", "classification"]
Probe = Literal["segmentation", "depth", "classification", "knn"]
