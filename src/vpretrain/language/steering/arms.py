"""Base classes of the language arms. Each arm is declared beside its designer, in a file of this
folder; all files are imported with the package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from vpretrain.config.arms import Arms, Control, DesignerSection
from vpretrain.language.data.rows import Document
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.targets import check_count
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import AlignmentName, Designer
from vpretrain.method.value import Alignment
from vpretrain.system.errors import user_error

if TYPE_CHECKING:
    from vpretrain.language.learner.cost_model import Setting, Shape


@dataclass(frozen=True)
class NetworkCost:
    """Cost of a designer's network, computed from shapes.

    Args:
        batch: FLOPs of a forward pass over the batch's tokens.
        scores: FLOPs of the candidates' scores, which the backward pass recomputes.
        parameters: number of trained weights.
    """

    batch: int
    scores: int
    parameters: int

    @property
    def forward(self) -> int:
        """FLOPs of a forward pass without gradients."""
        return self.batch + self.scores

    @property
    def update(self) -> int:
        """FLOPs of a forward and backward pass."""
        return 3 * self.batch + 4 * self.scores


@dataclass(frozen=True)
class Cost:
    """What an arm computes at every step (:mod:`vpretrain.language.learner.cost_model`).

    Args:
        candidates: whether it uses candidates other than the true token.
        exact: whether it computes the values of every batch.
        network: cost of the designer's network for a learner's shape and a setting, or None.
        weighted: whether it weights tokens.
        uses_feedback: whether it has meta steps.
    """

    candidates: bool = False
    exact: bool = False
    network: Callable[[Shape, Setting], NetworkCost] | None = None
    weighted: bool = False
    uses_feedback: bool = True


@dataclass(frozen=True)
class Site:
    """What a designer is built from.

    Args:
        learner: the learner that it steers.
        seed: seed of its initial weights.
        reliability: shrinks its values.
        feedback: the verified documents, for a baseline that trains a separate model on them.
        tokenizer: the learner's tokenizer.
        learning_rate: the learner's learning rate.
        meta_period: number of steps between meta steps.
    """

    learner: CausalLearner
    seed: int
    reliability: Reliability
    feedback: Sequence[Document] = ()
    tokenizer: Any = None
    learning_rate: float = 1.5e-5
    meta_period: int = 8

    @property
    def embedding(self) -> Tensor:
        """The learner's output embedding, ``[V, D]``."""
        return self.learner.anatomy.head.get_parameter("weight")


class LanguageArm(DesignerSection, ABC):
    """The keys of one kind of designer, and how it is built."""

    cost: ClassVar[Cost | None] = None
    """Cost of the arm; None if the cost model does not cover it."""
    needs_sources: ClassVar[bool] = False
    """Whether it distinguishes the sources of the stream."""
    reads_rows: ClassVar[bool] = False
    """Whether it reads the feedback rows themselves and not only gradients on them. Then random
    directions in place of the gradients are no control; wrong labels are."""
    needs_run: ClassVar[bool] = False
    """Whether it needs a run of this package rather than batches from another trainer, because it
    draws more than it trains on, or trains something before the first step."""

    compares_batches: ClassVar[bool] = False
    """Whether it compares documents of several batches by ``value.alignment``, which then must be
    linear: under the others every batch has a direction of its own."""

    @property
    def most_candidates(self) -> int:
        """Number of tokens that a target may be spread over."""
        return 1

    @property
    def valued_by(self) -> AlignmentName | None:
        """The arm's own alignment, which overrides ``value.alignment``; None if it has none."""
        return None

    @property
    def followers(self) -> int:
        """Number of copies of the learner trained beside it; see
        :class:`vpretrain.run.parts.Parts`."""
        return 0

    @abstractmethod
    def build(self, site: Site) -> Designer:
        """Builds a new designer."""


class CandidatesArm(LanguageArm):
    """The keys of arms that spread targets over candidates."""

    candidates: PositiveInt = 64
    """K, candidates per target: the true token and the learner's K - 1 most probable others (eq.
    14)."""

    @property
    def most_candidates(self) -> int:
        return self.candidates


class TiltArm(LanguageArm):
    """The keys of arms that weight tokens."""

    tilt: NonNegativeFloat = 0.4
    """c: change of a token's weight per standard deviation of its value."""


ARMS: Arms[LanguageArm] = Arms(
    LanguageArm,  # type: ignore[type-abstract]  # base class of all kinds, never instantiated
    baseline="onehot",
    default="document_weights",
)
"""The language designers and their arms."""
DEMO = ("onehot", "document_weights", "token_weights", "fixed_random_direction")


def designer_of(section: LanguageArm, site: Site) -> Designer:
    """Builds a designer; ``UserError`` if it has more candidates than the vocabulary tokens."""
    check_count(section.most_candidates, len(site.embedding))
    return section.build(site)


def check_alignment(section: LanguageArm, alignment: AlignmentName) -> None:
    """Rejects an alignment under which a designer's batches cannot be compared."""
    if section.compares_batches and not Alignment(alignment).linear:
        message = (
            f"{section.kind} compares documents of several batches, and under this alignment each "
            "batch has another direction"
        )
        accepted = "dot, optimizer_aware"
        raise user_error("value.alignment", message, value=alignment, accepted=accepted)


def check_control(section: LanguageArm, arm: str, control: Control) -> None:
    """Rejects a control of the feedback's gradients for a designer that reads its rows."""
    if section.reads_rows and control in ("random", "fixed_direction", "reversed"):
        message = (
            f"{section.kind} reads the feedback rows themselves, so another direction in place of "
            "their gradient is no control of it"
        )
        by_arm = ARMS.named(arm).control is not None
        raise user_error(
            "arm" if by_arm else "feedback.control",
            message,
            value=arm if by_arm else control,
            accepted="shuffled_feedback" if by_arm else "none, shuffled",
        )
