"""What a launch refuses before anything runs."""

import errno
import gc
import io
import json
import os
import shutil
import signal
import weakref

import pytest
import torch

from tests.reliability.runs import language_recipe
from vpretrain.language import Language
from vpretrain.run import checkpoint, launch
from vpretrain.run.checkpoint import CheckpointManager
from vpretrain.run.finished_run import designer_state
from vpretrain.run.launch import FINISHED, finished_result, train_one
from vpretrain.run.run import Run
from vpretrain.run.scores import Score
from vpretrain.run.train import train
from vpretrain.studies import compare
from vpretrain.studies.run_files import checkpoints_path
from vpretrain.system.errors import Fault, Stopped, UserError
from vpretrain.system.files import write_json

RESULT = {
    "arm": "onehot",
    "steps": 2,
    "tokens_or_images": 9,
    "seconds": 1.0,
    "step0": {"test/nll": 2.0},
    "final": {"test/nll": 1.0},
}


class Enough(Exception):
    """Nothing more is to be seen."""


class Watched(dict):
    """A state whose end can be seen."""


@pytest.fixture
def held(monkeypatch):
    """Whether a run that goes on still holds its checkpoint while it trains; nothing is trained."""
    newest, states, seen = CheckpointManager.newest, [], []

    def watched(checkpoints):
        result = newest(checkpoints)
        if result is None:
            return None
        state = Watched(result[1])
        states.append(weakref.ref(state))
        return result[0], state

    def begins(run):
        if not states:
            return train(run)
        run.start()
        gc.collect()
        seen.append(any(state() is not None for state in states))
        raise Enough

    monkeypatch.setattr(CheckpointManager, "newest", watched)
    monkeypatch.setattr(launch, "train", begins)
    monkeypatch.setattr(compare, "train", begins)
    return seen


def test_a_checkpoint_that_a_run_went_on_from_is_let_go_of(held, tmp_path):
    recipe = language_recipe("arm=onehot", "checkpoint.every=1", "budget.steps=2")
    train_one(recipe, tmp_path / "run", lambda record, fraction: None)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(Enough):
        train_one(recipe, tmp_path / "run", lambda record, fraction: None)
    place = checkpoints_path(tmp_path / "arms", "onehot", recipe.seed)
    shutil.copytree(tmp_path / "run" / "checkpoints", place)
    with pytest.raises(Enough):
        compare.compare(recipe, arms=["onehot"], seeds=1, match="steps", out=tmp_path / "arms")
    assert held == [False, False]


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
    results = json.loads((tmp_path / "result.json").read_text())
    assert again() == results
    assert lines == [FINISHED]
    write_json(tmp_path / "result.json", results | {"run_dir": "where it was before"})
    assert again()["run_dir"] == str(tmp_path)
    weights.unlink()
    weights.mkdir()
    manifest = tmp_path / "model.manifest.json"
    manifest.unlink()
    manifest.symlink_to(manifest.name)  # in a circle: what is written takes its place
    (tmp_path / "model" / "notes").mkdir()
    assert again()["final"] == result["final"] and weights.read_bytes() == whole
    assert (tmp_path / "model" / "notes").is_dir()
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
        with pytest.raises(UserError, match=rf"{damage}\. Restore the file, or delete result"):
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


def test_changes_that_a_checkpoint_cannot_go_on_under_leave_the_folder_as_it_was(tmp_path):
    """Accepted or not: the feedback's position is that of other batches."""
    recipe = language_recipe("arm=token_weights", "budget.steps=2")
    first = train_one(recipe, tmp_path, lambda record, fraction: None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = language_recipe("arm=token_weights", "budget.steps=3", "data.feedback.batch_size=3")
    with pytest.raises(UserError, match="batch_size: not as in the checkpoint"):
        train_one(other, tmp_path, lambda record, fraction: None, accept_changes=True)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before
    assert train_one(recipe, tmp_path, lambda record, fraction: None) == first


def test_a_designer_that_is_gone_is_written_again(tmp_path):
    recipe = language_recipe("arm=token_weights", "budget.steps=2")
    first = train_one(recipe, tmp_path, lambda record, fraction: None)
    state = tmp_path / "designer" / "state.pt"
    whole = state.read_bytes()
    for damage in (state.unlink, lambda: state.write_bytes(whole[:-9])):
        damage()
        train_one(recipe, tmp_path, lambda record, fraction: None)
        assert designer_state(tmp_path).keys() == torch.load(io.BytesIO(whole)).keys()
    state.unlink()
    shutil.rmtree(tmp_path / "checkpoints")  # nothing to write it from, and the result stands
    assert train_one(recipe, tmp_path, lambda record, fraction: None)["final"] == first["final"]


def test_a_signal_on_a_full_disk_is_no_stop_to_go_on_from(tmp_path, monkeypatch):
    def full(state, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupted(record, fraction):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save", full)
    recipe = language_recipe("arm=onehot", "budget.steps=4")
    with pytest.raises(
        Fault,
        match="No space left on device; make room, and the same command goes on from the beginning",
    ):
        train_one(recipe, tmp_path, interrupted)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "[" * 100_000, '{"final": {}}']
    + [json.dumps(RESULT | wrong) for wrong in ({"seconds": "x"}, {"final": []}, {"final": {}})],
)
def test_a_result_that_is_none_is_noticed(content, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "result.json").write_text(content)
    (tmp_path / "checkpoints" / "step-0000002").mkdir(parents=True)
    lines = []
    assert finished_result(tmp_path, lines.append) is None
    assert lines[0].endswith("it is written again from the last checkpoint")
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "designer").mkdir()
    torch.save({}, tmp_path / "designer" / "state.pt")
    assert finished_result(tmp_path, lines.append) == RESULT


def test_a_checkpoint_with_weights_that_are_not_finite_gives_way_to_the_one_before(
    tmp_path, caplog
):
    recipe = language_recipe("arm=onehot", "checkpoint.every=1", "budget.steps=3")
    result = train_one(recipe, tmp_path, lambda record, fraction: None)
    (tmp_path / "result.json").unlink()
    newest = tmp_path / "checkpoints" / "step-0000003"
    state = checkpoint.load(newest)
    next(iter(state["model"].values())).view(-1)[0] = float("nan")
    checkpoint.save(state, newest)
    lines = []
    again = train_one(recipe, tmp_path, lambda record, fraction: None, notify=lines.append)
    assert lines == ["going on after step 2"] and again["final"] == result["final"]
    assert "step-0000003 is damaged (a weight is not finite" in caplog.text


def test_a_checkpoint_of_another_model_is_refused_in_words(tmp_path):
    recipe = language_recipe("arm=onehot", "budget.steps=1")
    train_one(recipe, tmp_path / "a", lambda record, fraction: None)
    other = language_recipe("arm=onehot", "budget.steps=1", "learner.lora={r: 2}")
    train_one(other, tmp_path / "b", lambda record, fraction: None)
    (tmp_path / "a" / "result.json").unlink()
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    shutil.copytree(tmp_path / "b" / "checkpoints", tmp_path / "a" / "checkpoints")
    with pytest.raises(UserError, match="--out: the newest checkpoint is not of a run of this"):
        train_one(recipe, tmp_path / "a", lambda record, fraction: None)


def test_a_model_whose_scores_are_not_finite_is_told_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "vpretrain.language.modality.evaluate",
        lambda *given: {"test/nll": Score(float("nan"), 0.0, 1, higher_is_better=False)},
    )
    recipe, steps = language_recipe("arm=onehot", "budget.steps=1"), []
    with pytest.raises(Fault, match="before the first step test/nll is not finite; the model's"):
        train_one(recipe, tmp_path, lambda record, fraction: steps.append(record))
    assert not steps


@pytest.mark.parametrize("when", ["evaluate", "settle"])
def test_a_signal_before_the_first_step_ends_the_run_at_once(when, tmp_path, monkeypatch):
    """A scheduler kills what does not end within some seconds, and step 0 and settling take long."""
    recipe, seen = language_recipe("arm=onehot", "budget.steps=1", "value.settle_steps=9"), []

    def killed(*given):
        seen.append(given)
        os.kill(os.getpid(), signal.SIGTERM)
        return {"test/nll": Score(1.0, 0.0, 1, higher_is_better=False)}

    with monkeypatch.context() as patched:
        if when == "evaluate":
            patched.setattr("vpretrain.language.modality.evaluate", killed)
        else:
            step = Run._step
            patched.setattr(Run, "_step", lambda run, *given: (killed(), step(run, *given))[1])
        with pytest.raises(Stopped, match="SIGTERM after step 0; the same command"):
            train_one(recipe, tmp_path, lambda record, fraction: None)
    assert len(seen) == 1
    assert train_one(recipe, tmp_path, lambda record, fraction: None)["steps"] == 1
