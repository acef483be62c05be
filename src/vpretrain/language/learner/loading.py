"""Loads the learner's model and tokenizer named in a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from vpretrain.language.data import word_problems
from vpretrain.language.learner import lora
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.recipe.learner import LearnerSection
from vpretrain.models import loading
from vpretrain.models.load_errors import explained
from vpretrain.models.loading import CAUSAL_LM, load_config, named, source
from vpretrain.system.contexts import own_random_state
from vpretrain.system.errors import user_error


def load_tokenizer(section: LearnerSection, location: str | None) -> Any:
    """The learner's tokenizer; ``UserError`` if the folder or hub id has none.

    ``location`` is that of the model, or None for random weights, which use the tokenizer of the
    word problems unless the recipe names one.
    """
    name = location if section.tokenizer is None else named(section.tokenizer)
    if name is None:
        return word_problems.tokenizer()
    where = "learner.tokenizer" if section.tokenizer else "learner.model"
    with explained(name, where, what="tokenizer"):
        name, options = source(name)
        # False, not None: transformers would ask on the terminal whether to run the folder's code.
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
        tokenizer("a")  # some errors in its configuration only show on the first call
        return tokenizer


def load_model(section: LearnerSection, location: str | None, seed: int) -> Any:
    """The learner's model, with the recipe's attention and weights in :func:`stored_dtype`.

    If ``location`` is a folder with a PEFT adapter, it is merged into its base model. None makes a
    model with random weights from ``section.config``.

    Raises:
        UserError: the folder or hub id has no complete causal language model, or the configuration
            is invalid.
    """
    dtype = stored_dtype(section, location)
    if location is None:
        assert section.config is not None
        with own_random_state(seed):
            return new_model(
                section.config, "learner.config", dtype=dtype, attention=section.attention
            )
    if (base := lora.base_of(Path(location))) is not None:
        whole = section.model_copy(update={"lora": None})  # adapters are merged in float32
        return lora.merge_into(load_model(whole, named(base), seed), Path(location))
    return loading.load_model(CAUSAL_LM, location, dtype=dtype, attention=section.attention)


def new_model(config: dict[str, Any], where: str, *, dtype: torch.dtype, attention: str) -> Any:
    """A model with random weights; see :func:`vpretrain.models.loading.new_model`."""
    return loading.new_model(CAUSAL_LM, config, where, dtype=dtype, attention=attention)


def stored_dtype(section: LearnerSection, location: str | None) -> torch.dtype:
    """The dtype in which the model's weights are stored: under ``dtype: bfloat16``, float32 if they
    are trained and bfloat16 if they are the frozen base of LoRA (adapters are float32).

    A bfloat16 number has 8 significant bits: AdamW at a learning rate of 1e-5 changes a weight of
    0.02 by about a thousandth, which would be rounded away. So would most of an earlier adapter, so
    a base that holds one in its weights stays in float32.

    Args:
        section: the learner's keys.
        location: folder or hub id of the model; None for random weights.
    """
    adapted = location is not None and (
        lora.base_of(Path(location)) is not None or lora.is_merged(Path(location))
    )
    if section.dtype == "bfloat16" and (section.lora is None or adapted):
        return torch.float32
    return getattr(torch, section.dtype)


def checkpoint_activations(model: Any) -> None:
    """Enables activation checkpointing in training mode: blocks drop their activations, and the
    backward pass runs each again.

    Call it after attaching adapters: otherwise PEFT would register a hook on the embeddings that
    enables gradients, which functional transforms do not support. ``UserError`` if the architecture
    does not support checkpointing.
    """
    if not model.supports_gradient_checkpointing:
        message = f"{type(model).__name__} cannot run its blocks again"
        where, accepted = "learner.activation_checkpointing", "false for this model"
        raise user_error(where, message, value=True, accepted=accepted)
    # transformers renamed the method; where it has the new name, the old one warns.
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False})


def skeleton(recipe: LanguageRecipe) -> Any:
    """The learner's model on the meta device, without weights; raises like :func:`load_model`."""
    section = recipe.learner
    dtype = stored_dtype(section, None if section.model is None else named(section.model))
    attention = section.attention
    with torch.device("meta"):
        if section.model is not None:
            location = named(section.model)
            while (base := lora.base_of(Path(location))) is not None:
                location = named(base)
            config, names = load_config(location), ("learner.model", section.model)
            model = loading.from_config(CAUSAL_LM, config, *names, dtype=dtype, attention=attention)
        elif section.config is not None:
            model = new_model(section.config, "learner.config", dtype=dtype, attention=attention)
        else:
            assert section.prepare is not None
            made = section.prepare
            size = made.vocabulary if made.tokenizer == "bpe" else len(word_problems.vocabulary())
            keys = {**made.config, "vocab_size": size}
            model = new_model(keys, "learner.prepare.config", dtype=dtype, attention=attention)
        if section.lora is not None:
            lora.attach(model, section.lora, base=None, seed=recipe.seed)
    return model
