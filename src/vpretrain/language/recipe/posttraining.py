"""Direct training on the feedback rows, alone or after the stream: what steering is compared with."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from vpretrain.language.recipe.common import Answer
from vpretrain.recipe import Section


class Sft(Section):
    """Supervised fine-tuning on the feedback rows (TRL)."""

    steps: PositiveInt = 100
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-5


class Grpo(Section):
    """Group-relative policy optimisation on the feedback rows' prompts (TRL): sampled answers, scored by a checker."""

    steps: PositiveInt = 50
    prompts: PositiveInt = 8
    """Prompts a step."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt; what one earns is held against the others."""
    learning_rate: PositiveFloat = 1e-6
    new_tokens: PositiveInt = 256
    """The longest answer."""
    temperature: PositiveFloat = 1.0
    checker: str = "number"
    """What an answer earns, as in ``data.feedback.tasks``."""
    answer: Answer | None = None
    """Null takes the checker's own."""


class Posttraining(Section):
    """What the arms `sft`, `grpo` and those that end with them do."""

    sft: Sft = Sft()
    grpo: Grpo = Grpo()
