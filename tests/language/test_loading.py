"""Models from configurations: the same weights in every dtype, and refusals where transformers is silent."""

import pytest
import torch

from vpretrain.errors import UserError
from vpretrain.language.loading import named, new_model

from .conftest import CONFIGS


def made(config, dtype=torch.float32, attention="sdpa"):
    torch.manual_seed(0)
    return new_model(config, "learner.config", dtype=dtype, attention=attention)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_random_weights_are_the_same_in_every_dtype(family, dtype):
    reference, other = made(CONFIGS[family]).state_dict(), made(CONFIGS[family], dtype).state_dict()
    assert list(reference) == list(other)
    for name, weight in other.items():
        assert weight.dtype == dtype
        assert torch.equal(weight, reference[name].to(dtype))


@pytest.mark.parametrize(
    ("change", "where", "says"),
    [
        ({"model_type": "lama"}, "learner.config.model_type", "did you mean llama?"),
        ({"hidden_sise": 8}, "learner.config.hidden_sise", "did you mean hidden_size?"),
        ({"hidden_size": "8"}, "learner.config", "hidden_size"),
        ({"hidden_size": 33}, "learner.config", "33"),
        ({"vocab_size": -5}, "learner.config", "-5"),
    ],
)
def test_a_configuration_that_makes_no_model(change, where, says):
    with pytest.raises(UserError) as caught:
        made(CONFIGS["llama"] | change)
    (problem,) = caught.value.problems
    assert problem.where == where
    assert says in problem.message


def test_old_and_mapped_keys_are_keys():
    made(CONFIGS["llama"] | {"rope_theta": 5e5})
    made({"model_type": "gpt2", "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "n_head": 4})


def test_names(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named("~/model") == str(tmp_path / "model")
    assert named("Qwen/Qwen2-0.5B") == "Qwen/Qwen2-0.5B"
