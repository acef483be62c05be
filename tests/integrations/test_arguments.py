"""What cannot work with steering is said when the trainer is made, in one list, with what to do."""

import importlib
import sys

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.utils.data import IterableDataset
from transformers import DataCollatorForLanguageModeling

from tests.integrations.conftest import TOKENIZER, arguments, tiny
from vpretrain.integrations.arguments import problems_of
from vpretrain.integrations.transformers import SteeredTrainer, Steering
from vpretrain.language.steering.rules import TokenWeightsArm
from vpretrain.system.errors import UserError


def made(
    folder, feedback, stream, *, kind=SteeredTrainer, model=None, steering=None, more=None, **args
):
    return kind(
        tiny() if model is None else model,
        arguments(folder, **args),
        train_dataset=stream,
        processing_class=TOKENIZER,
        feedback_dataset=feedback,
        steering=Steering(**{"feedback_batch_size": 8} | (steering or {})),
        **more or {},
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"arm": "token_weight"},
            r"Steering arm: .* did you mean token_weights\?\n +got +token_weight\n +accepted "
            r"+onehot",
        ),
        ({"arm": "feedback_sft"}, "Steering arm: there is no such arm beside a trainer"),
        ({"settle_steps": 4}, "Steering settle_steps.*warm-up"),
        ({"feedback_batches": 1}, "Steering feedback_batches.*two or more, or set shrink to False"),
        ({"meta_perod": 4}, r"there is no such key; did you mean meta_period\?"),
        (
            {"estimator": "forward"},
            "Steering estimator.*accepted +one of one_sided_difference, central_difference",
        ),
        ({"aligned_blocks": 0}, "Steering aligned_blocks"),
        (
            {"arm": "field", "designer": {"kind": "token_weights", "tilt": 0.6}},
            "Steering designer: the designer of the arm field is field",
        ),
        ({"arm": "onehot", "tillt": 0.6}, "Steering tillt: there is no such key"),
        ({"designer": 3}, "Steering designer: .*kind of value"),
        ({"arm": "ascent", "gate_max": 1.5}, "Steering gate_max: this value is out of range"),
        ({"gate_max": 0.2}, "Steering gate_max: this is a key of the kind closed_form or"),
        ({"arm": "random_feedback", "kind": "fild"}, r"Steering kind: .*did you mean field\?"),
    ],
)
def test_a_key_of_steering_is_named_with_what_it_takes(keys, said):
    with pytest.raises(UserError, match=f"(?s){said}"):
        Steering(**keys)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"tilt": 0.6}, "document_weights"),
        ({"arm": "token_weights", "tilt": 0.6}, "token_weights"),
        ({"designer": {"tilt": 0.6}}, "document_weights"),
        ({"arm": "document_weights", "designer": {"tilt": 0.6}}, "document_weights"),
        ({"designer": {"kind": "document_weights", "tilt": 0.6}}, "document_weights"),
    ],
)
def test_the_designers_keys_stand_beside_the_others_or_in_a_section(keys, kind):
    steering = Steering(**keys)
    assert (steering.arm, steering.designer.kind, steering.designer.tilt) == (kind, kind, 0.6)


@pytest.mark.parametrize(
    "keys", [{"tilt": 0.6}, {"designer": {"tilt": 0.6}}, {"designer": TokenWeightsArm(tilt=0.6)}]
)
def test_the_baseline_leaves_the_keys_of_arms_that_steer_aside(keys):
    """``make(arm, seed)`` of a comparison gives all arms the same."""
    assert Steering(arm="onehot", **keys).designer.kind == "onehot"
    smoothed = (
        Steering(arm="uniform_smoothing", control_gate=0.2, **keys) if "tilt" in keys else None
    )
    assert smoothed is None or smoothed.designer.control_gate == 0.2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label_smoothing_factor": 0.1}, "args.label_smoothing_factor: .*uniform_smoothing"),
        (
            {"torch_compile": True, "steering": {"estimator": "forward_mode"}},
            "args.torch_compile: .*forward-mode",
        ),
        ({"more": {"compute_loss_func": lambda *_, **__: 0}}, "compute_loss_func: .*leave it out"),
        ({"optim": "adafactor"}, r"args.optim: .*second moments.*alignment='dot'"),
        ({"more": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {})}}, "optimizers: .*SGD"),
        (
            {"more": {"optimizer_cls_and_kwargs": (torch.optim.Muon, {})}},
            r"optimizers: .*Muon is not linear.*alignment='dot'",
        ),
        ({"steering": {"aligned_blocks": 3}}, "Steering aligned_blocks: .*so many blocks"),
        (
            {"steering": {"aligned_patterns": ["lm_haed*"]}},
            "Steering aligned_patterns: no parameter",
        ),
        (
            {"steering": {"arm": "closed_form", "candidates": 1000}},
            "Steering candidates: .*vocabulary",
        ),
        (
            {"steering": {"feedback_batch_size": 21}},
            "feedback_dataset: 40 rows make 2 parts of 20, and a batch takes 21; give 42, or "
            "feedback_batch_size <= 20",
        ),
    ],
)
def test_an_argument_that_cannot_work_is_refused(given, said, tmp_path, feedback, stream):
    with pytest.raises(UserError, match=f"(?s){said}"):
        made(tmp_path, feedback, stream, **given)


def test_a_model_spread_over_devices_is_refused(tmp_path, feedback, stream):
    model = tiny()
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(UserError, match="device_map over 0, 1"):
        made(tmp_path, feedback, stream, model=model)
    model.hf_device_map = {"": "cpu"}
    made(tmp_path, feedback, stream, model=model)


def test_a_learned_prompt_is_refused_by_its_name(tmp_path, feedback, stream):
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(UserError, match=r"(?s)model: .*got +PromptTuningConfig.*accepted +LoR"):
        made(tmp_path, feedback, stream, model=get_peft_model(tiny(), prompt))


@pytest.mark.parametrize("arm", ["onehot", "uniform_smoothing"])
def test_an_arm_that_values_nothing_takes_any_optimizer(arm, tmp_path, feedback, stream):
    more = {"data_collator": DataCollatorForLanguageModeling(TOKENIZER, mlm=False)}
    given = {"optim": "sgd", "max_steps": 1, "steering": {"arm": arm}, "more": more}
    assert made(tmp_path, feedback, stream, **given).train().global_step == 1


def test_a_loss_of_a_subclass_is_refused_and_all_that_is_wrong_is_said_at_once(
    tmp_path, feedback, stream
):
    class Own(SteeredTrainer):
        def compute_loss(self, *given, **named):
            return super().compute_loss(*given, **named)

    with pytest.raises(UserError) as said:
        made(
            tmp_path, feedback, stream, kind=Own, label_smoothing_factor=0.1, use_liger_kernel=False
        )
    assert [problem.where for problem in said.value.problems] == [
        "args.label_smoothing_factor",
        "Own",
    ]


def test_ways_of_running_that_were_never_steered_are_refused(
    tmp_path, feedback, stream, monkeypatch
):
    trainer = made(tmp_path, feedback, stream)

    def places():
        return [
            problem.where
            for problem in problems_of(trainer, trainer.steering, SteeredTrainer.compute_loss)
        ]

    assert places() == []
    trainer.is_deepspeed_enabled = True
    assert places() == ["args.deepspeed"]
    trainer.is_deepspeed_enabled = False
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert places() == ["args.world_size"]  # started together, and the arguments do not know


def test_a_model_that_cannot_be_valued_is_refused_by_its_setting(tmp_path, feedback, stream):
    flash, tied = tiny(), tiny(tie_word_embeddings=True)
    flash.config._attn_implementation = "flash_attention_2"
    added = get_peft_model(tied, LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3]))
    for model, said in ((flash, "flash_attention_2.*'sdpa'"), (added, "trainable_token_indices")):
        with pytest.raises(UserError, match=f"(?s)model: .*{said}"):
            made(tmp_path, feedback, stream, model=model)


def test_float16_of_the_launcher_is_refused_too(tmp_path, feedback, stream, monkeypatch):
    trainer = made(tmp_path, feedback, stream)
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    (problem,) = problems_of(trainer, trainer.steering, SteeredTrainer.compute_loss)
    assert problem.where == "ACCELERATE_MIXED_PRECISION" and "bf16" in problem.accepted


def test_without_feedback_there_is_nothing_to_steer_by(tmp_path, stream):
    with pytest.raises(
        UserError, match=r"(?s)feedback_dataset: .*take the Trainer.*accepted +prompt"
    ):
        made(tmp_path, None, stream)


def test_feedback_that_is_trained_on_is_refused(tmp_path, feedback, stream, caplog):
    with pytest.raises(
        UserError, match="feedback_dataset: 40 of 40 rows are also in train_dataset"
    ):
        made(tmp_path, feedback, feedback)

    class Endless(IterableDataset):
        def __iter__(self):
            yield from stream

    made(tmp_path, feedback, feedback, steering={"search_train": False})
    held_out = DatasetDict({"same": Dataset.from_list(feedback)})
    made(tmp_path, feedback, stream, more={"eval_dataset": held_out})
    assert "40 of 40 rows are also in eval_dataset same" in caplog.text
    made(tmp_path, feedback, Endless())  # cannot be read beforehand: said, and not refused
    assert "whether feedback rows are in it is not known" in caplog.text


def test_a_model_without_parts_is_refused(tmp_path, feedback, stream):
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(vocab_size=99, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(
        UserError, match="model: T5ForConditionalGeneration does not have one list of blocks"
    ):
        made(tmp_path, feedback, stream, model=model)


def test_without_trl_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "vpretrain.integrations.trl", raising=False)
    with pytest.raises(UserError, match=r"(?s)needs TRL.*pip install 'vpretrain\[posttrain\]'"):
        importlib.import_module("vpretrain.integrations.trl")
