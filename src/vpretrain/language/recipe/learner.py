"""The model that is continued, and how it is made where no checkpoint is at hand."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vpretrain.recipe import LearnerBase, Section


class Phase(Section):
    """One stretch of training at a learning rate that moves on a cosine from one value to another."""

    steps: PositiveInt
    learning_rate: PositiveFloat
    to: PositiveFloat | None = None
    """Learning rate at the end of the phase; null keeps it constant."""


class Prepare(Section):
    """How the learner that steering starts from is made, where no checkpoint is at hand."""

    config: dict[str, Any]
    """A ``transformers`` configuration with its ``model_type``; the vocabulary's size follows the tokenizer."""
    tokenizer: Literal["word_problems", "bpe"]
    """The generator's own, or a byte-level BPE (split as Qwen2 splits) trained on the stream."""
    vocabulary: PositiveInt = 4096
    """Size of the BPE vocabulary."""
    weights: dict[str, PositiveFloat] = {}
    """Weights of the sources during preparation, where they differ from the stream's."""
    phases: list[Phase] = Field(min_length=1)
    warmup_steps: NonNegativeInt = 50
    """Steps of a linear rise to the first phase's learning rate."""
    batch_size: PositiveInt = 16
    seed: NonNegativeInt = 0


class LearnerSection(LearnerBase):
    """The model that is continued."""

    model: str | None = None
    """A local folder, a hub id, or a packaged checkpoint; null uses (and on first use makes) what ``prepare`` says."""
    config: dict[str, Any] | None = None
    """A ``transformers`` configuration for random weights, in the place of ``model`` (benchmarks)."""
    prepare: Prepare | None = None
    tokenizer: str | None = None
    """A folder or hub id, where it is not the model's own."""
    aligned_blocks: PositiveInt | Literal["all"] = 2
    """S: the last so many blocks with final norm and (untied) head."""
    aligned_patterns: list[str] = []
    """S by shell patterns over parameter names, in the place of ``aligned_blocks``."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        if (self.model is not None) + (self.config is not None) + (
            self.prepare is not None and self.model is None
        ) != 1:
            raise ValueError(
                "give one of `model` (a checkpoint), `config` (random weights) or `prepare` (made on first use)"
            )
        return self
