"""The same on TRL's SFTTrainer: its formats, packing and adapters stay what they are."""

import copy
import sys
from importlib import import_module

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from tests.integrations.conftest import TOKENIZER, arguments, tiny
from vpretrain.integrations.trl import SteeredSFTTrainer, Steering
from vpretrain.language.data import word_problems
from vpretrain.system.errors import UserError

CHAT = copy.deepcopy(TOKENIZER)
CHAT.chat_template = (
    "{% for m in messages %}{{ 'ann ' if m['role'] == 'user' else 'ben ' }}{{ m['content'] + "
    "' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ben ' }}{% endif %}"
)


def say(role, content):
    return {"role": role, "content": content}


FORMATS = {
    "text": lambda row: {"text": f"{row['problem']} {row['solution']} "},
    "completion": lambda row: {"prompt": row["problem"] + " ", "completion": row["solution"] + " "},
    "messages": lambda row: {
        "messages": [say("user", row["problem"]), say("assistant", row["solution"])]
    },
}


def rows(split, count, kind):
    return Dataset.from_list(
        [FORMATS[kind](row) for row in word_problems.problems(split, count, seed=0)]
    )


def made(
    folder,
    kind="text",
    *,
    trainer=SteeredSFTTrainer,
    feedback="completion",
    arm="token_weights",
    more=None,
    **args,
):
    steered = {}
    if trainer is SteeredSFTTrainer:
        # Unshrunk: on random weights the halves of a small feedback set may disagree, and rightly
        # close the designer.
        steering = Steering(arm=arm, feedback_batch_size=8, meta_period=2, shrink=False)
        steered = {"feedback_dataset": rows("feedback", 20, feedback), "steering": steering}
    torch.manual_seed(0)
    return trainer(
        tiny(),
        arguments(
            folder,
            SFTConfig,
            max_steps=3,
            max_length=64,
            bf16=False,
            gradient_checkpointing=False,
            **args,
        ),
        train_dataset=rows("stream", 24, kind),
        processing_class=copy.deepcopy(CHAT),
        **steered,
        **more or {},
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("kind", "more"),
    [("text", {}), ("completion", {}), ("messages", {"gradient_accumulation_steps": 2})],
)
def test_unsteered_it_is_the_sft_trainer(kind, more, tmp_path):
    logged = {"logging_strategy": "steps", "logging_steps": 1, **more}
    plain = made(tmp_path, kind, trainer=SFTTrainer, **logged)
    steered = made(tmp_path, kind, arm="onehot", **logged)
    for trainer in (plain, steered):
        trainer.train()
    assert losses(steered) == pytest.approx(losses(plain), rel=1e-4)
    torch.testing.assert_close(
        dict(steered.model.state_dict()), dict(plain.model.state_dict()), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("feedback", FORMATS)
def test_feedback_of_any_format_steers_packed_rows_through_adapters(feedback, tmp_path):
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = made(
        tmp_path, feedback=feedback, packing=True, more={"peft_config": lora}, padding_free=True
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert (
        trainer.steered_metrics["weight_spread"] > 0
        and trainer.steered_metrics["gradient_norm_downstream"] > 0
    )
    moved = {
        name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])
    }
    assert moved and all("lora_" in name for name in moved)


def test_its_own_losses_and_rows_that_are_trained_on_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"(?s)args.loss_type: .*got +dft"):
        made(tmp_path, loss_type="dft")
    shared = rows("feedback", 20, "messages")
    cut = {"packing": True, "packing_strategy": "wrapped"}  # anywhere
    for packing, found in (({}, "20"), (cut, r"\d")):
        args = {"max_length": 64, "bf16": False, "gradient_checkpointing": False, **packing}
        with pytest.raises(UserError, match=f"{found} of 20 rows are also in train_dataset"):
            SteeredSFTTrainer(
                tiny(),
                arguments(tmp_path, SFTConfig, **args),
                train_dataset=shared,
                processing_class=copy.deepcopy(CHAT),
                feedback_dataset=shared,
                steering=Steering(feedback_batch_size=8),
            )


@pytest.mark.parametrize("content", ["", "from vpretrain.integrations.trl import Steering"])
def test_a_file_that_hides_the_library_is_named(content, tmp_path, monkeypatch):
    """A script trl.py is found in place of TRL; one that imports us is imported a second time."""
    (tmp_path / "trl.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("trl", "vpretrain.integrations.trl"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"(?s)hides it; rename it.*trl\.py"):
        import_module("vpretrain.integrations.trl")
