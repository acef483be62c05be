"""What training relies on in an architecture."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.language.conftest import tiny_batch
from tests.language.learner.test_architectures import SIZES, tiny
from tests.language.learner.test_causal import learner_of, new_model
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.system.errors import UserError


def test_a_model_that_sees_what_is_to_come_is_refused(monkeypatch):
    model = new_model("llama")
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda input_ids, **rest: forward(
            input_ids=input_ids.flip(1).cumsum(1).flip(1) % 40, **rest
        ),
    )
    with pytest.raises(UserError, match="see later ones"):
        learner_of(model)


def test_a_model_that_does_not_keep_documents_apart_is_refused():
    torch.manual_seed(0)
    config = AutoConfig.for_model("bloom", vocab_size=40, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(UserError, match=r"position ids|other documents"):
        learner_of(AutoModelForCausalLM.from_config(config))


def test_rounding_is_not_taken_for_another_architecture():
    """In bfloat16 the logits of a deep model move by more than any fixed tolerance, which once had
    SmolLM2 refused; the parts are held against the whole in the same operations and dtype.
    """
    model = tiny("llama", SIZES | {"num_hidden_layers": 40, "initializer_range": 0.3}).bfloat16()
    learner = CausalLearner(
        model, aligned_parameters(model, Anatomy.of(model), blocks=20, patterns=[])
    )
    with torch.no_grad():
        context = learner.forward(tiny_batch())
        point = {name: p.detach().float() for name, p in learner.aligned.items()}
        wide = learner.suffix.hidden(context.trace, point)
    tolerance = 2e-2 * float(wide.std())
    assert not torch.allclose(wide, context.hidden.float(), rtol=2e-2, atol=tolerance)
