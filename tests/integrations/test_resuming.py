"""A run of the Trainer that was killed inside a save resumes from the newest whole checkpoint."""

import math
import shutil

import pytest
import torch
from transformers import DataCollatorForLanguageModeling, Trainer

from tests.integrations.conftest import TOKENIZER, arguments, tiny
from tests.integrations.test_transformers import same, steered
from vpretrain.language.feedback.checkers import CheckerFault
from vpretrain.method.feedback import EMAFeedback
from vpretrain.method.meta_step import MetaStep
from vpretrain.system.errors import NonFinite, UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory, feedback, stream):
    """A run of 4 steps, a checkpoint after each second."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = steered(folder, feedback, stream, max_steps=4, save_strategy="steps", save_steps=2)
    trainer.train()
    return folder, trainer


def removed(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (removed("trainer_state.json"), "trainer_state.json is not there or cut off"),
        (cut("model.safetensors"), "model.safetensors is not as it was written"),
        (lambda folder: shutil.rmtree(folder / "steering"), "manifest.json cannot be read"),
    ],
    ids=["no state", "half the weights", "no steering"],
)
def test_the_newest_whole_checkpoint_is_resumed(
    damage, said, trained, tmp_path, feedback, stream, caplog
):
    folder, whole = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoint-4")
    resumed = steered(tmp_path, feedback, stream, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert f"not whole: checkpoint-4 ({said}" in caplog.text
    assert "resuming from checkpoint-2" in caplog.text
    same(resumed.losses, whole.losses[2:])
    same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


@pytest.mark.parametrize("path", [True, "checkpoint-2"], ids=["newest", "named"])
def test_steering_begins_in_a_plain_checkpoint(path, tmp_path, feedback, stream, caplog):
    """The optimizer's moments and the schedule go on, and the designer begins."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    plain = Trainer(
        tiny(),
        arguments(tmp_path, max_steps=4, **saving),
        DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
        stream,
        processing_class=TOKENIZER,
    )
    plain.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    where = path if path is True else str(tmp_path / path)
    again = steered(tmp_path, feedback, stream, steering={"arm": "onehot"}, max_steps=4)
    again.train(resume_from_checkpoint=where)
    torch.testing.assert_close(dict(again.model.state_dict()), dict(plain.model.state_dict()))
    onward = steered(tmp_path, feedback, stream, steering={"meta_period": 8}, max_steps=4)
    onward.train(resume_from_checkpoint=where)
    assert "checkpoint-2 was made without steering: it begins here" in caplog.text
    assert len(onward.losses) == 2 and onward.steered_metrics["gain"] != 0


def test_steering_begins_in_a_checkpoint_of_onehot(tmp_path, feedback, stream, caplog):
    saving = {"save_strategy": "steps", "save_steps": 2}
    steered(tmp_path, feedback, stream, steering={"arm": "onehot"}, max_steps=2, **saving).train()
    onward = steered(tmp_path, feedback, stream, steering={"meta_period": 8}, max_steps=4)
    onward.train(resume_from_checkpoint=True)
    assert "checkpoint-2 is of onehot, which uses no feedback: steering begins" in caplog.text
    assert len(onward.losses) == 2 and onward.steered_metrics["gain"] != 0


def test_one_gradient_that_is_not_finite_costs_one_step(
    tmp_path, feedback, stream, monkeypatch, caplog
):
    """The plain loss takes its place, and the next step steers; without end it is an error."""
    ours, spoiled = EMAFeedback.gradients, [True]

    def gradients(self, learner):
        made = ours(self, learner)
        if spoiled and spoiled.pop():
            return [{name: part * math.nan for name, part in each.items()} for each in made]
        return made

    monkeypatch.setattr(EMAFeedback, "gradients", gradients)
    trainer = steered(tmp_path, feedback, stream, steering={"meta_period": 8}, max_steps=3)
    trainer.train()
    assert "no meta step on this batch" in caplog.text and "nan" in caplog.text
    assert all(map(math.isfinite, trainer.losses)) and math.isfinite(
        trainer.steered_metrics["gain"]
    )
    spoiled += [True] * 9
    with pytest.raises(NonFinite, match="nan"):
        steered(tmp_path, feedback, stream, max_steps=6).train()


def test_a_folder_that_was_trained_into_twice_is_whole(tmp_path, feedback, stream):
    """What the first run left is not taken for a part of the second."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    for rate in (1e-2, 1.2345e-3):
        again = steered(tmp_path, feedback, stream, max_steps=2, learning_rate=rate, **saving)
        again.train()
    left = tmp_path / "checkpoint-2" / "rng_state_7.pth"
    left.write_bytes(b"left by a run of more processes")
    resumed = steered(tmp_path, feedback, stream, max_steps=4, learning_rate=1.2345e-3)
    resumed.train(resume_from_checkpoint=True)
    assert len(resumed.losses) == 2


def test_a_meta_step_that_waits_is_taken_after_a_resume(
    tmp_path, feedback, stream, monkeypatch, caplog
):
    """A checker fails at the first step; the second is the one that learns, resumed or not."""
    ours, spoiled = MetaStep.__call__, [True]

    def once_spoiled(*given):
        if spoiled:
            spoiled.pop()
            raise CheckerFault("no reward")
        return ours(*given)

    monkeypatch.setattr(MetaStep, "__call__", once_spoiled)
    saving = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    rarely = {"meta_period": 8}
    whole = steered(tmp_path, feedback, stream, steering=rarely, **saving)
    whole.train()
    assert "the next one tries again" in caplog.text and whole.steered_metrics
    for step in (1, 2):
        resumed = steered(tmp_path, feedback, stream, steering=rarely, max_steps=3)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        same(resumed.losses, whole.losses[step:])
        assert resumed.steered_metrics.keys() == whole.steered_metrics.keys()


def test_a_trainer_that_trains_again_takes_its_meta_steps(tmp_path, feedback, stream, monkeypatch):
    """Also where it goes on from the step that it took last."""
    ours, taken = MetaStep.__call__, []
    monkeypatch.setattr(
        MetaStep, "__call__", lambda self, *given: (taken.append(1), ours(self, *given))[1]
    )
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = steered(tmp_path, feedback, stream, steering={"meta_period": 1}, **saving)
    trainer.train()
    assert len(taken) == 2
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert len(taken) == 3
    trainer.args.max_steps = 1
    for expected in (4, 5):
        trainer.train()
        assert len(taken) == expected


def test_feedback_looks_at_the_untouched_model_once_and_not_after_a_resume(
    tmp_path, feedback, stream, monkeypatch
):
    looked = []
    monkeypatch.setattr(EMAFeedback, "prepare", lambda self, learner: looked.append(learner))
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    steered(tmp_path, feedback, stream, steering={"start_step": 1}, **saving).train()
    assert len(looked) == 1
    resumed = steered(tmp_path, feedback, stream, steering={"start_step": 1}, max_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert len(looked) == 1


def test_none_that_is_whole_is_refused_in_words(trained, tmp_path, feedback, stream):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"(?s)no checkpoint here is whole.*checkpoint-4 .*-2 "):
        steered(tmp_path, feedback, stream).train(resume_from_checkpoint=True)
    for step in (2, 4):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    with pytest.raises(ValueError, match="No valid checkpoint"):  # the Trainer's own
        steered(tmp_path, feedback, stream).train(resume_from_checkpoint=True)


def test_half_of_the_first_save_is_no_reason_not_to_begin(
    trained, tmp_path, feedback, stream, caplog
):
    shutil.copytree(trained[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    again = steered(tmp_path, feedback, stream, max_steps=4)
    again.train(resume_from_checkpoint=True)
    assert "starting over" in caplog.text
    same(again.losses, trained[1].losses)


def test_other_feedback_than_the_checkpoint_was_steered_by_is_refused(
    trained, tmp_path, feedback, stream
):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    other = [*feedback[:-1], {**feedback[-1], "solution": "= 7"}]
    with pytest.raises(UserError, match=r"another feedback_dataset \(SHA-256 of its rows\)"):
        steered(tmp_path, other, stream, max_steps=5).train(resume_from_checkpoint=True)
