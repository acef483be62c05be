"""The commands that ``kill.py`` kills: how each runs in a folder, and what it has come to there."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import torch
from transformers import DataCollatorForLanguageModeling

from tests.integrations.conftest import TOKENIZER, arguments, tiny
from tests.reliability.runs import FEW, language_recipe, vision_recipe
from tests.run import test_train as language
from vpretrain.integrations.transformers import SteeredTrainer, Steering
from vpretrain.language import Language
from vpretrain.language import modality as of_language
from vpretrain.language.data import word_problems
from vpretrain.run import checkpoint
from vpretrain.run.launch import Launch, train_one
from vpretrain.studies import sweep as sweeps
from vpretrain.studies.compare import compare
from vpretrain.vision import Vision
from vpretrain.vision import modality as of_vision

STEPS = 12
OFTEN = ["checkpoint.every=1", "checkpoint.seconds=0", "evaluate.every=4", "threads=1"]
SEARCH = "sweep={keys: {learner.learning_rate: {low: 1e-4, high: 1e-2, log: true}}, objectives: [test/nll]}"


@dataclass(frozen=True)
class Verb:
    """A command.

    Args:
        name: of it.
        run: in a folder, with so many jobs; the same again goes on.
        outcome: what is in the folder then, in bytes that no clock says.
        places: functions in which the command is, by where that is.
        load: what it needs is read once, before it is forked.
        parallel: whether it takes more than one job.
    """

    name: str
    run: Callable[[Path, int], Any]
    outcome: Callable[[Path], str]
    places: dict[str, list[tuple[Any, str]]]
    load: Callable[[], Any] = field(default=lambda: None)
    parallel: bool = False


def weights(folder):
    """Hash of the model folder's weights and of the metrics that no clock says."""
    digest = hashlib.sha256()
    for path in sorted((folder / "model").rglob("*.safetensors")):
        digest.update(path.read_bytes())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    digest.update(
        json.dumps([[line["step"], line["loss"], line["batch"]] for line in lines]).encode()
    )
    return digest.hexdigest()


# ---- train


def train(recipe, modality, module):
    def load():
        materials = modality().load(recipe)
        modality.load = lambda self, recipe: materials  # read once, forked everywhere

    return Verb(
        "train",
        lambda folder, jobs: train_one(recipe, folder, lambda record, fraction: None),
        weights,
        {"save": [(checkpoint, "save"), (Launch, "save")], "evaluation": [(module, "evaluate")]},
        load,
    )


# ---- compare


def compared(folder):
    table = json.loads((folder / "compare.json").read_text())
    for run in table["runs"]:
        run.pop("seconds")
    return json.dumps([table["runs"], table["summary"], table["step0"]])


def comparing(folder, jobs):
    recipe = language_recipe(*OFTEN, "budget.steps=6")
    arms = ["onehot", "document_weights"]
    compare(recipe, arms=arms, seeds=2, match="steps", out=folder, jobs=jobs)


# ---- sweep


def searched(folder):
    """Every trial that came to an end, by its values; two workers end theirs in any order."""
    trials = sweeps._ended_trials(sweeps._study(folder))
    result = [[sorted(trial.params.items()), trial.values] for trial in trials]
    return json.dumps([sorted(result), json.loads((folder / "sweep.json").read_text())["trials"]])


def searching(folder, jobs):
    overrides = [*language.TINY, *FEW, "threads=1", "budget.steps=6", SEARCH]
    plan = sweeps.Plan.read("demo-language", overrides)
    sweeps.sweep(plan, trials=4, out=folder, jobs=jobs)


# ---- SteeredTrainer


def training(folder, jobs):
    problems = {
        split: word_problems.problems(split, 60, seed=0) for split in ("feedback", "stream")
    }
    texts = [f"{row['problem']} {row['solution']} <eos>" for row in problems["stream"]]
    rows = [{"input_ids": ids} for ids in TOKENIZER(texts)["input_ids"]]
    saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    torch.manual_seed(1)
    trainer = SteeredTrainer(
        tiny(),
        arguments(folder, max_steps=8, save_total_limit=3, **saving),
        DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
        rows[8:],
        rows[:8],
        processing_class=TOKENIZER,
        feedback_dataset=[
            {"prompt": row["problem"], "solution": row["solution"]} for row in problems["feedback"]
        ],
        steering=Steering(arm="token_weights", meta_period=3, feedback_batch_size=8),
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    trainer.save_model(str(folder / "model"))


def model(folder):
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


EVALUATED = [(of_language, "evaluate")]
TRAIN = [
    train(
        language_recipe("arm=document_weights", *OFTEN, f"budget.steps={STEPS}"),
        Language,
        of_language,
    ),
    train(vision_recipe("arm=ascent", *OFTEN, f"budget.steps={STEPS}"), Vision, of_vision),
]
VERBS = {
    "train": TRAIN[0],
    "compare": Verb(
        "compare",
        comparing,
        compared,
        {"save": [(checkpoint, "save")], "evaluation": EVALUATED},
        parallel=True,
    ),
    "sweep": Verb(
        "sweep",
        searching,
        searched,
        {"save": [(optuna.Study, "tell"), (sweeps, "_written")], "evaluation": EVALUATED},
        parallel=True,
    ),
    "trainer": Verb(
        "trainer",
        training,
        model,
        {
            "save": [(SteeredTrainer, "_save_checkpoint")],
            "evaluation": [(SteeredTrainer, "evaluate")],
        },
    ),
}
