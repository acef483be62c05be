"""Models from configurations, folders and the hub: the same weights in every dtype, and refusals
said in words.
"""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils import logging

from tests.language.conftest import CONFIGS
from tests.run.test_train import tiny_recipe
from vpretrain.language import Language
from vpretrain.language.data import word_problems
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.loading import load_model, new_model
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.language.recipe.learner import LearnerSection
from vpretrain.models import loading
from vpretrain.models.loading import named
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import UserError


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
    ("change", "where", "description"),
    [
        ({"model_type": "lama"}, "learner.config.model_type", "did you mean llama?"),
        ({"hidden_sise": 8}, "learner.config.hidden_sise", "did you mean hidden_size?"),
        ({"hidden_size": "8"}, "learner.config", "hidden_size"),
        ({"hidden_size": 33}, "learner.config", "33"),
        ({"vocab_size": -5}, "learner.config", "-5"),
    ],
)
def test_a_configuration_that_makes_no_model(change, where, description):
    with pytest.raises(UserError) as caught:
        made(CONFIGS["llama"] | change)
    (problem,) = caught.value.problems
    assert problem.where == where
    assert description in problem.message


def test_weights_that_nobody_reads_bring_no_report_to_the_screen(tmp_path, capfd, caplog):
    made(CONFIGS["llama"]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "value_head.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    capfd.readouterr()
    load_model(LearnerSection(model=str(tmp_path)), str(tmp_path), 0)
    assert "REPORT" not in "".join(capfd.readouterr()) + caplog.text
    verbosity = logging.get_verbosity()
    assert verbosity == logging.WARNING, "and what transformers says elsewhere is still said"


def test_old_and_mapped_keys_are_keys():
    made(CONFIGS["llama"] | {"rope_theta": 5e5})
    made(
        {
            "model_type": "gpt2",
            "vocab_size": 40,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "n_head": 4,
        }
    )


def test_names(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named("~/model") == str(tmp_path / "model")
    assert named("Qwen/Qwen2-0.5B") == "Qwen/Qwen2-0.5B"


def section(model, **keys):
    return LearnerSection(model=str(model), **keys)


@pytest.fixture
def folder(tmp_path):
    """A whole model folder with the generator's tokenizer."""
    tokenizer = word_problems.tokenizer()
    made(CONFIGS["llama"] | {"vocab_size": len(tokenizer)}).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def problem_of(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    (problem,) = caught.value.problems
    return problem


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    result = problem_of(load_model, section(folder), str(folder), 0)
    assert result.where == "learner.model" and "no config.json" in result.message
    assert "model.safetensors" in result.message  # what it does hold


@pytest.mark.parametrize("target", ["nowhere", "model.safetensors"], ids=["nowhere", "circle"])
def test_weights_that_are_a_link_to_nothing(target, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(target)
    result = problem_of(load_model, section(folder), str(folder), 0)
    assert "links in this folder lead nowhere: model.safetensors" in result.message


@pytest.mark.parametrize("inside", [lambda config: config, lambda config: {"text_config": config}])
def test_a_folder_whose_model_nobody_could_make_is_refused_at_once(inside, folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | inside({"num_hidden_layers": 10**9})))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"config\.json\..*num_hidden_layers: no model of so many"):
        load_model(LearnerSection(model=str(folder)), str(folder), 0)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("place", ["nothing", "no/such/folder", "../nothing"])
def test_a_name_that_is_nowhere_fails_at_once(place, monkeypatch):
    """Loaders would ask the hub again and again for most of a minute; here it is asked once."""
    asked = []

    def no_network(self, name, timeout):
        asked.append((name, timeout))
        raise ConnectionError("no network")

    monkeypatch.setattr(loading.HfApi, "model_info", no_network)
    loading.reach.cache_clear()
    started = time.monotonic()
    result = problem_of(load_model, section(place), place, 0)
    assert time.monotonic() - started < 5
    assert "there is no such folder" in result.message and result.value == place
    assert asked == ([("nothing", loading.HUB_SECONDS)] if place == "nothing" else [])


def test_a_cached_hub_model_needs_no_network(folder, monkeypatch):
    def no_network(self, name, timeout):
        raise ConnectionError("no network")

    monkeypatch.setattr(loading.HfApi, "model_info", no_network)
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda name, file: str(folder / file))
    loading.reach.cache_clear()
    assert loading.reach("owner/model") == {"local_files_only": True}
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda name, file: None)
    loading.reach.cache_clear()
    with pytest.raises(ConnectionError):
        loading.reach("owner/model")
    loading.reach.cache_clear()


def recipe_of(folder, *overrides):
    return tiny_recipe(
        "learner.config=null", f"learner.model={folder}", "evaluate.answer=null", *overrides
    )


def test_a_tokenizer_without_end_token(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if "eos" not in k})
    )
    result = problem_of(Language().load, recipe_of(folder))
    assert "end token" in result.message


def test_a_tokenizer_without_pad_token_trains(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if "pad" not in k})
    )
    recipe = recipe_of(folder, "arm=onehot", "budget.steps=1", "value.settle_steps=0")
    materials = Language().load(recipe)
    assert (
        materials.tokenizer.pad_token_id is None
        and materials.pad_id == materials.tokenizer.eos_token_id
    )
    assert train(Run(recipe, Language().build(recipe, materials))).spent.steps == 1


def test_a_vocabulary_smaller_than_the_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<more>"])
    tokenizer.save_pretrained(folder)
    recipe = recipe_of(folder)
    result = problem_of(Language().build, recipe, Language().load(recipe))
    assert (
        result.where == "learner.model"
        and "more tokens than the model's vocabulary" in result.message
    )


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_dtype_that_does_not_train(folder, dtype):
    result = problem_of(recipe_of, folder, f"learner.dtype={dtype}")
    assert result.where.endswith("learner.dtype") or "learner.dtype" in result.where
    assert "bfloat16" in result.accepted


def test_check_tells_a_lora_target_that_matches_nothing_before_any_weight_is_loaded(folder):
    problems = Language().check(recipe_of(folder, "learner.lora={targets: [query]}")).problems
    (result,) = [problem for problem in problems if problem.where == "learner.lora.targets"]
    assert "q_proj" in result.accepted
    assert (
        not Language()
        .check(recipe_of(folder, "learner.lora={r: 2}", "learner.activation_checkpointing=true"))
        .problems
    )


def test_an_adapter_of_random_weights_alone_is_refused():
    with pytest.raises(UserError, match=r"learner\.lora\.merge"):
        tiny_recipe("learner.lora={merge: false}")


def test_sizes_that_can_be_built_and_cannot_run_are_refused():
    """More key heads than heads: transformers builds it, and its first forward pass fails."""
    model = made({**CONFIGS["llama"], "num_key_value_heads": 8})
    anatomy = Anatomy.of(model)
    with pytest.raises(UserError, match="cannot run"):
        CausalLearner(model, aligned_parameters(model, anatomy, blocks=1, patterns=[]))
