"""The learner's starting checkpoint: the one named in the recipe, or one made once by
``learner.prepare``."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Tokenizer

from vpretrain.language.data import word_problems
from vpretrain.language.data.stream import Source, Stream
from vpretrain.language.data.texts import Texts, documents_of, read
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.loading import new_model
from vpretrain.language.learner.targets import one_hot
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.recipe.learner import Prepare
from vpretrain.language.recipe.rows import Table
from vpretrain.models import checkpoint_cache
from vpretrain.models.loading import named
from vpretrain.run.pretrain import Pretraining, pretrain
from vpretrain.system.errors import user_error
from vpretrain.system.phases import phase


def locate(recipe: LanguageRecipe, texts: Texts) -> str:
    """The folder or hub id of the learner; makes a prepared learner if it is not in the cache."""
    section = recipe.learner
    if section.model is not None:
        return named(section.model)
    folder = cached(recipe, texts)
    return str(checkpoint_cache.made_once(folder, lambda: make(recipe, texts, folder)))


def cached(recipe: LanguageRecipe, texts: Texts) -> Path:
    """The folder of the prepared learner, whether or not it exists; its name is a hash of what it
    is made from."""
    recipe, texts = _without_planted_noise(recipe, texts)
    rows = {"stream", "window_tokens", "packing", "parse_special_tokens", "shortest_chunk_tokens"}
    description = [
        recipe.data.model_dump(mode="json", include=rows),
        checkpoint_cache.section_of(recipe.learner.prepare).model_dump(mode="json"),
        _fingerprint(texts),
    ]
    return checkpoint_cache.cache_path(description)


def _without_planted_noise(recipe: LanguageRecipe, texts: Texts) -> tuple[LanguageRecipe, Texts]:
    """The recipe and its texts without ``corrupt_digits``: the noise is for the run, not for the
    checkpoint, which clean and noisy runs share."""
    rows = [source.rows for source in recipe.data.stream]
    if not any(isinstance(spec, Table) and spec.corrupt_digits for spec in rows):
        return recipe, texts
    stream = [
        source.model_copy(update={"rows": source.rows.model_copy(update={"corrupt_digits": 0.0})})
        if isinstance(source.rows, Table)
        else source
        for source in recipe.data.stream
    ]
    clean = recipe.model_copy(update={"data": recipe.data.model_copy(update={"stream": stream})})
    return clean, read(clean)


def _fingerprint(texts: Texts) -> str:
    digest = hashlib.sha256()
    for name, rows in texts.stream.items():
        digest.update(f"{name} {len(rows)}\n".encode())
        for row in rows:
            digest.update(f"{row.prompt}\0{row.text}\n".encode())
    return digest.hexdigest()


def make(recipe: LanguageRecipe, texts: Texts, out: Path) -> Path:
    """Trains tokenizer and model on the stream as ``learner.prepare`` says; the folder appears only
    once it is complete."""
    section = checkpoint_cache.section_of(recipe.learner.prepare)
    with checkpoint_cache.replacing_folder(out) as folder:
        recipe, texts = _without_planted_noise(recipe, texts)
        tokenizer = _new_tokenizer(section, texts)
        config = {
            **section.config,
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
        }
        torch.manual_seed(section.seed)
        model = new_model(
            config,
            "learner.prepare.config",
            dtype=torch.float32,
            attention=recipe.learner.attention,
        )
        tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)
        _check_reload(folder, tokenizer, texts)
        _train(model, tokenizer, recipe, section, texts)
        model.save_pretrained(folder)
    return out


def _new_tokenizer(section: Prepare, texts: Texts) -> Any:
    if section.tokenizer == "word_problems":
        return word_problems.tokenizer()
    every = (row.prompt + row.text for rows in texts.stream.values() for row in rows)
    return Qwen2Tokenizer().train_new_from_iterator(
        every, vocab_size=section.vocabulary, show_progress=False
    )


def _check_reload(folder: Path, tokenizer: Any, texts: Texts) -> None:
    """Raises ``UserError`` if the saved tokenizer is reloaded differently: some architectures
    silently replace its class by their own."""
    reloaded = AutoTokenizer.from_pretrained(folder)
    sample = [row.prompt + row.text for rows in texts.stream.values() for row in rows[:200]]
    before, after = (
        t(sample, add_special_tokens=False)["input_ids"] for t in (tokenizer, reloaded)
    )
    if before != after:
        raise user_error(
            "learner.prepare",
            f"AutoTokenizer reads the saved tokenizer as {type(reloaded).__name__}, which splits "
            "text differently; choose a model_type that goes with the tokenizer",
            accepted="`tokenizer: bpe` with `model_type: qwen2`, `tokenizer: word_problems` with "
            "`model_type: llama`",
        )


def _train(
    model: Any, tokenizer: Any, recipe: LanguageRecipe, section: Prepare, texts: Texts
) -> None:
    """Trains by plain next-token prediction on the stream, with AdamW and the recipe's phases."""
    sources = [
        Source(
            s.name,
            documents_of(s, texts.stream[s.name], tokenizer, recipe.data)[0],
            section.weights.get(s.name, s.weight),
        )
        for s in recipe.data.stream
    ]
    stream = Stream(
        sources,
        batch_size=section.batch_size,
        window_tokens=recipe.data.window_tokens,
        seed=section.seed,
        pad_id=tokenizer.pad_token_id,
        packing=recipe.data.packing,
    )
    parameters = dict(model.named_parameters())
    learner = CausalLearner(model.train(), parameters, packed=recipe.data.packing)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    key = "learner.prepare.phases"
    how = Pretraining(learner, lambda context: one_hot(context.labels), optimizer, 1.0, key)
    schedule = _schedule(section)
    losses = pretrain(how, stream, schedule)
    for _ in phase("making the learner (once), steps", losses, len(schedule)):
        pass


def _schedule(section: Prepare) -> list[tuple[float, float]]:
    """Learning rate and progress of each step: linear warmup times the phases' cosines."""
    rates = []
    for part in section.phases:
        end = part.learning_rate if part.to is None else part.to
        for step in range(part.steps):
            fraction = (1 + math.cos(math.pi * step / part.steps)) / 2
            rates.append(end + (part.learning_rate - end) * fraction)
    warmup = max(1, section.warmup_steps)
    return [
        (rate * min(1.0, (step + 1) / warmup), step / len(rates)) for step, rate in enumerate(rates)
    ]
