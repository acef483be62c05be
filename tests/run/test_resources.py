import shutil
from types import SimpleNamespace

import pytest
import torch

from tests.reliability.runs import language_recipe, vision_recipe
from vpretrain.config.recipe import Checkpoint
from vpretrain.language import Language
from vpretrain.method.step import SteeredStep
from vpretrain.run import resources
from vpretrain.run.build import new_step
from vpretrain.run.checkpoint import CheckpointManager
from vpretrain.run.flops import rehearse
from vpretrain.run.launch import train_one
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.resources import (
    available_memory_bytes,
    kept_for_backward,
    memory_shortage,
    shortages,
)
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import Fault, UserError
from vpretrain.system.memory import out_of_memory


@pytest.fixture
def machine(monkeypatch):
    def machine(memory, disk):
        monkeypatch.setattr(resources, "available_memory_bytes", lambda: memory)
        monkeypatch.setattr(
            shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(disk, 0, disk)
        )

    return machine


KEPT = (
    3 * (400 + 800) + 400
)  # two checkpoints and a third in the making, of weights and two moments; and the model


def places(*arguments, **options):
    return [problem.where for problem in shortages(*arguments, **options)]


def test_a_model_that_just_fits_and_one_that_just_does_not(machine):
    model = torch.nn.Linear(9, 10, device="meta")  # 100 parameters
    machine(1600, KEPT)
    assert places(model) == []
    machine(1599, KEPT - 1)
    assert places(model) == ["memory", "disk"]
    model.bias.requires_grad_(False)  # neither gradient nor moments, and no checkpoint holds it
    machine(1480, KEPT - 3 * 3 * 40)
    assert places(model) == []
    machine(1479, KEPT - 3 * 3 * 40 - 1)
    assert places(model) == ["memory", "disk"]
    machine(None, KEPT)
    assert places(model) == [], "a system that does not say is not accused"


def test_frozen_halves_below_adapters_are_counted_as_they_are_stored(machine):
    model = torch.nn.Sequential(
        torch.nn.Linear(9, 10, dtype=torch.bfloat16), torch.nn.Linear(9, 10)
    )
    model[0].requires_grad_(False)
    machine(200 + 4 * 400, 10**6)
    assert places(model) == []
    machine(200 + 4 * 400 - 1, 10**6)
    assert places(model) == ["memory"]


def test_what_the_recipe_keeps_is_counted(machine):
    model = torch.nn.Linear(9, 10, device="meta")
    machine(10**6, KEPT + 3 * 1200)
    assert places(model, Checkpoint(keep_last=5)) == []
    assert places(model, Checkpoint(keep_last=6)) == ["disk"]
    machine(10**6, KEPT + 799)
    assert places(model, Checkpoint(keep_best="test/nll")) == ["disk"], (
        "the best so far and the one that takes its place"
    )
    machine(1600 + 1199, 10**6)
    assert places(model, Checkpoint(asynchronous=True)) == ["memory"], (
        "a copy of weights and moments"
    )
    machine(1600 + 399, 10**6)
    assert places(model, followers=1) == ["memory"], "the teacher"
    machine(1600 + 400, KEPT + 3 * 400)
    assert places(model, followers=1) == []
    machine(1600 + 400, KEPT + 3 * 400 - 1)
    assert places(model, followers=1) == ["disk"], "it is in every checkpoint"
    assert places(model) == []


def test_a_batch_that_can_fit_nowhere(machine):
    model = torch.nn.Linear(9, 10, device="meta")
    model.config = SimpleNamespace(hidden_size=8, num_hidden_layers=2)
    machine(1600 + 100 * 8 * 2 * 4, 10**6)
    assert places(model, tokens=100) == []
    assert places(model, tokens=101) == ["memory"]


def test_what_a_pass_keeps_is_counted_once_and_without_weights():
    """The rows, and what the first layer makes of them: the rectifier's output is kept by two."""
    layers = torch.nn.Linear(9, 10), torch.nn.ReLU(inplace=True), torch.nn.Linear(10, 5)
    model, rows = torch.nn.Sequential(*layers), torch.randn(4, 9)
    assert kept_for_backward(model, lambda: model(rows)) == 4 * (4 * 9 + 4 * 10)
    model.requires_grad_(False)
    assert kept_for_backward(model, lambda: model(rows)) == 0


def test_what_processes_share_out_is_counted_in_parts(machine, monkeypatch):
    model = torch.nn.Sequential(
        torch.nn.Linear(9, 10), torch.nn.Linear(9, 10)
    )  # 400 bytes each, 1600 with all that trains
    blocks = [model[0]]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    machine(1600 + 400, 10**6)
    assert memory_shortage(model, shared=blocks) == []
    machine(1600 + 399, 10**6)
    (problem,) = memory_shortage(model, shared=blocks)
    assert "each of 4 processes" in problem.value
    monkeypatch.setenv("WORLD_SIZE", "1000")
    machine(1601, 10**6)
    assert memory_shortage(model, shared=blocks) == []
    model[1].requires_grad_(False)
    machine(799, 10**6)
    assert memory_shortage(model, shared=blocks), "it is made whole before it is shared out"
    machine(800, 10**6)
    assert memory_shortage(model, shared=blocks) == []
    monkeypatch.delenv("RANK")
    assert memory_shortage(model, shared=blocks) == [], "how many there will be is not known here"
    assert places(model) == ["memory"]


def test_processes_divide_a_batch_and_the_memory_of_their_machine(machine, monkeypatch):
    model = torch.nn.Linear(9, 10, device="meta")
    model.config = SimpleNamespace(hidden_size=8, num_hidden_layers=2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    machine(1600 + 50 * 8 * 2 * 4, 10**6)
    assert places(model, tokens=100) == []
    assert places(model, tokens=102) == ["memory"]
    machine(1600 + 600, 10**6)
    assert places(model, Checkpoint(asynchronous=True)) == [], "one of them writes"


def test_a_results_folder_that_is_not_there_yet(machine, tmp_path):
    machine(10**6, 0)
    (problem,) = shortages(torch.nn.Linear(2, 2), Checkpoint(), tmp_path / "not" / "yet")
    assert str(tmp_path) in problem.value and "keep_last" in problem.message


def test_available_memory(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemAvailable:       7 kB\n")
    monkeypatch.setattr(resources, "_MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert available_memory_bytes() == 7168
    with monkeypatch.context() as launched:
        launched.setenv("LOCAL_WORLD_SIZE", "2")
        assert available_memory_bytes() == 3584, "there is another process here"
    monkeypatch.setattr(resources, "_MEMORY_INFO", tmp_path / "none")
    assert available_memory_bytes() is None


def test_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError()) and out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes do not match"))


MESSAGES = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
]


@pytest.mark.parametrize("error", MESSAGES)
def test_memory_that_runs_out_names_the_keys_to_lower_and_the_run_goes_on_later(
    tmp_path, monkeypatch, error
):
    recipe = language_recipe("arm=onehot", "checkpoint.every=1", "budget.steps=3")
    with monkeypatch.context() as patch:
        take = SteeredStep.take

        def fails_after_the_first(step, *arguments, **options):
            if (tmp_path / "checkpoints" / "step-0000001").is_dir():
                raise error
            return take(step, *arguments, **options)

        patch.setattr(SteeredStep, "take", fails_after_the_first)
        with pytest.raises(Fault) as caught:
            train_one(recipe, tmp_path, lambda record, fraction: None)
    said = str(caught.value)
    for key, value in {
        "data.batch_size": 4,
        "data.window_tokens": 96,
        "data.feedback.batch_size": 16,
    }.items():
        assert f"{key} (now {value})" in said
    assert "learner.prepare" not in said
    lines = []
    assert (
        train_one(recipe, tmp_path, lambda record, fraction: None, notify=lines.append)["steps"]
        == 3
    )
    assert lines == ["going on after step 1"]


def test_a_disk_that_is_too_small_is_told_before_the_first_step(tmp_path, machine):
    machine(None, 1000)
    with pytest.raises(UserError, match="disk"):
        train_one(language_recipe("arm=onehot"), tmp_path / "run", lambda record, fraction: None)
    assert not (tmp_path / "run").exists()


def test_check_counts_a_part_of_what_is_shared_out(machine):
    machine(
        250_000, 10**12
    )  # 296,832 bytes are too many; 74,496 of them are those of the block below S
    result = {
        shard: Language().check(language_recipe("arm=onehot", f"learner.shard={shard}")).problems
        for shard in (False, True)
    }
    assert {
        shard: [problem.where for problem in problems] for shard, problems in result.items()
    } == {
        False: ["memory"],
        True: [],
    }


def test_memory_that_is_too_small_is_told_before_the_model_is_made(tmp_path, machine):
    machine(1000, 10**12)
    with pytest.raises(UserError, match="memory"):
        train_one(language_recipe("arm=onehot"), tmp_path / "run", lambda record, fraction: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["arm=onehot"],
        ["arm=onehot", "learner.lora={r: 2}"],
        ["arm=token_weights"],
        ["arm=token_weights", "learner.lora={r: 2}", "value.memory=0"],
        ["arm=ascent"],
        ["arm=document_weights", "data.feedback.batches=4"],
        ["arm=rho1"],
        ["modality=vision", "arm=ascent"],
    ],
    ids=" ".join,
)
def test_the_size_of_a_checkpoint_is_known_before_the_first_step(tmp_path, overrides):
    make = language_recipe
    if overrides[0] == "modality=vision":
        make, overrides = vision_recipe, overrides[1:]
    recipe = make(*overrides, "budget.steps=4", "value.meta_period=2")
    modality = MODALITIES[recipe.modality]()
    parts = modality.build(recipe, modality.load(recipe))
    expected = rehearse(new_step(recipe, parts), parts).checkpoint_bytes
    checkpoints = CheckpointManager(tmp_path)
    train(Run(recipe, parts, step0={}, checkpoints=checkpoints))
    (step,) = checkpoints.steps()
    written = sum(path.stat().st_size for path in checkpoints.path(step).iterdir())
    assert 0.9 <= expected / written <= 1.1, (expected, written)
