"""Direct training on verified rows, alone or after the stream: what steering is compared with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vpretrain.config.recipe import Section
from vpretrain.language.recipe.common import Answer
from vpretrain.language.recipe.rows import Rows


class OfFeedback(Section):
    """The rows that steer: all tasks' prompts with their verified solutions."""

    kind: Literal["feedback"]


class OfStream(Section):
    """What a source of the stream gives to it: the comparison on the same data."""

    kind: Literal["stream"]
    source: str
    """Name of the source."""


class Sft(Section):
    """Supervised fine-tuning on the rows (TRL)."""

    steps: PositiveInt = 100
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-5

    @property
    def most_rows(self) -> int:
        """Rows that it can see."""
        return self.steps * self.batch_size


class Grpo(Section):
    """Group-relative policy optimisation on the rows' prompts (TRL): sampled answers, scored by a
    checker."""

    steps: PositiveInt = 50
    prompts: PositiveInt = 8
    """Prompts a step."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt; what one earns is compared with the others."""
    learning_rate: PositiveFloat = 1e-6
    new_tokens: PositiveInt = 256
    """The longest answer."""
    temperature: PositiveFloat = 1.0
    checker: str = "number"
    """What an answer earns, as in ``data.feedback.tasks``."""
    answer: Answer | None = None
    """Null takes the checker's own."""

    @property
    def most_rows(self) -> int:
        """Rows that it can see."""
        return self.steps * self.prompts


class Posttraining(Section):
    """What the arms `sft`, `grpo` and those that end with them do."""

    rows: Annotated[OfFeedback | OfStream | Rows, Field(discriminator="kind")] = OfFeedback(
        kind="feedback"
    )
    """What they train on; rows of their own may not be among those that are evaluated."""
    sft: Sft = Sft()
    grpo: Grpo = Grpo()
