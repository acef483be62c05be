"""The arms of vision: which designer and which feedback each of them is; the loop never learns its
name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain.method import vectors
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.network import Learning, NetworkDesigner, Surface
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Designer, Feedback, Objective
from vpretrain.method.simple import BaselineDesigner
from vpretrain.system.errors import user_error
from vpretrain.vision.learners import Learner, device
from vpretrain.vision.recipe import VisionRecipe
from vpretrain.vision.steering.baselines import ConstantMask, RandomMasks, UniformSmoothing
from vpretrain.vision.steering.masks import PatchMasks, UNetMasks
from vpretrain.vision.steering.rules import AnchoredTargets, PatchWeights, ViewWeights
from vpretrain.vision.steering.surfaces import ContextMasks, MaskPrice, ViewMasks

ARMS: Mapping[str, str] = {
    "plain": "self-supervised learning as it always was: the baseline",
    "ascent": "the paper's designer: a network emits masks and climbs their value (learned views; "
    "I-JEPA: context masks)",
    "closed_form": "DINO: learned targets over prototypes, the anchored rule on exact values, no "
    "network "
    "(ours)",
    "view_weights": "DINO: views weighted by their exact value (ours)",
    "patch_weights": "I-JEPA: target patches weighted by their exact value (ours)",
    "constant_mask": "control: the keep ratio as a constant mask, the same blur everywhere",
    "random_masks": "control: smooth random masks of the keep ratio, fresh at every step",
    "uniform_smoothing": "control, DINO: constant mass spread evenly over the prototypes",
    "random_feedback": "control: the recipe's designer hears a fresh random direction at every "
    "feedback "
    "batch",
    "fixed_random_direction": "control: the recipe's designer hears one random direction for the "
    "whole "
    "run",
    "shuffled_feedback": "control: the recipe's designer hears feedback pictures with the labels "
    "of "
    "others",
    "direct": "reference, not V-pretraining: the feedback loss's gradient is added to the step",
}
DIRECT = frozenset({"direct"})
"""Arms whose learner hears the labels themselves."""
DEMO = ("plain", "ascent", "random_masks", "fixed_random_direction")
"""Those that ``vpretrain demo vision`` shows."""
CONTROLS = frozenset({"random_feedback", "fixed_random_direction", "shuffled_feedback"})
DINO_ARMS = frozenset({"closed_form", "view_weights", "uniform_smoothing"})
IJEPA_ARMS = frozenset({"patch_weights"})


def steering(recipe: VisionRecipe) -> str:
    """The way of steering behind the recipe's arm.

    Raises:
        UserError: there is no such arm, or it is none of this kind of learner.
    """
    arm, kind = recipe.arm, recipe.learner.kind
    if arm not in ARMS:
        raise user_error(
            "arm", "vision does not have this arm", value=arm, accepted=", ".join(ARMS)
        )
    chosen = recipe.designer.kind if arm in CONTROLS else "plain" if arm in DIRECT else arm
    strangers = IJEPA_ARMS if kind == "dino" else DINO_ARMS
    if chosen in strangers:
        where = "designer.kind" if arm in CONTROLS else "arm"
        accepted = ", ".join(each for each in ARMS if each not in strangers)
        raise user_error(
            where,
            f"a learner of kind {kind} has nothing that this could steer",
            value=chosen,
            accepted=accepted,
        )
    return chosen


def designer_of(recipe: VisionRecipe) -> Designer:
    """The designer of the recipe's arm; arms that are about feedback steer with ``designer.kind``.

    Raises:
        UserError: as :func:`steering`, or the mask network cannot be built.
    """
    section, chosen = recipe.designer, steering(recipe)
    surface: Surface = ContextMasks()
    if recipe.learner.kind == "dino":
        surface = ViewMasks(
            section.blur_sigma, local_views_in_value=recipe.learner.local_views_in_value
        )
    reliability = Reliability(shrink=recipe.value.shrink)
    learning = Learning(section.learning_rate, reliability, section.updates)
    price = MaskPrice(section.keep_ratio, section.sparsity, section.total_variation)
    targets = AnchoredTargets(
        section.candidates, section.temperature, section.clip, section.gate_max
    )
    designers: dict[str, Callable[[], Designer]] = {
        "plain": lambda: BaselineDesigner(surface),
        "constant_mask": lambda: ConstantMask(surface, section.keep_ratio),
        "random_masks": lambda: RandomMasks(
            surface, section.keep_ratio, section.grain, recipe.seed
        ),
        "uniform_smoothing": lambda: UniformSmoothing(
            surface, section.candidates, section.control_gate
        ),
        "closed_form": lambda: ExactDesigner(targets, reliability),
        "view_weights": lambda: ExactDesigner(ViewWeights(section.tilt), reliability),
        "patch_weights": lambda: ExactDesigner(PatchWeights(section.tilt), reliability),
        "ascent": lambda: NetworkDesigner(
            mask_network(recipe),
            surface,
            price,
            learning,
            raw=section.value_unit == "raw",
            meta_rows=section.meta_images,
        ),
    }
    return designers[chosen]()


def mask_network(recipe: VisionRecipe) -> nn.Module:
    """The network behind learned masks, on the accelerator if there is one; its weights are drawn
    from the recipe's seed.
    """
    section = recipe.designer
    if section.network == "unet":
        network: nn.Module = UNetMasks(
            section.keep_ratio, base=section.base, depth=section.depth, seed=recipe.seed
        )
    else:
        network = PatchMasks(
            section.keep_ratio,
            patch_size=section.patch_size,
            width=section.width,
            depth=section.depth,
            heads=section.heads,
            seed=recipe.seed,
        )
    return network.to(device())


@dataclass
class DirectLearner:
    """A learner whose loss has the gradient of the feedback loss on top: what the method forbids,
    as a reference.

    The figure of the loss is the self-supervised one; its gradient on S has ``weight * g_down``
    added.

    Args:
        learner: the real one.
        feedback: heard at every step.
        weight: of g_down, > 0.
    """

    learner: Learner
    feedback: Feedback
    weight: float

    @property
    def model(self) -> nn.Module:
        return self.learner.model

    @property
    def aligned(self) -> dict[str, nn.Parameter]:
        return self.learner.aligned

    def forward(self, batch: Any) -> Any:
        return self.learner.forward(batch)

    def loss(self, context: Any, task: Any) -> Tensor:
        """The self-supervised loss, with ``weight * g_down`` added to its gradient on S."""
        down = vectors.mean(self.feedback.gradients(self.learner))
        pushes = [(down[name].detach() * p).sum() for name, p in self.aligned.items()]
        push = self.weight * torch.stack([each.to(torch.float32) for each in pushes]).sum()
        return self.learner.loss(context, task) + (push - push.detach())

    def objective(self, context: Any, task: Any) -> Objective:
        return self.learner.objective(context, task)

    def stepped(self, fraction: float) -> None:
        self.learner.stepped(fraction)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)


def learner_of(recipe: VisionRecipe, learner: Learner, feedback: Feedback) -> Any:
    """The learner as the recipe's arm trains it."""
    return (
        DirectLearner(learner, feedback, recipe.designer.direct_weight)
        if recipe.arm in DIRECT
        else learner
    )
