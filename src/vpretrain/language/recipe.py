"""The recipe of a language run: what the core's recipe holds, and data, learner, designer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from vpretrain.recipe import Evaluate, LearnerBase, Recipe, Section

Share = Annotated[float, Field(ge=0, le=1)]


class JsonLines(Section):
    """Rows of a local JSONL file: raw text, or prompts (masked) with solutions."""

    kind: Literal["jsonl"]
    path: Path
    """Relative to ``data.root``."""
    text: str | None = None
    """Column of raw text; every token of it is predicted."""
    prompt: str | None = None
    """Column of the prompt, which is never predicted."""
    solution: str | None = None
    """Column of the solution."""
    skip_rows: NonNegativeInt = 0
    """Rows left out at the beginning (the feedback set, say)."""
    rows: PositiveInt | None = None
    """Rows taken after those; null takes all."""
    corrupt_digits: Share = 0.0
    """Share of rows in whose solution every number gets one wrong digit: planted noise, for measuring."""

    @model_validator(mode="after")
    def _has_columns(self) -> Self:
        if (self.text is None) == (self.prompt is None and self.solution is None):
            raise ValueError("name the column of raw `text`, or the columns of `prompt` and `solution`")
        if self.text is None and (self.prompt is None or self.solution is None):
            raise ValueError("`prompt` and `solution` go together; name both columns")
        return self


class WordProblems(Section):
    """Generated arithmetic word problems with solutions (the embedded default)."""

    kind: Literal["word_problems"]
    split: Literal["stream", "feedback", "dev", "test"] = "stream"
    """Disjoint by operands; all but ``stream`` are clean."""
    rows: PositiveInt
    seed: NonNegativeInt = 0
    noise_share: Share = 0.0
    """Share of rows, among those where it is possible, with a systematic error: 0.55 makes the wrong rule the rule."""
    random_share: Share = 0.0
    """Share of rows with a random wrong result."""
    forms: list[Literal["story", "question", "drill"]] = ["story", "question", "drill"]
    """The forms that problems are shown in."""
    operations: list[Literal["+", "-"]] = ["+", "-"]
    """The operations that problems ask for."""


class Chatter(Section):
    """Generated short sentences that have nothing to do with the feedback."""

    kind: Literal["chatter"]
    rows: PositiveInt
    seed: NonNegativeInt = 0


Rows = Annotated[JsonLines | WordProblems | Chatter, Field(discriminator="kind")]


class Source(Section):
    """One source of the stream."""

    name: str
    weight: PositiveFloat = 1.0
    """Share of the stream's documents, relative to the other sources."""
    rows: Rows


class FeedbackSet(Section):
    """The verified examples that steer."""

    rows: Rows
    batch_size: PositiveInt = 32
    """Rows in one feedback batch; with ``value.memory`` no more are needed."""
    batches: PositiveInt = 2
    """Batches heard at a meta step; g_down is their mean, and their agreement says how far to trust it."""
    max_tokens: PositiveInt = 512
    """Longer feedback and evaluation rows are cut there, and counted."""


class Data(Section):
    """Where text comes from."""

    root: Path = Path()
    """Folder that relative paths start from."""
    window_tokens: PositiveInt
    """Length of a packed row of the stream."""
    batch_size: PositiveInt
    """Packed rows in a batch."""
    stream: list[Source] = Field(min_length=1)
    feedback: FeedbackSet
    evaluation: dict[str, Rows]
    """Held-out rows by split; ``evaluate.split`` names the one that is reported."""


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


class DesignerSection(Section):
    """The task designer; each arm reads what concerns it."""

    kind: Literal[
        "closed_form", "field", "ascent", "token_weights", "weight_field", "weighted_targets", "document_weights",
        "source_weights",
    ] = "token_weights"  # fmt: skip
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
    layers: PositiveInt = 6
    heads: PositiveInt = 4
    learning_rate: NonNegativeFloat = 1e-4
    updates: PositiveInt = 1
    """Steps of the designer's network a meta step: the values that it learns from do not depend on it."""
    replay: PositiveInt = 1
    """Batches that ``field`` and ``weight_field`` learn from: the present one and remembered ones."""
    entropy_bonus: NonNegativeFloat = 0.0
    """lambda of ``ascent``'s regulariser R(phi): entropy of the targets."""
    anchor: NonNegativeFloat = 0.0
    """``ascent``: price of a nat of KL from the targets to the learner, in standard deviations of the token value."""
    gate_price: NonNegativeFloat = 0.0
    """``ascent``: price of an open gate, in standard deviations of the token value."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"designer.heads is {self.heads}, which does not divide designer.hidden, {self.hidden}")
        return self


class LanguageEvaluate(Evaluate):
    """What is measured, on which rows."""

    split: str = "test"
    """One of ``data.evaluation``: settings are chosen on dev and reported once on test."""
    also: list[str] = []
    """Others of ``data.evaluation`` whose NLL is measured beside it: abilities that steering should not cost."""
    batch_size: PositiveInt = 64
    answer: str | None = None
    """Regular expression with one group that finds the answer in a solution (its last match counts). With it, greedy
    generation is scored by exact match (Pass@1); null measures NLL alone."""
    new_tokens: PositiveInt = 64
    """Longest generated solution."""

    @field_validator("answer")
    @classmethod
    def _is_a_pattern(cls, answer: str | None) -> str | None:
        if answer is not None:
            try:
                groups = re.compile(answer).groups
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
            if groups != 1:
                raise ValueError("the expression needs exactly one group, around the answer")
        return answer


class LanguageRecipe(Recipe):
    """A recipe with ``modality: language``."""

    data: Data
    learner: LearnerSection
    designer: DesignerSection = DesignerSection()
    evaluate: LanguageEvaluate = LanguageEvaluate()

    @model_validator(mode="after")
    def _split_exists(self) -> Self:
        for split in (self.evaluate.split, *self.evaluate.also):
            if split not in self.data.evaluation:
                raise ValueError(
                    f"evaluate.split or also names {split!r}; data.evaluation has {sorted(self.data.evaluation)}"
                )
        if self.value.shrink and self.data.feedback.batches < 2:
            raise ValueError(
                "value.shrink compares feedback batches: set data.feedback.batches to 2 or more, or shrink to false"
            )
        return self

    @model_validator(mode="after")
    def _documents_stay_apart(self) -> Self:
        if self.learner.attention == "flash_attention_2" and self.data.batch_size > 1:
            raise ValueError(
                "under attention: flash_attention_2 the documents of a batch of several rows would see each other "
                "(transformers tells them apart by position within a single row only): set data.batch_size to 1 with a "
                "longer window, or attention to sdpa"
            )
        return self
