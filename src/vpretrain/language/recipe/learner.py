"""The ``learner`` section: the model to train, and how it is made if there is no checkpoint."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vpretrain.config.recipe import LearnerBase, Section


class Phase(Section):
    """A phase of preparation, whose learning rate follows a cosine from one value to another."""

    steps: PositiveInt
    learning_rate: PositiveFloat
    to: PositiveFloat | None = None
    """Learning rate at the end of the phase; null keeps it constant."""


class Prepare(Section):
    """How to make the learner's starting checkpoint, if there is none."""

    config: dict[str, Any]
    """A ``transformers`` configuration with its ``model_type``; the vocabulary size is taken from
    the tokenizer."""
    tokenizer: Literal["word_problems", "bpe"]
    """``word_problems`` is the generator's own tokenizer; ``bpe`` is a byte-level BPE (with the
    pre-tokenization of Qwen2) trained on the stream."""
    vocabulary: PositiveInt = 4096
    """Size of the BPE vocabulary."""
    weights: dict[str, PositiveFloat] = {}
    """Weights of the sources during preparation, by name, if they differ from the stream's."""
    phases: list[Phase] = Field(min_length=1)
    warmup_steps: NonNegativeInt = 50
    """Steps of linear warmup to the first phase's learning rate."""
    batch_size: PositiveInt = 16
    seed: NonNegativeInt = 0


class Lora(Section):
    """Low-rank adapters (PEFT LoRA): only they are trained, and the base model stays frozen."""

    r: PositiveInt = 8
    """Rank of the adapters."""
    alpha: PositiveInt = 16
    """LoRA alpha: the adapters' output is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' inputs during training."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Linear modules with an adapter: all but the head, or those whose names end in an entry of the
    list (``q_proj``). Experts stored in one shared weight get none."""
    merge: bool = True
    """Whether to save ``model/`` as an ordinary merged model, with the adapter in
    ``model/adapter``; false saves the adapter alone."""


class LearnerSection(LearnerBase):
    """The model to train. Under ``dtype: bfloat16``, frozen weights (the base of LoRA) are stored
    in bfloat16 too."""

    model: str | None = None
    """A local folder, a hub id, a GGUF file or a packaged checkpoint; null uses the checkpoint of
    ``prepare``, and makes it on first use."""
    config: dict[str, Any] | None = None
    """A ``transformers`` configuration for random weights, in place of ``model`` (for benchmarks).
    """
    prepare: Prepare | None = None
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, if it is not the model's own."""
    loss_mean: Literal["token", "example"] = "token"
    """Mean of the loss: ``token`` averages over all predicted tokens of a step, as trainers
    usually do; ``example`` over documents, each with the mean over its own tokens (eq. 37)."""
    aligned_blocks: PositiveInt | Literal["all"] = 2
    """S, the aligned parameters: the number of last blocks, plus what the next two keys add. The
    paper's "last two layers" is 2 without final norm and head."""
    aligned_norm: bool = True
    """Whether S contains the final norm."""
    aligned_head: bool = True
    """Whether S contains an untied head. A tied head is in S only if ``aligned_patterns`` names it.
    """
    aligned_patterns: list[str] = []
    """Shell patterns over parameter names that select S in place of ``aligned_blocks``; each must
    match a trainable parameter."""
    lora: Lora | None = None
    """Trains low-rank adapters in place of all parameters; S is then the adapters of the last
    ``aligned_blocks`` blocks."""
    activation_checkpointing: bool = False
    """Whether blocks recompute their activations in the learner's backward pass instead of keeping
    them: less memory, more time."""

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
