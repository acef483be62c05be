"""Language, put together: from a recipe to the parts of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from vpretrain.contracts import Parts, Score
from vpretrain.errors import Problem, UserError, user_error
from vpretrain.language.arms import ARMS, DEMO, DIRECT, designer_of, feedback_of
from vpretrain.language.data import Texts, read
from vpretrain.language.evaluate import greedy_exact_match, negative_log_likelihood
from vpretrain.language.learner import CausalLearner
from vpretrain.language.loading import load_model, load_tokenizer, skeleton
from vpretrain.language.prepare import cached, locate, make
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.rows import Document, Encoded, Row, encode
from vpretrain.language.stream import Source, Stream, padded
from vpretrain.language.suffix import Anatomy, aligned_parameters
from vpretrain.modes import evaluating
from vpretrain.resources import shortages


@dataclass(frozen=True)
class Materials:
    """What runs of one recipe share, whatever their arm and seed.

    Args:
        location: folder or hub id of the learner; None for random weights.
        tokenizer: the learner's.
        texts: all rows.
        sources: the stream's documents with their weights.
        feedback, evaluation, also: documents of those rows.
        counts: what became of the rows of each source: documents, tokens, rows cut, chunked or dropped.
    """

    location: str | None
    tokenizer: Any
    texts: Texts
    sources: list[Source]
    feedback: list[Document]
    evaluation: list[Document]
    also: dict[str, list[Document]]
    counts: dict[str, Encoded]

    @property
    def pad_id(self) -> int:
        """What short rows are filled with; never predicted, so that any id would do."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)


class Language:
    """The language modality behind the core's role."""

    arms: Mapping[str, str] = ARMS
    direct: Collection[str] = DIRECT
    demo: Sequence[str] = DEMO

    def load(self, recipe: LanguageRecipe) -> Materials:
        """Reads text, finds (or makes) the learner's checkpoint, and tokenises."""
        texts = read(recipe)
        location = None if recipe.learner.config is not None else locate(recipe, texts)
        tokenizer = load_tokenizer(recipe.learner, location)
        window, longest = recipe.data.window_tokens, recipe.data.feedback.max_tokens
        counts: dict[str, Encoded] = {}

        def documents(name: str, rows: list[Row], most: int) -> list[Document]:
            found, counts[name] = encode(rows, tokenizer, max_tokens=most)
            return found

        sources = [
            Source(s.name, documents(f"stream/{s.name}", texts.stream[s.name], window), s.weight)
            for s in recipe.data.stream
        ]
        feedback = documents("feedback", texts.feedback, longest)
        evaluation = documents(recipe.evaluate.split, texts.evaluation, longest)
        also = {name: documents(name, rows, longest) for name, rows in texts.also.items()}
        return Materials(location, tokenizer, texts, sources, feedback, evaluation, also, counts)

    def check(self, recipe: LanguageRecipe) -> list[Problem]:
        """Reads the data, and loads tokenizer and model where they are there already; makes nothing."""
        problems: list[Problem] = []
        section, texts = recipe.learner, None
        if recipe.arm not in ARMS:
            problems.append(Problem("arm", recipe.arm, ", ".join(ARMS), "language does not have this arm"))
        try:
            texts = read(recipe)
        except UserError as error:
            problems += error.problems
        try:
            shapes = skeleton(recipe)  # so that a model that does not fit is never loaded
            problems += shortages(shapes)
            anatomy = Anatomy.of(shapes)
            aligned_parameters(shapes, anatomy, blocks=section.aligned_blocks, patterns=section.aligned_patterns)
            if (count := recipe.designer.candidates) > (most := shapes.config.vocab_size):
                message = "there are not so many tokens in the learner's vocabulary"
                problems.append(Problem("designer.candidates", str(count), f"1 to {most}", message))
        except UserError as error:
            problems += error.problems
        there = section.prepare is None or section.model is not None
        try:
            if texts and not problems and (there or (cached(recipe, texts) / "config.json").is_file()):
                self.build(recipe, self.load(recipe))
        except UserError as error:
            problems += error.problems
        return problems

    def prepare(self, recipe: LanguageRecipe, out: Path | None) -> Path:
        """Tokenizer and model from the recipe's stream, as ``learner.prepare`` says."""
        texts = read(recipe)
        return make(recipe, texts, out or cached(recipe, texts))

    def build(self, recipe: LanguageRecipe, materials: Materials) -> Parts:
        """Fresh learner, designer, feedback and stream for the recipe's arm and seed."""
        model = load_model(recipe.learner, materials.location, recipe.seed)
        _check_fit(recipe, model, materials)
        aligned = aligned_parameters(
            model, Anatomy.of(model), blocks=recipe.learner.aligned_blocks, patterns=recipe.learner.aligned_patterns
        )
        learner = CausalLearner(model.train(), aligned)
        data = recipe.data
        direct = [Source("feedback", materials.feedback, 1.0)]
        stream = Stream(
            direct if recipe.arm in DIRECT else materials.sources,
            batch_size=data.batch_size,
            window_tokens=data.window_tokens,
            seed=recipe.seed,
            pad_id=materials.pad_id,
        )
        return Parts(
            learner=learner,
            designer=designer_of(recipe, learner),
            feedback=feedback_of(recipe, materials.feedback, materials.pad_id),
            stream=stream,
            evaluate=partial(_evaluate, recipe, materials, learner),
            held_out_loss=partial(_held_out_loss, recipe, materials, learner),
            save=partial(_save, learner, materials.tokenizer),
        )


def _evaluate(recipe: LanguageRecipe, materials: Materials, learner: CausalLearner) -> dict[str, Score]:
    section, split = recipe.evaluate, recipe.evaluate.split
    scores = {
        f"{name}/nll": negative_log_likelihood(
            learner, held_out, batch_size=section.batch_size, pad_id=materials.pad_id
        )
        for name, held_out in {split: materials.evaluation, **materials.also}.items()
    }
    if section.answer is not None:
        scores[f"{split}/pass@1"] = greedy_exact_match(
            learner, materials.tokenizer, materials.texts.evaluation, pattern=section.answer,
            new_tokens=section.new_tokens, batch_size=section.batch_size,
        )  # fmt: skip
    return scores


HELD_OUT_ROWS = 256
"""Rows of ``evaluate.split`` that the one-step probe reads at every draw."""


def _held_out_loss(recipe: LanguageRecipe, materials: Materials, learner: CausalLearner) -> Iterator[Tensor]:
    """Mean NLL of the first held-out solutions' tokens (eq. 38), summed in float64: what one step moves is little."""
    documents = materials.evaluation[:HELD_OUT_ROWS]
    size = recipe.evaluate.batch_size
    batches = [
        padded(documents[at : at + size], pad_id=materials.pad_id).to(learner.device)
        for at in range(0, len(documents), size)
    ]
    count = sum(batch.predicted_tokens for batch in batches)
    for batch in batches:
        with evaluating(learner.model):
            losses, _ = learner.token_losses(batch)
        yield losses.double().sum() / count


def _save(learner: CausalLearner, tokenizer: Any, folder: Path) -> None:
    learner.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_fit(recipe: LanguageRecipe, model: Any, materials: Materials) -> None:
    """Tokenizer, window and rows against what the model can take."""
    if len(materials.tokenizer) > model.config.vocab_size:
        raise user_error(
            "learner.model",
            "the tokenizer has more tokens than the model's vocabulary; name the tokenizer it was trained with",
            value=f"{len(materials.tokenizer)} tokens",
            accepted=f"at most {model.config.vocab_size}",
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    rows = {"data.feedback.rows": materials.feedback, f"data.evaluation.{recipe.evaluate.split}": materials.evaluation}
    longest = {where: max((len(document.ids) for document in found), default=0) for where, found in rows.items()}
    for where, length in {"data.window_tokens": recipe.data.window_tokens, **longest}.items():
        if positions is not None and length > positions:
            raise user_error(
                where,
                "the model has not so many positions; shorten the window (data.window_tokens) or the rows "
                "(data.feedback.max_tokens)",
                value=f"{length} tokens",
                accepted=f"at most {positions}",
            )
    if not materials.evaluation:
        raise user_error(
            f"data.evaluation.{recipe.evaluate.split}", "no row is left to evaluate on: prompts alone fill "
            "data.feedback.max_tokens; raise it", value=recipe.data.feedback.max_tokens, accepted="more",
        )  # fmt: skip
