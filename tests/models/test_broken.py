"""Model folders with weights that cannot be used, or that would have to be unpickled, are refused
by name, whoever reads them.
"""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.reliability.runs import language_recipe, vision_recipe
from tests.reliability.test_security import Owned
from vpretrain.language import Language
from vpretrain.language.evaluation.benchmark_run import open_model
from vpretrain.models.finite import unusable
from vpretrain.system.errors import UserError
from vpretrain.vision.learners import new_learner, save


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A whole model folder, and an adapter that names it as its base."""
    folder = tmp_path_factory.mktemp("saved")
    base = ["learner.config=null", f"learner.model={folder / 'whole'}"]
    for name, keys in (("whole", []), ("adapter", [*base, "learner.lora={r: 2, merge: false}"])):
        recipe = language_recipe("arm=onehot", *keys)
        Language().build(recipe, Language().load(recipe)).save(folder / name)
    return folder


def copied(saved, name, tmp_path):
    return shutil.copytree(saved / name, tmp_path / name)


def changed(path, change):
    """The first weight of a file put through ``change``."""
    weights = load_file(path)
    name = min(weights)
    weights[name] = change(weights[name])
    save_file(weights, path, {"format": "pt"})
    return name


def problems(folder):
    recipe = language_recipe("arm=onehot", "learner.config=null", f"learner.model={folder}")
    return list(Language().check(recipe).problems)


def with_first(value, dtype=torch.float32):
    def change(weight):
        weight = weight.to(dtype)
        weight.view(-1)[0] = value
        return weight

    return change


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (with_first(float("nan")), "nan"),
        (with_first(1e308, torch.float64), "inf"),
        (with_first(-3e38), "3e+38"),
    ],
    ids=["NaN", "1e308", "-3e38"],
)
def test_weights_that_are_not_finite_are_named_with_their_folder(saved, change, shown, tmp_path):
    folder = copied(saved, "whole", tmp_path)
    name = changed(folder / "model.safetensors", change)
    (problem,) = problems(folder)
    assert problem.where == "learner.model" and str(folder) in problem.message
    assert problem.value.startswith(f"{name}: ") and problem.value.endswith(shown)
    with pytest.raises(UserError) as caught:
        open_model(str(folder), "MODEL", dtype="float32", device="cpu")
    assert caught.value.problems[0].where == "MODEL", "of evaluate"


def test_an_adapter_with_such_weights_is_named(saved, tmp_path):
    folder = copied(saved, "adapter", tmp_path)
    assert not problems(folder)
    changed(folder / "adapter_model.safetensors", with_first(float("nan")))
    (problem,) = problems(folder)
    assert problem.where == "learner.model" and str(folder) in problem.message


def test_state_beside_a_backbone_with_such_weights_is_named(tmp_path):
    recipe = vision_recipe()
    save(new_learner(recipe, None)[0], tmp_path / "backbone")
    changed(tmp_path / "backbone" / "dino.safetensors", with_first(float("inf")))
    with pytest.raises(UserError, match=r"dino\.safetensors is not finite"):
        new_learner(recipe, str(tmp_path / "backbone"))


@pytest.mark.parametrize("name", ["whole", "adapter"])
def test_pickles_are_refused_without_the_advice_to_trust_them(saved, name, tmp_path):
    folder, marker = copied(saved, name, tmp_path), tmp_path / "owned"
    (weights,) = folder.glob("*model.safetensors")
    weights.unlink()
    pickled = "pytorch_model.bin" if name == "whole" else "adapter_model.bin"
    (folder / pickled).write_bytes(pickle.dumps({"x": Owned(marker)}))
    (problem,) = problems(folder)
    assert problem.where == "learner.model" and not marker.exists()
    assert pickled in problem.message and "safetensors" in problem.message
    assert "weights_only" not in str(problem)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"peft_type": "x"}'])
def test_an_adapter_that_cannot_be_read_is_named(saved, content, tmp_path):
    folder = copied(saved, "adapter", tmp_path)
    (folder / "adapter_config.json").write_text(content)
    (problem,) = problems(folder)
    assert str(folder) in str(problem)


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "decoder_layers", "depths", "num_local_experts", "num_blocks"]
)
def test_a_billion_layers_are_refused_before_they_are_made(saved, key, tmp_path):
    folder = copied(saved, "whole", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    count = [10**9] if key == "depths" else 10**9
    (folder / "config.json").write_text(json.dumps(config | {key: count}))
    (problem,) = problems(folder)
    assert problem.where == f"{folder / 'config.json'}.{key}"


def test_what_is_unusable():
    whole = {"a": torch.ones(2), "b": torch.tensor([1e17, -1.0]), "none": torch.zeros(0)}
    assert unusable({**whole, "counts": torch.tensor([2**62])}.items()) is None
    for value in (float("nan"), float("-inf"), 1e19):
        worst = unusable({**whole, "c": torch.tensor([0.0, value])}.items())
        assert worst is not None and worst.startswith("c: ")


def test_a_configuration_far_larger_than_the_weights_is_refused_before_it_is_made(saved, tmp_path):
    folder = copied(saved, "whole", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"head_dim": 10**6}))
    with pytest.raises(UserError, match="more parameters than its weights can hold"):
        open_model(str(folder), "MODEL", dtype="float32", device="cpu")
