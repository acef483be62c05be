"""Image-text contrastive learning as an external vpretrain modality: see docs/your-own.md."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt

from image_text.clip import Kept, TwoTowers, contrastive, network, zero_shot
from image_text.pairs import SIZE, pairs
from vpretrain.config.arms import Arms, DesignerSection
from vpretrain.config.recipe import LearnerBase, Recipe, Section
from vpretrain.method.network import Learning, NetworkDesigner
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Designer
from vpretrain.method.simple import (
    BaselineDesigner,
    LossFeedback,
    ShuffledBatches,
    WholeLearner,
    halves,
)
from vpretrain.run.controls import controlled
from vpretrain.run.parts import Checked, Modality, Parts
from vpretrain.run.scores import Score, score
from vpretrain.system.errors import UserError
from vpretrain.vision.data.scenes import Scenes


class Data(Section):
    """Number of scenes in each split, and the words of captions."""

    stream: PositiveInt = 1000
    feedback: PositiveInt = 256
    test: PositiveInt = 300
    batch_size: PositiveInt = 32
    light_words: Literal[0, 1, 2, 3] = 3
    """Words in a caption that describe the light: true and easy to predict, but no help in naming
    objects."""


class ImageTextArm(DesignerSection):
    """Recipe keys of one kind of designer, and how it is built."""

    @abstractmethod
    def build(self, seed: int, reliability: Reliability) -> Designer:
        """Build a new designer."""


ARMS = Arms(
    ImageTextArm,
    baseline="plain",
    default="words",
    controls=("random_feedback", "fixed_random_direction"),
)


@ARMS.declare("plain", "contrastive learning as it is: the baseline")
class Plain(ImageTextArm):
    uses_feedback = False

    def build(self, seed: int, reliability: Reliability) -> Designer:
        return BaselineDesigner(Kept("words"))


@ARMS.declare("words", "a weight for each word, which climbs its value")
class Words(ImageTextArm):
    what: ClassVar[Literal["words", "mask"]] = "words"
    learning_rate: PositiveFloat = 0.1
    price: float = 0.02
    """Price of the mean square of ``1 - choice``, in standard deviations of the value."""

    def build(self, seed: int, reliability: Reliability) -> Designer:
        torch.manual_seed(seed)
        return NetworkDesigner(
            network(self.what),
            Kept(self.what),
            lambda choice: self.price * (1 - choice).square().mean(),
            Learning(self.learning_rate, reliability, updates=4),
        )


@ARMS.declare("masks", "a network emits masks of the pictures and climbs their value")
class Masks(Words):
    what = "mask"


class ImageTextRecipe(Recipe):
    """A recipe with ``modality: image-text``."""

    arms = ARMS
    data: Data = Data()
    learner: LearnerBase = LearnerBase()
    designer: Annotated[ImageTextArm, ARMS.by_kind] = Words()
    designers: Annotated[Mapping[str, ImageTextArm], ARMS.by_name] = {}


class ImageText(Modality[ImageTextRecipe, dict[str, Scenes]]):
    """The modality (:class:`vpretrain.run.parts.Modality`)."""

    schema = ImageTextRecipe
    unit = "images"
    arms = ARMS.all
    demo = ("plain", "words", "masks", "fixed_random_direction")

    def load(self, recipe: ImageTextRecipe) -> dict[str, Scenes]:
        """Return the scenes by split; each is rendered on first access and kept."""
        return {
            split: Scenes(split, getattr(recipe.data, split), SIZE, 0)
            for split in ("stream", "feedback", "test")
        }

    def check(self, recipe: ImageTextRecipe) -> Checked:
        """Check the recipe's arm."""
        try:
            ARMS.named(recipe.arm)
        except UserError as error:
            return Checked(error.problems)
        return Checked()

    def build(self, recipe: ImageTextRecipe, materials: dict[str, Scenes]) -> Parts:
        """Build the parts of a run for the recipe's arm and seed."""
        data, seed = recipe.data, recipe.seed
        torch.manual_seed(0)  # one checkpoint for all seeds
        model = TwoTowers().to(getattr(torch, recipe.learner.dtype))
        make = {
            split: partial(pairs, scenes, data.light_words) for split, scenes in materials.items()
        }
        verified = halves(
            data.feedback, min(32, data.feedback // 2), f"{seed} feedback", make["feedback"]
        )
        test = make["test"](range(data.test))
        return Parts(
            learner=WholeLearner(model, contrastive, aligned=["*"]),
            designer=ARMS.section_of(recipe).build(seed, Reliability(shrink=recipe.value.shrink)),
            feedback=controlled(
                LossFeedback(verified, lambda batch: zero_shot(model, batch)[1].mean()),
                ARMS.control_of(recipe),
                memory=recipe.value.memory,
                seed=seed,
            ),
            stream=ShuffledBatches(data.stream, data.batch_size, f"{seed} stream", make["stream"]),
            evaluate=partial(evaluate, model, test),
            held_out_loss=lambda: iter([zero_shot(model, test)[1].mean()]),
            save=model.clip.save_pretrained,
        )


@torch.no_grad()
def evaluate(model: TwoTowers, test: Any) -> dict[str, Score]:
    """Score zero-shot classification of the test scenes."""
    logits, losses = zero_shot(model, test)
    right = (logits.argmax(dim=1) == test.categories).float()
    return {
        "test/accuracy": score(right, higher_is_better=True),
        "test/nll": score(losses, higher_is_better=False),
    }
