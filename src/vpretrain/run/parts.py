"""A run taken apart, and the modality that builds its parts from a recipe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

from vpretrain.config.recipe import Recipe
from vpretrain.method.roles import BatchT, ContextT, Designer, Feedback, Learner, Stream, TaskT
from vpretrain.run.budget import Spending
from vpretrain.run.scores import Score
from vpretrain.system.errors import Problem, user_error

if TYPE_CHECKING:
    from vpretrain.run.train import Result


@dataclass(frozen=True)
class Parts(Generic[BatchT, ContextT, TaskT]):
    """What a modality builds from a recipe, and a run trains.

    Args:
        stream: endless unlabeled batches.
        evaluate: scores the learner on held-out rows, by metric name (``test/nll``).
        held_out_loss: the feedback loss on fixed held-out rows, without dropout, in pieces that fit
            in memory: each is a scalar with its graph to the learner, and their sum is the loss (a
            mean over all those rows).
        held_out_batch: the same of the n-th held-out batch, of as many rows as a feedback batch;
            None: in ``vpretrain probe --along`` the pieces of ``held_out_loss`` take turns.
        save: writes the learner as an ordinary model folder.
        meta_batches: unlabeled batches of the designer's own, one a meta step; None: it learns from
            the learner's batch.
        alignment_groups: see :class:`vpretrain.method.value.Alignment`.
        after: what comes after the stream, if anything: trains the learner on and adds the tokens
            and FLOPs it used; its seconds are charged by the caller. The budget is that of the
            stream.
        on_stream: whether the learner trains on the stream at all.
        followers: copies of the model that are trained too, and are in memory and in checkpoints
            beside it.

    Raises:
        UserError: the designer's selector has nothing to choose from in the stream.
    """

    learner: Learner[BatchT, ContextT, TaskT]
    designer: Designer[ContextT, TaskT]
    feedback: Feedback[Any]
    stream: Stream[BatchT]
    evaluate: Callable[[], dict[str, Score]]
    held_out_loss: Callable[[], Iterator[Tensor]]
    save: Callable[[Path], None]
    held_out_batch: Callable[[int], Iterator[Tensor]] | None = None
    meta_batches: Stream[BatchT] | None = None
    alignment_groups: tuple[str, ...] = ()
    after: Callable[[Spending], None] | None = None
    on_stream: bool = True
    followers: int = 0

    def __post_init__(self) -> None:
        if self.designer.selector is not None:
            self.designer.selector.check(self.stream)


AnyParts = Parts[Any, Any, Any]
"""Parts of some modality: what a run does with them does not depend on which."""


@dataclass(frozen=True)
class Lighter:
    """Smaller batches, for a first look on a slow machine.

    Args:
        overrides: of the recipe.
        stream: the share of a step's time that is left.
        feedback: likewise of the feedback of a meta step.
    """

    overrides: str
    stream: float
    feedback: float


@dataclass(frozen=True)
class Reads:
    """What a run reads beside its stream.

    Args:
        feedback_tokens: of a meta step, with what pads them, about.
        held_out_tokens: of an evaluation, likewise.
        held_out_rows: of one.
        fewer: the override that takes :data:`FEW_ROWS` of those; empty where none does.
        lighter: smaller batches, where they can be smaller.
    """

    feedback_tokens: int
    held_out_tokens: int
    held_out_rows: int
    fewer: str = ""
    lighter: Lighter | None = None


FEW_ROWS = 64
"""Of feedback or evaluation, below which a verdict is unlikely."""


@dataclass(frozen=True)
class Checked:
    """What a look at a recipe's data and model came to.

    Args:
        problems: what is wrong; empty when a run can start.
        parts: of a run, where they were put together on the way: what a run needs is read from
            them, and nothing is loaded twice.
        warnings: what a person has been told of data that a run can start with, a line each.
        reads: what is read beside the stream, where its time can be told from that of a step.
    """

    problems: Sequence[Problem] = ()
    parts: AnyParts | None = None
    warnings: Sequence[str] = ()
    reads: Reads | None = None


RecipeT = TypeVar("RecipeT", bound=Recipe)
MaterialsT = TypeVar("MaterialsT")


class Modality(ABC, Generic[RecipeT, MaterialsT]):
    """Language, vision, or one from outside; made without arguments."""

    schema: type[RecipeT]
    """The class of its recipes."""
    arms: Mapping[str, str]
    """What each arm is, in a sentence; the first is the baseline, which uses no feedback."""
    direct: Collection[str] = ()
    """Arms that train on something else than the stream."""
    demo: Sequence[str]
    """Arms of ``vpretrain demo``, the baseline first and a control last."""
    unit: str = "tokens"
    """What a budget counts: ``tokens`` or ``images``."""

    @abstractmethod
    def load(self, recipe: RecipeT) -> MaterialsT:
        """Reads data and finds the checkpoint: everything that does not depend on arm and seed.

        Raises:
            UserError: with what is wrong in recipe or data.
        """

    def check(self, recipe: RecipeT) -> Checked:
        """What is wrong with data and model; nothing is trained, and nothing made."""
        return Checked()

    def prepare(self, recipe: RecipeT, out: Path | None) -> Path:
        """Makes the checkpoint that the recipe describes, in ``out`` or in the cache.

        Raises:
            UserError: no recipe of this modality describes one.
        """
        raise user_error("learner.prepare", "recipes of this modality prepare no checkpoint")

    @abstractmethod
    def build(self, recipe: RecipeT, materials: MaterialsT) -> AnyParts:
        """Fresh parts for the recipe's arm and seed: the same, bit for bit, at every call."""

    def data_hashes(self, materials: MaterialsT) -> dict[str, str]:
        """SHA-256 of every set of data, by its name in the recipe."""
        return {}

    def card(self, recipe: RecipeT, materials: MaterialsT, result: Result, folder: Path) -> None:
        """Writes the model card into the folder of the saved model, if there is one to write."""
        return None

    def picture(self, recipe: RecipeT, parts: AnyParts, path: Path) -> bool:
        """Draws the next batch of the stream as the run's designer shapes it; False, and no file,
        where there is nothing to see."""
        return False

    def draw(self, recipe: RecipeT, materials: MaterialsT, parts: AnyParts, folder: Path) -> None:
        """Draws into ``folder/pictures`` what there is to see of a run that ``folder`` holds."""
        return None

    def explain(
        self, recipe: RecipeT, folder: Path, *, documents: int, out: Path
    ) -> dict[str, Any]:
        """What a sample of a finished run's stream is worth: figures, and a page at ``out``.

        Raises:
            UserError: runs of this modality cannot be explained.
        """
        raise user_error(
            "RUN",
            "runs of this modality cannot be explained: it has no method `explain`",
            value=recipe.modality,
        )
