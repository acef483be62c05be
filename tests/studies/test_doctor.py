"""What `vpretrain doctor` reads, and that estimators are held against float64."""

import time

import pytest
import torch

from tests.run.test_train import tiny_recipe
from tests.studies import small_recipe
from vpretrain.language import Language
from vpretrain.language.learner import predictions
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.method.estimators import NAMES
from vpretrain.studies.doctor import doctor
from vpretrain.system import timing


def test_a_small_part_of_the_data_is_read(monkeypatch):
    """A stream of millions of rows is not tokenised for a batch of two."""
    read = []

    class Enough(Exception):
        pass

    def load(self, recipe):
        read.append(recipe.data)
        raise Enough

    monkeypatch.setattr(Language, "load", load)
    with pytest.raises(Enough):
        doctor(tiny_recipe("data.stream.1.max_documents=7"))
    (data,) = read
    assert [source.max_documents for source in data.stream] == [256, 7]
    assert data.batch_size == data.feedback.batch_size == 2


def test_estimators_agree_with_double_backward_in_float64():
    result = doctor(tiny_recipe("arm=token_weights"))["estimators"]
    assert [row["name"] for row in result] == list(NAMES)
    assert all(row["cosine"] > 0.999 and row["relative_error"] < 1e-2 for row in result)


def test_rounding_of_the_learner_is_no_error_of_the_estimators(monkeypatch):
    """A checkpoint in bfloat16 was told that none of them is exact."""
    monkeypatch.setattr(predictions, "WHOLE_LOGITS", 0)
    recipe = tiny_recipe(
        "arm=token_weights", "learner.dtype=bfloat16", "learner.aligned_head=false"
    )
    result = doctor(recipe)
    errors = {row["name"]: row["relative_error"] for row in result["estimators"]}
    assert errors["double_backward"] < 1e-5 < errors["one_sided_difference"] < 2e-2
    assert errors["one_sided_difference"] != errors["central_difference"] < 2e-2
    assert 1e-4 < result["rounding"] < 0.5
    assert doctor(tiny_recipe("arm=token_weights"))["rounding"] is None


def test_a_learner_that_cannot_be_mixed_has_no_rounding_of_its_own(monkeypatch):
    """Its reference is in float64 as a whole."""

    def refuse(self, context, task):
        if next(iter(self.aligned.values())).dtype != next(self.model.parameters()).dtype:
            raise RuntimeError("cannot mix")
        return objective(self, context, task)

    objective = CausalLearner.objective
    monkeypatch.setattr(CausalLearner, "objective", refuse)
    assert doctor(tiny_recipe("arm=token_weights", "learner.dtype=bfloat16"))["rounding"] is None


def test_dropout_is_no_error_of_the_estimators():
    """The reference is another learner, which would drop out other units."""
    recipe = small_recipe.tiny_recipe("arm=token_weights")
    assert recipe.learner.config["attention_dropout"] > 0
    result = doctor(recipe)["estimators"]
    assert all(row["cosine"] > 0.999 and row["relative_error"] < 1e-2 for row in result)


@pytest.mark.parametrize("mixes", [True, False])
def test_the_reference_has_no_float64_copy_of_what_is_below_s(monkeypatch, mixes):
    """A large model would take three times its memory. A learner of a user's own may not be able to
    mix dtypes."""
    learners = []
    build, objective = Language.build, CausalLearner.objective

    def built(self, recipe, materials):
        parts = build(self, recipe, materials)
        learners.append(parts.learner)
        return parts

    def refusing(self, context, task):
        if len({parameter.dtype for parameter in self.model.parameters()}) > 1:
            raise RuntimeError("expected scalar type Float but found Double")
        return objective(self, context, task)

    monkeypatch.setattr(Language, "build", built)
    if not mixes:
        monkeypatch.setattr(CausalLearner, "objective", refusing)
    result = doctor(tiny_recipe("arm=token_weights", "learner.aligned_blocks=1"))["estimators"]
    assert all(row["cosine"] > 0.999 for row in result)
    reference = learners[-1]
    inside = {id(parameter) for parameter in reference.aligned.values()}
    below = {p.dtype for p in reference.model.parameters() if id(p) not in inside}
    assert below == {torch.float32 if mixes else torch.float64}
    assert {p.dtype for p in reference.aligned.values()} == {torch.float64}


def test_what_is_queued_on_the_accelerator_is_waited_for(monkeypatch):
    monkeypatch.setattr(timing, "_synchronize", lambda: time.sleep(0.1))
    result = doctor(tiny_recipe("arm=token_weights"))["estimators"]
    assert all(row["seconds"] >= 0.1 for row in result)
