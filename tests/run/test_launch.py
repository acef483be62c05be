"""What a launch refuses before anything runs."""

import errno
import json
import shutil

import pytest

from tests.reliability.runs import language_recipe
from vpretrain.language import Language
from vpretrain.run import checkpoint
from vpretrain.run.launch import train_one
from vpretrain.system.errors import Fault, UserError


def test_a_finished_run_whose_model_is_not_as_it_was_is_finished_again(tmp_path, caplog):
    """From its last checkpoint, bit for bit, whatever became of records and result."""
    recipe = language_recipe("arm=onehot", "checkpoint.every=1", "budget.steps=2")
    lines = []

    def again():
        lines.clear()
        return train_one(recipe, tmp_path, lambda record, fraction: None, notify=lines.append)

    result = again()
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    (tmp_path / "checkpoints" / "step-9.bak").mkdir()
    (tmp_path / "checkpoints" / ".step-0000009.partial").mkdir()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (tmp_path / "metrics.jsonl").write_bytes(bytes(100))
    assert again()["final"] == result["final"] and weights.read_bytes() == whole
    assert lines[0].startswith("model.safetensors is not as it was written; it is written again")
    assert "of 2 records 0 can be read" in caplog.text
    assert not (tmp_path / "checkpoints" / ".step-0000009.partial").exists()
    (tmp_path / "model" / "README.md").write_text("My own words.")
    assert again() == json.loads((tmp_path / "result.json").read_text())
    assert lines == ["this run is finished; nothing was done"]
    (tmp_path / "result.json").write_text("{")
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"result\.json is not whole, and there is no checkpoint"):
        again()


def test_a_finished_run_that_is_damaged_everywhere_is_refused_and_not_trained_again(tmp_path):
    recipe = language_recipe("arm=onehot", "budget.steps=2")
    train_one(recipe, tmp_path, lambda record, fraction: None)
    (tmp_path / "model" / "config.json").write_text("{}")
    (state,) = (tmp_path / "checkpoints").glob("step-*/state.json")
    state.write_text("{}")
    result = (tmp_path / "result.json").read_bytes()
    for damage in ("every checkpoint is damaged", "there is no checkpoint"):  # it is set aside
        with pytest.raises(UserError, match=f"{damage} to write it from; put it back, or remove"):
            train_one(recipe, tmp_path, lambda record, fraction: None)
        assert (tmp_path / "result.json").read_bytes() == result
        assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_after_a_damaged_log_every_resume_keeps_the_records_before_its_checkpoint(tmp_path, caplog):
    recipe = language_recipe(
        "arm=onehot", "checkpoint.every=1", "checkpoint.keep_last=9", "budget.steps=4"
    )

    def resumed(after):
        (tmp_path / "result.json").unlink()
        for step in range(after + 1, 5):
            shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:07d}")
        train_one(recipe, tmp_path, lambda record, fraction: None)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]

    train_one(recipe, tmp_path, lambda record, fraction: None)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    assert resumed(2) == [1, 3, 4] and "of 2 records 1 can be read" in caplog.text
    caplog.clear()
    assert resumed(3) == [1, 3, 4] and "can be read" not in caplog.text


def test_a_picture_that_cannot_be_drawn_leaves_the_run_finished(tmp_path, monkeypatch, caplog):
    def draw(self, recipe, materials, parts, folder):
        raise MemoryError("too many pictures")

    monkeypatch.setattr(Language, "draw", draw)
    recipe = language_recipe("arm=onehot", "budget.steps=2")
    result = train_one(recipe, tmp_path, lambda record, fraction: None)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert "a picture could not be drawn: too many pictures" in caplog.text


def test_a_run_that_could_keep_no_checkpoint_says_so_with_its_exit_code(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    recipe = language_recipe("arm=onehot", "checkpoint.every=1", "budget.steps=2")
    with pytest.raises(Fault, match="no checkpoint could be kept: No space left on device"):
        train_one(recipe, tmp_path, lambda record, fraction: None)
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 2


def test_data_that_changed_under_a_run_are_refused_with_both_hashes(tmp_path):
    recipe = language_recipe("arm=onehot", "checkpoint.every=1", "budget.steps=2")
    train_one(recipe, tmp_path, lambda record, fraction: None)
    (tmp_path / "result.json").unlink()
    shutil.rmtree(tmp_path / "model")
    environment = tmp_path / "environment.json"
    saved = json.loads(environment.read_text())
    name = next(iter(saved["data_hashes"]))
    mine, saved["data_hashes"][name] = saved["data_hashes"][name], "0" * 64
    environment.write_text(json.dumps(saved))
    with pytest.raises(UserError) as caught:
        train_one(recipe, tmp_path, lambda record, fraction: None)
    message = str(caught.value)
    assert name in message and mine[:16] in message and "0" * 16 in message
    assert "--accept-changes" in message and not (tmp_path / "model").exists()
    result = train_one(recipe, tmp_path, lambda record, fraction: None, accept_changes=True)
    assert result["changes"] == [
        {"what": f"data of {name}", "before": "0" * 16, "now": mine[:16]}
    ], "what was accepted is named in the result"
    assert json.loads((tmp_path / "result.json").read_text())["changes"] == result["changes"]
    assert (tmp_path / "model" / "config.json").is_file()
    assert json.loads(environment.read_text())["data_hashes"][name] == mine
