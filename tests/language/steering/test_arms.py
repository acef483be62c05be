"""What is declared of the designers of language."""

import pytest

from tests.language.conftest import tiny_learner
from vpretrain.config.recipe import load
from vpretrain.language.learner.cost_model import KINDS
from vpretrain.language.steering.arms import ARMS, LanguageArm, Site, designer_of
from vpretrain.method.reliability import Reliability
from vpretrain.method.value import Alignment
from vpretrain.run.modalities import SCHEMAS
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


BASE = """\
modality: language
description: what is read of a designer
budget: {steps: 2}
data:
  window_tokens: 32
  batch_size: 2
  stream: [{name: problems, rows: {kind: word_problems, rows: 40}}]
  feedback: {rows: {kind: word_problems, split: feedback, rows: 16}, batch_size: 4}
  evaluation: {test: {kind: word_problems, split: test, rows: 8}}
learner: {model: word-problems-majority}
"""


@pytest.mark.parametrize(
    ("text", "overrides", "kind", "key", "value"),
    [
        (
            "arm: document_weights\ndesigner: {tilt: 0.4}",
            ["designers.document_weights.tilt=1.0"],
            "document_weights",
            "tilt",
            1.0,
        ),
        (
            "arm: closed_form\ndesigner: {candidates: 5}",
            ["arm=token_weights"],
            "token_weights",
            "tilt",
            0.4,
        ),
        (
            "arm: closed_form\ndesigner: {candidates: 5}",
            ["arm=random_feedback"],
            "closed_form",
            "candidates",
            5,
        ),
        ("arm: token_weights", ['arm="closed_form"'], "closed_form", "clip", 2.0),
    ],
)
def test_a_designer_without_a_kind_is_of_its_arms_whatever_is_written_over_it(
    text, overrides, kind, key, value, tmp_path
):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE + text)
    recipe = load(str(path), overrides, schemas=SCHEMAS)
    section = ARMS.section_of(recipe)
    assert (section.kind, getattr(section, key)) == (kind, value)
