"""The parts of a run, and the modality that builds them from a recipe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

from vpretrain.config.arms import Arm
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
        held_out_batch: the same loss on the n-th held-out batch, with as many rows as a feedback
            batch; None: ``vpretrain probe --along`` uses the pieces of ``held_out_loss`` in turn.
        save: writes the learner as an ordinary model folder.
        meta_batches: separate unlabeled batches for the designer, one per meta step; None: it
            learns from the learner's batch.
        alignment_groups: see :class:`vpretrain.method.value.Alignment`.
        after: training that follows the stream, if any; adds the tokens and FLOPs it used. Its
            seconds are charged by the caller. The budget covers the stream only.
        on_stream: whether the learner trains on the stream at all.
        followers: number of copies of the model that are trained too, and kept in memory and in
            checkpoints.

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
"""Parts of any modality; a run treats them alike."""


@dataclass(frozen=True)
class Lighter:
    """Smaller batches, for a first look on a slow machine.

    Args:
        overrides: recipe overrides that set them.
        stream: fraction of a step's time that remains.
        feedback: fraction of a meta step's feedback time that remains.
    """

    overrides: str
    stream: float
    feedback: float


@dataclass(frozen=True)
class Reads:
    """Data that a run reads in addition to its stream.

    Args:
        feedback_tokens: approximate number of tokens in a meta step's feedback, padding included.
        held_out_tokens: approximate number of tokens in an evaluation, padding included.
        held_out_rows: number of rows in an evaluation.
        fewer: override that limits an evaluation to :data:`FEW_ROWS` rows; empty if there is none.
        lighter: smaller batches, if they can be smaller.
    """

    feedback_tokens: int
    held_out_tokens: int
    held_out_rows: int
    fewer: str = ""
    lighter: Lighter | None = None


FEW_ROWS = 64
"""Number of feedback or evaluation rows below which a verdict is unlikely."""


@dataclass(frozen=True)
class Checked:
    """Result of checking a recipe's data and model.

    Args:
        problems: what is wrong; empty if a run can start.
        parts: a run's parts, if the check has built them, so that nothing is loaded twice.
        warnings: one line each, for data that a run can start with; already shown to the user.
        reads: data read in addition to the stream, if its time can be derived from that of a step.
    """

    problems: Sequence[Problem] = ()
    parts: AnyParts | None = None
    warnings: Sequence[str] = ()
    reads: Reads | None = None


RecipeT = TypeVar("RecipeT", bound=Recipe)
MaterialsT = TypeVar("MaterialsT")


class Modality(ABC, Generic[RecipeT, MaterialsT]):
    """Language, vision, or an external modality; constructed without arguments."""

    schema: type[RecipeT]
    """The class of its recipes."""
    arms: Mapping[str, Arm]
    """Every arm, by name; the first is the baseline, which uses no feedback."""
    demo: Sequence[str]
    """Arms of ``vpretrain demo``, the baseline first and a control last."""
    unit: str = "tokens"
    """Unit of the budget: ``tokens`` or ``images``."""

    @abstractmethod
    def load(self, recipe: RecipeT) -> MaterialsT:
        """Reads data and locates the checkpoint: everything that is independent of arm and seed.

        Raises:
            UserError: recipe or data are invalid.
        """

    def check(self, recipe: RecipeT) -> Checked:
        """Checks data and model; trains nothing, and writes nothing."""
        return Checked()

    def prepare(self, recipe: RecipeT, out: Path | None) -> Path:
        """Makes the checkpoint that the recipe describes, in ``out`` or in the cache.

        Raises:
            UserError: recipes of this modality describe none.
        """
        raise user_error("learner.prepare", "recipes of this modality prepare no checkpoint")

    @abstractmethod
    def build(self, recipe: RecipeT, materials: MaterialsT) -> AnyParts:
        """Returns fresh parts for the recipe's arm and seed, the same bit for bit at every call."""

    def data_hashes(self, materials: MaterialsT) -> dict[str, str]:
        """Returns the SHA-256 of every data set, by its name in the recipe."""
        return {}

    def card(self, recipe: RecipeT, materials: MaterialsT, result: Result, folder: Path) -> None:
        """Writes the model card into the folder of the saved model, if there is one to write."""
        return None

    def picture(self, recipe: RecipeT, parts: AnyParts, path: Path) -> bool:
        """Draws the next batch of the stream as the run's designer shapes it.

        Returns False, and writes no file, if there is nothing to see.
        """
        return False

    def draw(self, recipe: RecipeT, materials: MaterialsT, parts: AnyParts, folder: Path) -> None:
        """Draws pictures of the finished run in ``folder`` into ``folder/pictures``."""
        return None

    def explain(
        self, recipe: RecipeT, folder: Path, *, documents: int, out: Path
    ) -> dict[str, Any]:
        """Values a sample of a finished run's stream; returns figures, and writes a page.

        Raises:
            UserError: runs of this modality cannot be explained.
        """
        raise user_error(
            "RUN",
            "runs of this modality cannot be explained: it has no method `explain`",
            value=recipe.modality,
        )
