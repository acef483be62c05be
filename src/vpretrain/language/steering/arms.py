"""What the arms of language have in common. Each is declared beside its designer, in a file of this
folder; all of them are imported with the package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from vpretrain.config.arms import Arms, DesignerSection
from vpretrain.language.data.rows import Document
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.targets import check_count
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import AlignmentName, Designer

if TYPE_CHECKING:
    from vpretrain.language.learner.cost_model import Setting, Shape


@dataclass(frozen=True)
class NetworkCost:
    """What a designer's network costs, counted from shapes.

    Args:
        batch: FLOPs of a forward pass over the batch's tokens.
        scores: FLOPs of the candidates' scores, which the backward pass makes again.
        parameters: its trained weights.
    """

    batch: int
    scores: int
    parameters: int

    @property
    def forward(self) -> int:
        """FLOPs without a gradient."""
        return self.batch + self.scores

    @property
    def update(self) -> int:
        """FLOPs of a forward pass with its gradient."""
        return 3 * self.batch + 4 * self.scores


@dataclass(frozen=True)
class Cost:
    """What an arm asks for at every step (:mod:`vpretrain.language.learner.cost_model`).

    Args:
        candidates: more than the true token.
        exact: values of every batch.
        network: what a designer's network costs for a learner's shape in a setting.
        weighted: weights of tokens.
        uses_feedback: whether there are meta steps.
    """

    candidates: bool = False
    exact: bool = False
    network: Callable[[Shape, Setting], NetworkCost] | None = None
    weighted: bool = False
    uses_feedback: bool = True


@dataclass(frozen=True)
class Site:
    """What a designer may read of the run that it is built for.

    Args:
        learner: what it steers.
        seed: of its first weights.
        reliability: how its values shrink.
        feedback: the verified rows, for a baseline that trains a model of its own on them.
        tokenizer: the learner's.
        learning_rate: the learner's.
        meta_period: steps from one meta step to the next.
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
    """None: there is no model of what it costs."""
    needs_sources: ClassVar[bool] = False
    """Whether it tells sources of the stream apart."""
    needs_run: ClassVar[bool] = False
    """Whether it needs a run of ours, and not rows that another trainer hands over: it draws more
    than it trains on, or trains something before the first step."""

    @property
    def most_candidates(self) -> int:
        """Tokens that a target is spread over."""
        return 1

    @property
    def valued_by(self) -> AlignmentName | None:
        """The designer's own alignment, whatever ``value.alignment`` is; None: it has none."""
        return None

    @property
    def followers(self) -> int:
        """Copies of the learner that are trained beside it (:class:`vpretrain.run.parts.Parts`)."""
        return 0

    @abstractmethod
    def build(self, site: Site) -> Designer:
        """A fresh designer."""


class CandidatesArm(LanguageArm):
    """The keys of arms that spread targets over candidates."""

    candidates: PositiveInt = 64
    """K: the true token and the learner's K - 1 most probable others (eq. 14)."""

    @property
    def most_candidates(self) -> int:
        return self.candidates


class TiltArm(LanguageArm):
    """The keys of arms that weight tokens."""

    tilt: NonNegativeFloat = 0.4
    """c: weight of a token per standard deviation of its value."""


ARMS: Arms[LanguageArm] = Arms(
    LanguageArm,  # type: ignore[type-abstract]  # the base of all kinds, which is never made
    baseline="onehot",
    default="token_weights",
)
"""The designers of language, and the arms that are made of them."""
DEMO = ("onehot", "document_weights", "token_weights", "fixed_random_direction")


def designer_of(section: LanguageArm, site: Site) -> Designer:
    """A fresh designer; ``UserError`` if it wants more candidates than the learner has tokens."""
    check_count(section.most_candidates, len(site.embedding))
    return section.build(site)
