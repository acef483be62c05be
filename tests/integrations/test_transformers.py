"""The Trainer's drop-in: it follows our own loop bit for bit, and goes on where it was stopped."""

import copy
import itertools

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, DataCollatorWithFlattening

from tests.integrations.conftest import TOKENIZER, arguments, tiny
from tests.language.test_parity import QWEN2, Windows
from tests.run.test_train import tiny_recipe
from vpretrain.integrations.transformers import SteeredTrainer, Steering
from vpretrain.language import Language
from vpretrain.language.learner import predictions
from vpretrain.language.steering.arms import ARMS
from vpretrain.method.roles import Learned
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import UserError

STEPS = 20
NETWORK = {"learning_rate": 1e-2, "hidden": 16, "layers": 1, "heads": 2}
SMALL = {"candidates": 6, **NETWORK}


class Noted(SteeredTrainer):
    """With its losses as they are, before they are rounded for the log."""

    def training_step(self, *given, **named):
        loss = super().training_step(*given, **named)
        self.__dict__.setdefault("losses", []).append(loss)
        return loss


def steered(folder, feedback, stream, *, model=None, steering=None, **more):
    """A trainer of the tiny model that uses its feedback every other step."""
    chosen = {"arm": "token_weights"} | (steering or {})
    own = ARMS.kinds[chosen["arm"]].model_fields
    keys = {key: value for key, value in SMALL.items() if key in own}
    return Noted(
        tiny() if model is None else model,
        arguments(folder, **more),
        DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
        stream,
        processing_class=TOKENIZER,
        feedback_dataset=feedback,
        steering=Steering(**{"meta_period": 2, "feedback_batch_size": 8} | keys | chosen),
    )


def same(result, expected):
    """Bit for bit, through dictionaries and lists."""
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arm", "accumulate", "keys"),
    [
        ("onehot", 1, {}),
        ("token_weights", 1, {"tilt": 0.8}),
        ("token_weights", 2, {"tilt": 0.8}),
        ("ascent", 1, NETWORK),
    ],
)
def test_it_follows_our_own_loop_bit_for_bit(arm, accumulate, keys, tmp_path, head):
    recipe = tiny_recipe(
        f"arm={arm}",
        QWEN2,
        "learner.learning_rate=3e-3",
        "learner.warmup_fraction=0",
        "learner.clip_norm=0.5",
        "value.settle_steps=0",
        "value.meta_period=3",
        f"learner.accumulate={accumulate}",
        f"budget.steps={STEPS}",
        *(f"designer.{key}={held}" for key, held in keys.items()),
    )
    materials = Language().load(recipe)
    parts = Language().build(recipe, materials)
    model = copy.deepcopy(parts.learner.model)
    batches = list(itertools.islice(Language().build(recipe, materials).stream, STEPS * accumulate))
    trainer = Noted(
        model,
        arguments(
            tmp_path,
            max_steps=STEPS,
            lr_scheduler_type="constant",
            learning_rate=3e-3,
            max_grad_norm=0.5,
            gradient_accumulation_steps=accumulate,
            remove_unused_columns=False,
        ),
        train_dataset=Windows(batches),
        # one group of parameters, as ours has: the Trainer's two would be summed in another order
        optimizers=(
            torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0, fused=True),
            None,
        ),
        processing_class=TOKENIZER,
        feedback_dataset=[
            {"prompt": row.prompt, "solution": row.text} for row in materials.texts.feedback
        ],
        steering=Steering(
            designer=ARMS.section_of(recipe),
            aligned_blocks=1,
            feedback_batch_size=16,
            **recipe.value.model_dump(),
        ),
    )
    trainer.train()
    result = train(Run(recipe, parts, step0={}))
    mine = torch.tensor([record["loss"] for record in result.history])
    same(torch.stack(trainer.losses).view(STEPS, accumulate).sum(dim=1), mine)
    assert float(mine[:3].mean() - mine[-3:].mean()) > 0.2  # it does train
    same(dict(model.state_dict()), dict(parts.learner.model.state_dict()))
    same(trainer.designer.state_dict(), parts.designer.state_dict())
    steered = [record for record in result.history if "gain" in record]
    assert len(steered) == (0 if arm == "onehot" else 7)
    if steered:
        assert steered[-1]["gain"] > 0
        assert {"gain", "gate", "cosine", "agreement"} <= trainer.steered_metrics.keys()
        same(trainer.steered_metrics, {name: steered[-1][name] for name in trainer.steered_metrics})


@pytest.mark.parametrize("adapted", [False, True])
def test_resumed_is_as_if_never_stopped(adapted, tmp_path, feedback, stream):
    def made(folder, **more):
        lora = LoraConfig(
            r=2, target_modules="all-linear", exclude_modules=["lm_head"], task_type="CAUSAL_LM"
        )
        torch.manual_seed(1)
        model = get_peft_model(tiny(), lora) if adapted else tiny()
        steering = {
            "arm": "ascent",
            "meta_period": 3,
        }  # the stop at step 4 lies between two meta steps
        return steered(folder, feedback, stream, model=model, steering=steering, **more)

    whole = made(tmp_path / "whole", max_steps=8)
    whole.train()
    stopped = made(tmp_path / "stopped", max_steps=8, save_strategy="steps", save_steps=4)
    stopped.train()
    resumed = made(tmp_path / "stopped", max_steps=8)
    before = resumed.designer.state_dict()["network"]["query.weight"].clone()
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))
    same(resumed.losses, whole.losses[4:])
    same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    same(resumed.designer.state_dict(), whole.designer.state_dict())
    assert not torch.equal(before, resumed.designer.state_dict()["network"]["query.weight"])
    trained = [name for name, p in whole.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained) == adapted


def test_a_model_that_carries_a_state_is_steered_on_rows_of_one_document(
    tmp_path, feedback, stream
):
    layers = {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}
    trainer = steered(tmp_path, feedback, stream, model=tiny("lfm2", **layers), max_steps=2)
    trainer.train()
    assert trainer.steered_metrics["gain"] != 0
    trainer.data_collator = DataCollatorWithFlattening()
    with pytest.raises(UserError, match=r"(?s)data_collator: .*other documents of its packed row"):
        trainer.train()


def test_a_checkpoint_of_another_arm_or_without_steering_is_refused(tmp_path, feedback, stream):
    steered(tmp_path, feedback, stream, max_steps=1, save_strategy="steps", save_steps=1).train()
    saved = str(tmp_path / "checkpoint-1")
    with pytest.raises(
        UserError, match=r"(?s)another arm.*got +document_weights.*accepted +token_weights"
    ):
        steered(tmp_path, feedback, stream, steering={"arm": "document_weights"}).train(
            resume_from_checkpoint=saved
        )
    (tmp_path / "checkpoint-1" / "steering" / "state.json").unlink()
    with pytest.raises(UserError, match=r"no whole steering state \(state.json cannot be read"):
        steered(tmp_path, feedback, stream).train(resume_from_checkpoint=saved)


def test_in_bfloat16_the_value_is_that_of_float32(tmp_path, feedback, stream, head):
    narrow = steered(
        tmp_path, feedback, stream, bf16=True, max_steps=1, steering={"arm": "closed_form"}
    )
    narrow.train()
    exact = steered(tmp_path, feedback, stream, max_steps=1, steering={"arm": "closed_form"})
    exact.train()
    a, b = torch.stack(narrow.losses), torch.stack(exact.losses)
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.03, atol=0)
    assert narrow.steered_metrics["gain"] == pytest.approx(exact.steered_metrics["gain"], rel=0.2)


def test_bfloat16_of_the_launcher_is_that_of_the_arguments(tmp_path, feedback, stream, monkeypatch):
    assert steered(tmp_path, feedback, stream, bf16=True).learner.autocast is torch.bfloat16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as accelerate launch sets it
    assert steered(tmp_path, feedback, stream).learner.autocast is torch.bfloat16
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert steered(tmp_path, feedback, stream).learner.autocast is None


def test_metrics_are_logged_and_evaluation_is_the_trainers_own(tmp_path, feedback, stream):
    held_out = stream[:8]
    trainer = steered(tmp_path, feedback, stream[8:], logging_strategy="steps", logging_steps=2)
    before = trainer.evaluate(held_out)
    trainer.train()
    assert trainer.evaluate(held_out)["eval_loss"] < before["eval_loss"]
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    shown = {key for key in logged[0] if key.startswith("steering/")}
    assert shown == {
        f"steering/{name}" for name in ("steered", "gain", "reliability", "cosine", "weight_spread")
    }
    assert {"agreement", "gate", "estimator_error", "value"} <= trainer.steered_metrics.keys()
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert all(
        entry["steering/steered"] == 1.0 and -1 <= entry["steering/cosine"] <= 1 for entry in logged
    )
    assert not any(
        key.startswith("steering/")
        for entry in trainer.state.log_history
        if "eval_loss" in entry
        for key in entry
    )


def test_steering_begins_at_its_start_step(tmp_path, feedback, stream):
    logged = {"logging_strategy": "steps", "logging_steps": 1, "max_steps": 4}
    trainer = steered(tmp_path, feedback, stream, steering={"start_step": 2}, **logged)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["steering/steered"] for entry in entries] == [0.0, 0.0, 1.0, 1.0]


def test_the_model_card_says_what_steered(tmp_path, feedback, stream):
    for arm, said in (("token_weights", True), ("onehot", False)):
        trainer = steered(tmp_path, feedback, stream, steering={"arm": arm}, max_steps=1)
        trainer.train()
        trainer.create_model_card(model_name="mine")
        card = ModelCard.load(tmp_path / "README.md")
        assert ("gradient of 40 verified examples" in card.text) == said
        assert "Training procedure" in card.text and card.data.library_name == "transformers"


@pytest.mark.slow
def test_compiled_it_is_the_same_run(tmp_path, feedback, stream, head):
    """The hooks that a steered pass sets are part of what is compiled."""
    plain = steered(tmp_path, feedback, stream, max_steps=4)
    plain.train()
    compiled = steered(
        tmp_path,
        feedback,
        stream,
        max_steps=4,
        torch_compile=True,
        torch_compile_backend="aot_eager",
    )
    compiled.train()
    torch.testing.assert_close(torch.stack(compiled.losses), torch.stack(plain.losses))
    assert compiled.steered_metrics == pytest.approx(plain.steered_metrics, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_large_vocabulary_is_never_projected_as_a_whole(
    is_tied, tmp_path, feedback, stream, monkeypatch
):
    """The same run, but for rounding; the head itself is called with nothing."""

    def run(whole):
        monkeypatch.setattr(predictions, "WHOLE_LOGITS", whole)
        model, projected = tiny(tie_word_embeddings=is_tied), []
        trainer = steered(tmp_path, feedback, stream, model=model)
        model.get_output_embeddings().register_forward_hook(
            lambda _, args, out: projected.append(out.numel()) if model.training else None
        )
        trainer.train()
        return torch.stack(trainer.losses), dict(model.state_dict()), max(projected)

    whole, chunked = run(2**40), run(0)
    torch.testing.assert_close(chunked[0], whole[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunked[1], whole[1], rtol=1e-2, atol=1e-3)
    assert whole[2] > 0 and chunked[2] == 0


def test_model_init_starts_with_a_fresh_designer(tmp_path, feedback, stream):
    trainer = Noted(
        args=arguments(tmp_path, max_steps=2),
        model_init=lambda: tiny(),
        data_collator=DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
        train_dataset=stream,
        processing_class=TOKENIZER,
        feedback_dataset=feedback,
        steering=Steering(arm="ascent", feedback_batch_size=8, **NETWORK),
    )
    trainer.train()
    first = copy.deepcopy(trainer.designer.state_dict())
    trainer.train()
    same(trainer.designer.state_dict(), first)
    same(trainer.losses[:2], trainer.losses[2:])


def test_a_batch_without_labels_neither_teaches_nor_breaks(tmp_path, feedback, stream):
    rows = [{**row, "labels": [-100] * len(row["input_ids"])} for row in stream[:8]]
    trainer = steered(tmp_path, feedback, rows, max_steps=2)
    trainer.data_collator = lambda some: {
        key: torch.tensor([row[key][:8] for row in some]) for key in ("input_ids", "labels")
    }
    before = copy.deepcopy(dict(trainer.model.state_dict()))
    trainer.train()
    same(torch.stack(trainer.losses), torch.zeros(2))
    same(dict(trainer.model.state_dict()), before)


@pytest.mark.parametrize("on_collapse", ["log", "revert"])
def test_a_designer_that_collapsed_is_set_aside_where_that_is_asked_for(
    on_collapse, tmp_path, feedback, stream
):
    steering = {"arm": "token_weights", "on_collapse": on_collapse, "guard_window": 1}
    trainer = steered(
        tmp_path,
        feedback,
        stream,
        steering=steering,
        max_steps=4,
        logging_strategy="steps",
        logging_steps=1,
    )
    learn = trainer.designer.learn
    trainer.designer.learn = lambda context, value_of: Learned(
        learn(context, value_of).metrics | {"agreement": -1.0, "gain": 1.0}
    )
    trainer.train()
    told = [
        row["steering/steered"] for row in trainer.state.log_history if "steering/steered" in row
    ]
    assert told == [float(on_collapse == "log")] * 4
