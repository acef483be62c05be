"""What the arms of language have in common: where they are declared, and what a designer is built
from.

Each designer is declared beside its class, in a file of this folder; all of them are imported with
the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from vpretrain.config.arms import Arms, DesignerSection
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Designer
from vpretrain.system.errors import user_error


@dataclass(frozen=True)
class Cost:
    """What an arm asks for at every step (:mod:`vpretrain.language.learner.cost_model`).

    Args:
        candidates: more than the true token.
        exact: values of every batch.
        network: a designer network's scores.
        weighted: weights of tokens.
        uses_feedback: whether there are meta steps.
    """

    candidates: bool = False
    exact: bool = False
    network: bool = False
    weighted: bool = False
    uses_feedback: bool = True


@dataclass(frozen=True)
class Site:
    """What a designer may read of the run that it is built for.

    Args:
        learner: what it steers.
        seed: of its first weights.
        reliability: how its values shrink.
    """

    learner: CausalLearner
    seed: int
    reliability: Reliability

    @property
    def embedding(self) -> Tensor:
        """The learner's output embedding, ``[V, D]``."""
        return self.learner.anatomy.head.get_parameter("weight")


class LanguageArm(DesignerSection):
    """The keys of one kind of designer, and how it is built."""

    cost: ClassVar[Cost | None] = None
    """None: there is no model of what it costs."""
    needs_sources: ClassVar[bool] = False
    """Whether it tells sources of the stream apart."""

    @property
    def most_candidates(self) -> int:
        """Tokens that a target is spread over."""
        return 1

    def build(self, site: Site) -> Designer:
        raise NotImplementedError


class CandidatesArm(LanguageArm):
    """Of designers that spread targets over candidates."""

    candidates: PositiveInt = 64
    """K: the true token and the learner's K - 1 most probable others (eq. 14)."""

    @property
    def most_candidates(self) -> int:
        return self.candidates


class TiltArm(LanguageArm):
    """Of designers that weight tokens."""

    tilt: NonNegativeFloat = 0.4
    """c: weight of a token per standard deviation of its value."""


ARMS: Arms[LanguageArm] = Arms(LanguageArm, baseline="onehot", default="token_weights")
"""The designers of language, and the arms that are made of them."""
DEMO = ("onehot", "document_weights", "token_weights", "fixed_random_direction")


def designer_of(section: LanguageArm, site: Site) -> Designer:
    """A fresh designer.

    Raises:
        UserError: it wants more candidates than the learner has tokens.
    """
    if section.most_candidates > (vocabulary := len(site.embedding)):
        raise user_error(
            "designer.candidates",
            "there are not so many tokens in the learner's vocabulary",
            value=section.most_candidates,
            accepted=f"1 to {vocabulary}",
        )
    return section.build(site)
