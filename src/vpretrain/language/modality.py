"""Language, put together: which designer and which feedback an arm is, and the parts of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vpretrain.contracts import Designer, Feedback, Parts, Score
from vpretrain.errors import Problem, UserError, user_error
from vpretrain.language.data import Texts, read
from vpretrain.language.designers import (
    ClosedForm,
    OneHot,
    Reliability,
    SelfDistillation,
    TokenWeights,
    UniformSmoothing,
)
from vpretrain.language.evaluate import greedy_exact_match, negative_log_likelihood
from vpretrain.language.feedback import Likelihood, RandomDirection
from vpretrain.language.learned import Ascent, CandidateScorer, Field, Steering
from vpretrain.language.learner import CausalLearner
from vpretrain.language.prepare import cached, load_model, load_tokenizer, locate, make
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.rows import Document, Encoded, Row, encode
from vpretrain.language.stream import Sampler, Source, Stream
from vpretrain.language.suffix import Anatomy, aligned_parameters

ARMS: Mapping[str, str] = {
    "onehot": "next-token prediction as it always was: the baseline",
    "ascent": "the paper's designer: a network emits targets and gate, and climbs the value",
    "field": "a network regresses the token values, targets follow by the anchored rule (ours)",
    "closed_form": "the anchored rule on exact token values, no network (ours)",
    "token_weights": "one-hot targets, tokens weighted by their exact value (ours)",
    "random_feedback": "control: the recipe's designer hears a fresh random direction at every feedback batch",
    "fixed_random_direction": "control: the recipe's designer hears one random direction for the whole run",
    "uniform_smoothing": "control: constant mass spread evenly over the candidates",
    "self_distillation": "control: constant mass spread by the learner's own probabilities",
}
_RANDOM = {"random_feedback": False, "fixed_random_direction": True}  # arm -> fixed


@dataclass(frozen=True)
class Materials:
    """What runs of one recipe share, whatever their arm and seed.

    Args:
        location: folder or hub id of the learner; None for random weights.
        tokenizer: the learner's.
        texts: all rows.
        sources: the stream's documents with their weights.
        feedback, evaluation: documents of those rows.
        counts: what became of the rows of each source: documents, tokens, rows cut, chunked or dropped.
    """

    location: str | None
    tokenizer: Any
    texts: Texts
    sources: list[Source]
    feedback: list[Document]
    evaluation: list[Document]
    counts: dict[str, Encoded]

    @property
    def pad_id(self) -> int:
        """What short rows are filled with; never predicted, so that any id would do."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)


class Language:
    """The language modality behind the core's role."""

    arms = ARMS

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
        return Materials(location, tokenizer, texts, sources, feedback, evaluation, counts)

    def check(self, recipe: LanguageRecipe) -> list[Problem]:
        """Reads the data, and loads tokenizer and model where they are there already; makes nothing."""
        if recipe.arm not in ARMS:
            return [Problem("arm", recipe.arm, ", ".join(ARMS), "language does not have this arm")]
        try:
            texts = read(recipe)
            section = recipe.learner
            if (
                section.prepare is None
                or section.model is not None
                or (cached(recipe, texts) / "config.json").is_file()
            ):
                self.build(recipe, self.load(recipe))
        except UserError as error:
            return list(error.problems)
        return []

    def prepare(self, recipe: LanguageRecipe, out: Path | None) -> Path:
        """Tokenizer and model from the recipe's stream, as ``learner.prepare`` says."""
        texts = read(recipe)
        return make(recipe, texts, out or cached(recipe, texts))

    def build(self, recipe: LanguageRecipe, materials: Materials) -> Parts:
        """Fresh learner, designer, feedback and stream for the recipe's arm and seed."""
        model = load_model(recipe.learner, materials.location, recipe.seed)
        _check_vocabulary(recipe, model, materials.tokenizer)
        aligned = aligned_parameters(
            model, Anatomy.of(model), blocks=recipe.learner.aligned_blocks, patterns=recipe.learner.aligned_patterns
        )
        learner = CausalLearner(model.train(), aligned)
        data = recipe.data
        stream = Stream(
            materials.sources, batch_size=data.batch_size, window_tokens=data.window_tokens, seed=recipe.seed,
            pad_id=materials.pad_id,
        )  # fmt: skip
        return Parts(
            learner=learner,
            designer=designer_of(recipe, learner),
            feedback=_feedback_of(recipe, materials),
            stream=stream,
            evaluate=partial(_evaluate, recipe, materials, learner),
            save=partial(_save, learner, materials.tokenizer),
        )


def designer_of(recipe: LanguageRecipe, learner: CausalLearner) -> Designer:
    """The designer of the recipe's arm; arms that are about feedback steer with ``designer.kind``."""
    section = recipe.designer
    if recipe.arm not in ARMS:
        raise user_error("arm", "language does not have this arm", value=recipe.arm, accepted=", ".join(ARMS))
    kind = section.kind if recipe.arm in _RANDOM else recipe.arm
    reliability = Reliability(shrink=recipe.value.shrink)
    embedding = learner.anatomy.head.get_parameter("weight")
    count, (vocabulary, width) = section.candidates, embedding.shape
    if count > vocabulary:
        raise user_error(
            "designer.candidates", "there are not so many tokens in the learner's vocabulary",
            value=count, accepted=f"1 to {vocabulary}",
        )  # fmt: skip

    def network(*, gated: bool) -> CandidateScorer:
        with torch.random.fork_rng():  # the learner's random numbers are the same in every arm
            torch.manual_seed(recipe.seed)
            scorer = CandidateScorer(
                width, hidden=section.hidden, layers=section.layers, heads=section.heads,
                gated=gated,
            )  # fmt: skip
        return scorer.to(learner.device)

    steering = Steering(count, section.gate_max, section.learning_rate, reliability)
    designers: dict[str, Callable[[], Designer]] = {
        "onehot": OneHot,
        "uniform_smoothing": lambda: UniformSmoothing(count, section.control_gate),
        "self_distillation": lambda: SelfDistillation(count, section.control_gate),
        "token_weights": lambda: TokenWeights(1, reliability, section.tilt),
        "closed_form": lambda: ClosedForm(count, reliability, section.temperature, section.clip, section.gate_max),
        "field": lambda: Field(
            network(gated=False),
            embedding,
            steering,
            temperature=section.temperature,
            clip=section.clip,
            updates=section.updates,
        ),
        "ascent": lambda: Ascent(network(gated=True), embedding, steering, entropy_bonus=section.entropy_bonus),
    }
    return designers[kind]()


def _feedback_of(recipe: LanguageRecipe, materials: Materials) -> Feedback:
    section = recipe.data.feedback
    sampler = Sampler(materials.feedback, batch_size=section.batch_size, seed=recipe.seed, pad_id=materials.pad_id)
    real = Likelihood(sampler, section.batches)
    if recipe.arm in _RANDOM:
        return RandomDirection(real, recipe.seed, fixed=_RANDOM[recipe.arm])
    return real


def _evaluate(recipe: LanguageRecipe, materials: Materials, learner: CausalLearner) -> dict[str, Score]:
    section, split = recipe.evaluate, recipe.evaluate.split
    scores = {
        f"{split}/nll": negative_log_likelihood(
            learner, materials.evaluation, batch_size=section.batch_size, pad_id=materials.pad_id
        )
    }
    if section.answer is not None:
        scores[f"{split}/pass@1"] = greedy_exact_match(
            learner, materials.tokenizer, materials.texts.evaluation, pattern=section.answer,
            new_tokens=section.new_tokens, batch_size=section.batch_size,
        )  # fmt: skip
    return scores


def _save(learner: CausalLearner, tokenizer: Any, folder: Path) -> None:
    learner.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_vocabulary(recipe: LanguageRecipe, model: Any, tokenizer: Any) -> None:
    if len(tokenizer) > model.config.vocab_size:
        raise user_error(
            "learner.model", "the tokenizer has more tokens than the model's vocabulary; name the tokenizer it was trained with",
            value=f"{len(tokenizer)} tokens", accepted=f"at most {model.config.vocab_size}",
        )  # fmt: skip
