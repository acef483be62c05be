"""A checkpoint is there whole or not at all, and a damaged one is never loaded."""

import errno
import json
import logging
import math
import random
import subprocess

import pytest
import torch
from safetensors import SafetensorError

from vpretrain.run import checkpoint
from vpretrain.run.checkpoint import CheckpointManager, Damaged, load, save
from vpretrain.run.scores import Score


def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "model": {
            "a.b/c": torch.randn(3, 4, generator=generator),
            "half": torch.ones(2, dtype=torch.bfloat16),
        },
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}, 1: {}},
            "groups": [{"betas": (0.9, 0.999), "lr": 1e-3}],
        },
        "nothing": None,
        "truth": True,
        "odd": [float("inf"), -0.0, "ü\n", 2**70],
        "empty": {},
        "none": torch.zeros(0),
        "bits": torch.get_rng_state(),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return (
        type(a) is type(b)
        and a == b
        and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))
    )


def test_what_is_loaded_is_what_was_saved(tmp_path):
    save(state(), tmp_path / "x")
    assert same(load(tmp_path / "x"), state())


def test_a_state_without_tensors(tmp_path):
    save({"steps": 3}, tmp_path / "x")
    assert load(tmp_path / "x") == {"steps": 3}


def test_tied_weights_are_written_once_and_come_back_at_both_places(tmp_path):
    weight = torch.randn(100)
    save(
        {"embedding": weight, "head": weight, "half": weight[:50], "none": weight[:0]},
        tmp_path / "x",
    )
    result = load(tmp_path / "x")
    assert torch.equal(result["embedding"], weight) and torch.equal(result["head"], weight)
    assert torch.equal(result["half"], weight[:50]) and result["none"].shape == (0,)


def test_what_cannot_be_read_back_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(TypeError, match=r"/a/0: .* set"):
        save({"a": [{1, 2}]}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_every_truncation_and_every_flipped_bit_is_found(tmp_path):
    folder = tmp_path / "x"
    save(state(), folder)
    rng = random.Random(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        cuts = range(len(whole)) if len(whole) < 3000 else rng.sample(range(len(whole)), 300)
        damages = [whole[:cut] for cut in cuts]
        for _ in range(200):
            at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
            damages.append(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        for damage in damages:
            path.write_bytes(damage)
            with pytest.raises(Damaged):
                load(folder)
        path.unlink()
        with pytest.raises(Damaged):
            load(folder)
        path.write_bytes(whole)
    assert same(load(folder), state())


def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_is_taken(tmp_path, caplog):
    checkpoints = CheckpointManager(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step})
    (tmp_path / "step-0000003/state.json").write_bytes(b"{}")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest() == (2, {"step": 2})
    assert "step-0000003" in caplog.text and (tmp_path / "damaged-step-0000003").is_dir()
    assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_only_the_last_ones_are_kept_and_no_later_change_gets_in(tmp_path, asynchronous):
    checkpoints, weights = (
        CheckpointManager(tmp_path, keep_last=2, asynchronous=asynchronous),
        torch.zeros(1000),
    )
    for step in range(1, 6):
        checkpoints.save(step, {"weights": weights})
        if asynchronous:
            weights += 1  # the run goes on while the file is written
        else:
            weights = weights + 1
    assert checkpoints.newest()[0] == 5 and checkpoints.steps() == [4, 5]
    assert float(checkpoints.newest()[1]["weights"][0]) == 4


def test_a_full_disk_costs_that_checkpoint_and_nothing_else(tmp_path, monkeypatch, caplog):
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.save(1, {"x": torch.ones(3)})

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_manifest", full)
    with caplog.at_level(logging.WARNING):
        checkpoints.save(2, {"x": torch.ones(3)})
    assert "No space left" in caplog.text and checkpoints.steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    monkeypatch.undo()
    assert checkpoints.newest()[0] == 1


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")]
)
def test_a_full_disk_costs_the_best_model_and_nothing_else(tmp_path, caplog, error):
    def loss(value):
        return {"nll": Score(value, 0.0, 1, higher_is_better=False)}

    def full(folder):
        (folder / "half").touch()
        raise error

    checkpoints = CheckpointManager(tmp_path)
    assert checkpoints.keep_best("nll", loss(2.0), None, full) is None
    assert not list(tmp_path.iterdir())
    assert checkpoints.keep_best("nll", loss(2.0), None, lambda folder: None) == 2.0
    with caplog.at_level(logging.WARNING):
        assert checkpoints.keep_best("nll", loss(1.0), 2.0, full) == 2.0, (
            "the next one that beats it is tried"
        )
    assert "No space left" in caplog.text
    assert [path.name for path in tmp_path.rglob("*")] == ["best", "scores.json"]


@pytest.mark.parametrize("higher", [False, True])
def test_a_score_that_is_no_number_is_never_the_best(tmp_path, caplog, higher):
    checkpoints, best, kept = CheckpointManager(tmp_path), None, []
    scores = [math.nan, 2.0, math.nan, 1.0 + 2 * higher, math.inf, math.nan]
    for value in scores:
        scored = {"score": Score(value, 0.0, 1, higher_is_better=higher)}
        best = checkpoints.keep_best("score", scored, best, lambda folder: kept.append(folder))
    assert best == scores[3] and len(kept) == 2
    assert json.loads((tmp_path / "best/scores.json").read_text()) == {"score": scores[3]}
    assert "score is nan" in caplog.text


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one mebibyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk takes rights that this user does not have")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(small_disk, caplog):
    checkpoints = CheckpointManager(small_disk / "checkpoints", keep_last=9)
    piece = {"x": torch.randn(60_000)}  # 240 kB
    with caplog.at_level(logging.WARNING):
        for step in range(1, 7):
            checkpoints.save(step, piece)
    whole = checkpoints.steps()
    assert 1 <= len(whole) < 6 and "No space left" in caplog.text
    assert all(torch.equal(load(checkpoints.path(step))["x"], piece["x"]) for step in whole)
    assert sorted(path.name for path in (small_disk / "checkpoints").iterdir()) == [
        f"step-{s:07d}" for s in whole
    ]


def test_a_leftover_of_a_killed_save_is_no_checkpoint(tmp_path):
    (tmp_path / ".step-0000004.partial").mkdir()
    checkpoints = CheckpointManager(tmp_path)
    assert checkpoints.newest() is None
    checkpoints.save(4, {"a": 1})
    assert checkpoints.newest() == (4, {"a": 1})


def test_nothing_is_ever_unpickled(tmp_path, monkeypatch):
    save(state(), tmp_path / "x")

    def refuse(*args, **options):
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.Unpickler", refuse)
    load(tmp_path / "x")
