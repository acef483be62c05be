"""Did it help? One call trains both arms over seeds, and says so with an interval."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, DefaultDataCollator, Trainer

from tests.integrations.conftest import TOKENIZER, arguments, tiny
from vpretrain.integrations.comparison import compare_arms
from vpretrain.integrations.script import check_same, script_of
from vpretrain.integrations.transformers import SteeredTrainer, Steering
from vpretrain.language.data import word_problems
from vpretrain.report.folders import read
from vpretrain.report.verdict import headline
from vpretrain.system.errors import UserError


@pytest.fixture(scope="module")
def held_out():
    rows = word_problems.problems("test", 12, seed=0)
    return [{"prompt": row["problem"], "solution": row["solution"]} for row in rows]


@pytest.fixture
def make(tmp_path, feedback, stream):
    def made(arm, seed, model=tiny, **steering):
        return SteeredTrainer(
            model(),
            arguments(
                tmp_path / f"{arm}-{seed}",
                max_steps=3,
                seed=seed,
                logging_strategy="steps",
                logging_steps=1,
            ),
            DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
            stream,
            processing_class=TOKENIZER,
            feedback_dataset=feedback,
            steering=Steering(arm=arm, feedback_batch_size=8, **steering),
        )

    return made


def test_arms_are_compared_over_seeds_and_rows(
    make, held_out, tmp_path, capsys, no_plots, monkeypatch
):
    out = tmp_path / "out"
    given = dict(seeds=2, answer=r"= ([\d ]+)", new_tokens=4, out=out)
    table = compare_arms(make, held_out, **given)
    said = capsys.readouterr().out
    assert "step 0" in said and "document_weights: undecided against onehot" in said
    assert "Whether your examples helped is not decided" in said.replace("\n", " ")
    assert "one seed decides nothing" not in said
    assert [(run["arm"], run["seed"], run["steps"]) for run in table["runs"]] == [
        ("onehot", 0, 3),
        ("document_weights", 0, 3),
        ("onehot", 1, 3),
        ("document_weights", 1, 3),
    ]
    assert list(table["metrics"]) == ["held_out/pass@1", "held_out/nll"]
    pair = table["paired"]["document_weights"]["held_out/nll"]
    arms = [table["summary"][arm]["held_out/nll"]["mean"] for arm in ("document_weights", "onehot")]
    assert pair["difference"] == pytest.approx(arms[0] - arms[1])
    low, high = pair["items"]["ci95"]  # over the rows, beside the one over seeds
    assert low <= pair["difference"] <= high and pair["ci95"] is not None
    assert all(mean < table["step0"]["held_out/nll"]["value"] for mean in arms)
    assert table["runs"][0]["tokens_or_images"] > 0
    # The report and its first sentence are those of any comparison.
    [section] = read([out])
    assert (out / "report.html").is_file() and section.notes == []
    [*_, run] = section.runs
    assert [record["step"] for record in run.records] == [1, 2, 3] and "gain" in run.records[-1]
    assert "Whether your examples helped is not decided: 0%" in str(headline(section))

    monkeypatch.setattr(Trainer, "train", lambda self: pytest.fail("this run was finished"))
    assert compare_arms(make, held_out, **given)["runs"] == table["runs"]
    for what, changed in (
        ("steering", {"make": lambda *of: make(*of, meta_period=2)}),
        ("held_out", {"held_out": held_out[:-1]}),
        ("held_out", {"new_tokens": 5}),
        (
            "model.config, weights",
            {"make": lambda *of: make(*of, lambda: tiny(initializer_range=0.3))},
        ),
    ):
        with pytest.raises(UserError, match=rf"onehot-0\.json: .* made with another {what};"):
            compare_arms(**{"make": make, "held_out": held_out, **given, **changed})
    assert json.loads((out / "compare.json").read_text())["runs"] == table["runs"]


@pytest.mark.parametrize(
    "changed",
    [
        {"lr_scheduler_kwargs": {"num_cycles": 2}},
        {"neftune_noise_alpha": 5.0},
        {"data_seed": 7},
        {"data_collator": DefaultDataCollator()},
        {"output_dir": "elsewhere", "logging_steps": 2, "save_steps": 9, "run_name": "again"},
    ],
    ids=str,
)
def test_all_that_scores_depend_on_is_the_script(changed, make):
    before = script_of(make("onehot", 0), "held out", 1.0)
    trainer = make("onehot", 0)
    for name, value in changed.items():
        setattr(trainer if name == "data_collator" else trainer.args, name, value)
    after = script_of(trainer, "held out", 1.0)
    expected = [] if "output_dir" in changed else [*changed]
    assert [name for name in before if before[name] != after[name]] == expected
    assert before["world_size"] == "1"


def adapted(**more):
    return get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "v_proj"], **more))


def frozen():
    model = tiny()
    model.get_input_embeddings().requires_grad_(False)
    return model


def sgd(trainer, **more):
    return torch.optim.SGD(trainer.model.parameters(), lr=1e-2, **more)


@pytest.mark.parametrize(
    ("model", "optimizer", "expected"),
    [
        (adapted, None, []),
        (lambda: adapted(lora_alpha=64), None, ["peft_config"]),
        (lambda: adapted(init_lora_weights=False, r=8), None, ["peft_config"]),
        (lambda: tiny(attention_dropout=0.5), None, ["model.config"]),
        (frozen, None, ["trained parameters"]),
        (tiny, {"optimizer": sgd}, ["optimizer"]),
        (
            tiny,
            {"optimizer_cls_and_kwargs": lambda _: (torch.optim.Adam, {"lr": 2e-2})},
            ["optimizer"],
        ),
    ],
)
def test_models_and_optimizers_that_differ_are_told_apart(model, optimizer, expected, make):
    plain = adapted if "peft_config" in expected or model is adapted else tiny
    before = script_of(make("onehot", 0, plain), "held out", 1.0)
    trainer = make("onehot", 0, model)
    for name, made in (optimizer or {}).items():
        setattr(trainer, name, made(trainer))
    after = script_of(trainer, "held out", 1.0)
    assert [name for name in before if before[name] != after[name]] == expected


def test_settings_of_a_passed_optimizer_are_told_apart(make):
    def script(**more):
        trainer = make("onehot", 0)
        trainer.optimizer = sgd(trainer, **more)
        return script_of(trainer, "held out", 1.0)

    assert script(momentum=0.5) == script(momentum=0.5)
    assert script(momentum=0.5) != script(momentum=0.9)


def test_a_run_that_does_not_tell_all_is_refused_with_what_to_do():
    with pytest.raises(UserError, match=r"(?s)made with another peft_config; name another.*remo"):
        check_same(Path("onehot-0.json"), {"weights": "1"}, {"weights": "1", "peft_config": "{}"})


def test_a_run_of_another_command_is_refused_in_words(make, held_out, tmp_path):
    path = tmp_path / "out" / "runs" / "onehot-0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"arm": "onehot", "seed": 0, "final": {}}))
    with pytest.raises(UserError, match=r"onehot-0\.json: this run is not of compare_arms"):
        compare_arms(make, held_out, seeds=1, out=tmp_path / "out")


def test_runs_that_are_no_pair_are_refused(make, held_out, feedback, tmp_path):
    def other_weights(arm, seed):
        return make(arm, seed, lambda: tiny(initializer_range=0.2 if arm == "onehot" else 0.1))

    for number, (making, rows, said) in enumerate(
        (
            (lambda arm, seed: make("onehot", seed), held_out, "Steering arm: .*another"),
            (lambda arm, seed: make(arm, 3), held_out, "args.seed: .*another"),
            (other_weights, held_out, "document_weights, seed 0: .*other weights to start from"),
            (make, feedback, "held_out: 40 of 40 rows are also in feedback_dataset"),
        )
    ):
        with pytest.raises(UserError, match=f"(?s){said}"):
            compare_arms(making, rows, seeds=1, out=tmp_path / str(number))
    with pytest.raises(UserError, match="two arms or more"):
        compare_arms(make, held_out, arms=("onehot",))


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(held_out, tmp_path):
    def never(arm, seed):
        pytest.fail("nothing can come of this")

    (tmp_path / "file").touch()
    for given, said in (
        ({"arms": ("onehot", "token_wights")}, r"arms: .*did you mean token_weights\?"),
        ({"out": tmp_path / "file"}, "out: .*is a file"),
        ({"held_out": []}, "held_out: there are no rows"),
        ({"answer": r"foo (\d+)"}, "answer: this finds an answer in none of the"),
        ({"answer": r"= \d+"}, "answer: .*group"),
        (
            {"answer": r"= (\d+)", "held_out": [{"input_ids": [5, 6], "labels": [-100, 6]}]},
            "answer: .*these rows are tokens",
        ),
    ):
        with pytest.raises(UserError, match=f"(?s){said}"):
            compare_arms(never, **{"held_out": held_out, "out": tmp_path / "out", **given})
