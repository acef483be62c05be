"""The arms of language: which designer and which feedback each of them is; the loop never learns
its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vpretrain.language import posttraining
from vpretrain.language.feedback.tasks import TaskDocuments, feedback_from
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.baselines import (
    LossWeights,
    OneHot,
    SelfDistillation,
    UniformSmoothing,
)
from vpretrain.language.steering.networks import CandidateDesigner, CandidateScorer, FieldDesigner
from vpretrain.language.steering.rules import Anchored, GroupWeights, TokenWeights, WeightedTargets
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.feedback import MultiTaskFeedback
from vpretrain.method.network import Learning
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Designer
from vpretrain.run.controls import heard
from vpretrain.system.contexts import own_random_state
from vpretrain.system.errors import user_error

ARMS: Mapping[str, str] = {
    "onehot": "next-token prediction as it always was: the baseline",
    "ascent": "the paper's designer: a network emits targets and gate, and climbs the value",
    "field": "a network regresses the token values, targets follow by the anchored rule (ours)",
    "closed_form": "the anchored rule on exact token values, no network (ours)",
    "token_weights": "one-hot targets, tokens weighted by their exact value (ours)",
    "weight_field": "one-hot targets, tokens weighted by the value that a network predicts (ours)",
    "weighted_targets": "the anchored rule and token weights together, on exact values (ours)",
    "document_weights": "one-hot targets, documents weighted by the mean exact value of their "
    "tokens "
    "(ours)",
    "source_weights": "one-hot targets, sources weighted by the mean exact value of their tokens "
    "(ours)",
    "random_feedback": "control: the recipe's designer hears a fresh random direction at every "
    "feedback "
    "batch",
    "fixed_random_direction": "control: the recipe's designer hears one random direction for the "
    "whole "
    "run",
    "shuffled_feedback": "control: the recipe's designer hears feedback problems with the "
    "solutions "
    "of "
    "others",
    "uniform_smoothing": "control: constant mass spread evenly over the candidates",
    "self_distillation": "control: constant mass spread by the learner's own probabilities",
    "loss_weights": "control: one-hot targets, tokens weighted by how surprising the learner finds "
    "them, "
    "no "
    "feedback",
    "feedback_sft": "reference, not V-pretraining: trains on the feedback rows themselves in the "
    "place "
    "of "
    "the "
    "stream",
}
DIRECT = frozenset({"feedback_sft"})
"""Arms that do not train on the stream."""
ALL_ARMS: Mapping[str, str] = {**ARMS, **posttraining.ARMS}
"""With those that train on the feedback rows, alone or after the stream."""
ALL_DIRECT = DIRECT | {arm for arm in posttraining.ARMS if not posttraining.on_stream(arm)}
DEMO = ("onehot", "document_weights", "token_weights", "fixed_random_direction")
_CONTROLS = frozenset({"random_feedback", "fixed_random_direction", "shuffled_feedback"})


def designer_of(recipe: LanguageRecipe, learner: CausalLearner) -> Designer:
    """The designer of the recipe's arm; arms that are about feedback steer with
    ``designer.kind``.
    """
    section = recipe.designer
    if recipe.arm not in ALL_ARMS:
        raise user_error(
            "arm", "language does not have this arm", value=recipe.arm, accepted=", ".join(ALL_ARMS)
        )
    chosen = (
        section.kind if recipe.arm in _CONTROLS or recipe.arm in posttraining.ARMS else recipe.arm
    )
    kind = "onehot" if recipe.arm in ALL_DIRECT else chosen
    reliability = Reliability(shrink=recipe.value.shrink)
    embedding = learner.anatomy.head.get_parameter("weight")
    count, (vocabulary, width) = section.candidates, embedding.shape
    if count > vocabulary:
        raise user_error(
            "designer.candidates",
            "there are not so many tokens in the learner's vocabulary",
            value=count,
            accepted=f"1 to {vocabulary}",
        )

    def network(*, gated: bool) -> CandidateScorer:
        with own_random_state(
            recipe.seed
        ):  # the learner's random numbers are the same in every arm
            scorer = CandidateScorer(
                width,
                hidden=section.hidden,
                layers=section.layers,
                heads=section.heads,
                gated=gated,
            )
        return scorer.to(learner.device)

    learning = Learning(section.learning_rate, reliability, section.updates)
    targets = Anchored(count, section.temperature, section.clip, section.gate_max)
    weights = TokenWeights(section.tilt)
    designers: dict[str, Callable[[], Designer]] = {
        "onehot": OneHot,
        "uniform_smoothing": lambda: UniformSmoothing(count, section.control_gate),
        "self_distillation": lambda: SelfDistillation(count, section.control_gate),
        "loss_weights": lambda: LossWeights(weights),
        "closed_form": lambda: ExactDesigner(targets, reliability),
        "token_weights": lambda: ExactDesigner(weights, reliability),
        "document_weights": lambda: ExactDesigner(
            GroupWeights(section.tilt, by="document"), reliability
        ),
        "source_weights": lambda: ExactDesigner(
            GroupWeights(section.tilt, by="source"), reliability
        ),
        "weighted_targets": lambda: ExactDesigner(
            WeightedTargets(targets, section.tilt), reliability
        ),
        "field": lambda: FieldDesigner(
            network(gated=False), embedding, targets, learning, replay=section.replay
        ),
        "weight_field": lambda: FieldDesigner(
            network(gated=False), embedding, weights, learning, replay=section.replay
        ),
        "ascent": lambda: CandidateDesigner(
            network(gated=True),
            embedding,
            targets,
            learning,
            entropy_bonus=section.entropy_bonus,
            anchor=section.anchor,
            gate_price=section.gate_price,
        ),
    }
    return designers[kind]()


def feedback_of(
    recipe: LanguageRecipe, tasks: Mapping[str, TaskDocuments], tokenizer: Any, pad_id: int
) -> MultiTaskFeedback:
    """What the designer of the recipe's arm hears."""
    return feedback_from(
        recipe.data.feedback,
        tasks,
        tokenizer,
        pad_id=pad_id,
        seed=recipe.seed,
        wrong_labels=recipe.arm == "shuffled_feedback",
        around=lambda _, feedback: heard(recipe, feedback),
    )
