"""The model that is continued, and how it is made where no checkpoint is at hand."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vpretrain.config.recipe import LearnerBase, Section


class Phase(Section):
    """One stretch of training at a learning rate that moves on a cosine from one value to
    another."""

    steps: PositiveInt
    learning_rate: PositiveFloat
    to: PositiveFloat | None = None
    """Learning rate at the end of the phase; null keeps it constant."""


class Prepare(Section):
    """How the learner that steering starts from is made, where no checkpoint is at hand."""

    config: dict[str, Any]
    """A ``transformers`` configuration with its ``model_type``; the vocabulary's size follows the
    tokenizer."""
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


class Lora(Section):
    """Low-rank adapters (PEFT LoRA): they alone train, and the model below them stays as it is."""

    r: PositiveInt = 8
    """Rank."""
    alpha: PositiveInt = 16
    """What the product of the factors is scaled by, times r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On the adapters' inputs, while training."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Linear modules that get an adapter: all but the head, or those whose names end in one of a
    list (``q_proj``). Experts that share one weight get none."""
    merge: bool = True
    """Saves ``model/`` as an ordinary whole model, with the adapter in ``model/adapter``; false:
    the adapter alone."""


class LearnerSection(LearnerBase):
    """The model that is continued. Under ``dtype: bfloat16`` frozen weights (below LoRA) are kept
    in bfloat16 too."""

    model: str | None = None
    """A local folder, a hub id, a GGUF file, or a packaged checkpoint; null uses (and on first use
    makes) what ``prepare`` says."""
    config: dict[str, Any] | None = None
    """A ``transformers`` configuration for random weights, in the place of ``model`` (benchmarks).
    """
    prepare: Prepare | None = None
    tokenizer: str | None = None
    """A folder or hub id, where it is not the model's own."""
    loss_mean: Literal["token", "example"] = "token"
    """What the loss is a mean over: all predicted tokens of a step, as trainers have it, or
    documents, each with the mean over its tokens (eq. 37)."""
    aligned_blocks: PositiveInt | Literal["all"] = 2
    """S: the last so many blocks, and with them what the next two keys say. The paper's S is the
    "last two layers": 2, without final norm and head."""
    aligned_norm: bool = True
    """Whether the final norm is in S beside the last blocks."""
    aligned_head: bool = True
    """Whether an untied head is. A tied one never is, unless ``aligned_patterns`` names it."""
    aligned_patterns: list[str] = []
    """S by shell patterns over parameter names, in the place of ``aligned_blocks``; each must match
    one that trains."""
    lora: Lora | None = None
    """Adapters in the place of all parameters; S is then those of the last ``aligned_blocks``
    blocks."""
    activation_checkpointing: bool = False
    """Whether blocks keep no activations for the learner's backward pass and run again in it: less
    memory, more time."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        if (self.model is not None) + (self.config is not None) + (
            self.prepare is not None and self.model is None
        ) != 1:
            raise ValueError(
                "give one of `model` (a checkpoint), `config` (random weights) or `prepare` "
                "(made on first use)"
            )
        if self.config is not None and self.lora is not None and not self.lora.merge:
            raise ValueError(
                "learner.lora.merge is false, but an adapter without its random base is of no "
                "use: merge it"
            )
        if str(self.model).endswith(".gguf") and self.lora is not None and not self.lora.merge:
            raise ValueError(
                "learner.lora.merge is false, but an adapter does not find its base in a GGUF "
                "file: merge it"
            )
        return self
