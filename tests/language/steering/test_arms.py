"""What is declared of the designers of language."""

import pytest

from tests.language.conftest import tiny_learner
from vpretrain.language.learner.cost_model import KINDS
from vpretrain.language.steering.arms import ARMS, LanguageArm, Site, designer_of
from vpretrain.method.reliability import Reliability
from vpretrain.method.value import Alignment
from vpretrain.system.errors import UserError


def site():
    return Site(tiny_learner(), 0, Reliability(shrink=True))


def test_a_designer_has_to_be_built():
    class Unbuilt(LanguageArm):
        pass

    with pytest.raises(TypeError, match="build"):
        Unbuilt()


@pytest.mark.parametrize("kind", ["closed_form", "ascent", "uniform_smoothing"])
def test_more_candidates_than_tokens_are_refused(kind):
    section = ARMS.kinds[kind](candidates=1_000)
    with pytest.raises(UserError, match=r"designer\.candidates.*not as many tokens"):
        designer_of(section, site())


def test_a_designer_is_stated_for_the_alignment_that_its_arm_declares():
    own = {}
    for kind, section in ARMS.kinds.items():
        designer = section().build(site())
        assert designer.alignment == section().valued_by, kind
        own[kind] = Alignment.of(designer, "cosine").name
    assert own["opus"] == "optimizer_aware" and own["greats_topk"] == own["dga"] == "dot"
    assert own["token_weights"] == "cosine"


def test_what_uses_no_feedback_costs_no_meta_step():
    for kind, cost in KINDS.items():
        assert cost.uses_feedback == ARMS.kinds[kind].uses_feedback, kind
