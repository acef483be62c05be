"""The ``posttraining`` section: direct training on verified rows, alone or after the stream, as a
comparison for steering."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vpretrain.config.recipe import Section
from vpretrain.language.recipe.common import Answer
from vpretrain.language.recipe.rows import Rows


class OfFeedback(Section):
    """The feedback rows: prompts of all tasks with their verified solutions."""

    kind: Literal["feedback"]


class OfStream(Section):
    """The rows of one source of the stream, for a comparison on the same data."""

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
        """Maximum number of rows it can train on."""
        return self.steps * self.batch_size


class Grpo(Section):
    """Group-relative policy optimisation on the rows' prompts (TRL): sampled answers, scored by a
    checker."""

    steps: PositiveInt = 50
    prompts: PositiveInt = 8
    """Prompts in a step."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Sampled answers to each prompt, whose rewards are compared with one another."""
    learning_rate: PositiveFloat = 1e-6
    new_tokens: PositiveInt = 256
    """Maximum number of tokens in a sampled answer."""
    temperature: PositiveFloat = 1.0
    checker: str = "number"
    """The checker that computes the reward of an answer, as in ``data.feedback.tasks``."""
    answer: Answer | None = None
    """Regular expression, with one group, that finds the answer; null uses the checker's own."""

    @property
    def most_rows(self) -> int:
        """Maximum number of rows it can train on."""
        return self.steps * self.prompts


class Posttraining(Section):
    """Configuration of the arms `sft` and `grpo`, and of the arms that end with one of them."""

    rows: Annotated[OfFeedback | OfStream | Rows, Field(discriminator="kind")] = OfFeedback(
        kind="feedback"
    )
    """The rows to train on. Rows other than the feedback must not be among the evaluation rows."""
    sft: Sft = Sft()
    grpo: Grpo = Grpo()
