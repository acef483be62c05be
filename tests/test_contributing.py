"""What CONTRIBUTING shows is built and run."""

import importlib.util
import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import DataCollatorForLanguageModeling

from tests.integrations.conftest import TOKENIZER, arguments, tiny
from tests.run.test_train import TINY, tiny_recipe, weights_hash
from vpretrain.integrations.transformers import SteeredTrainer, Steering
from vpretrain.language import Language
from vpretrain.language.data import word_problems
from vpretrain.language.feedback.signals import SIGNALS
from vpretrain.language.steering.arms import ARMS
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import UserError


@contextmanager
def declared(folder, name, heading, *, most_lines, kinds):
    """The file as it stands there, imported as a file of the package would be."""
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split(f"## {heading}")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(code.splitlines()) <= most_lines
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield
    del kinds[name], sys.modules[name]


@pytest.fixture
def below_mean(tmp_path):
    with declared(tmp_path, "below_mean", "Add a designer", most_lines=60, kinds=ARMS.kinds):
        yield


@pytest.fixture
def unlikelihood(tmp_path):
    with declared(
        tmp_path, "unlikelihood", "Add a kind of feedback", most_lines=40, kinds=SIGNALS.kinds
    ):
        yield


def test_a_designer_is_one_file(below_mean):
    materials = Language().load(tiny_recipe())
    results = {}
    for overrides in (
        ["arm=below_mean", "designer.low=0.25"],
        ["arm=below_mean"],  # as a comparison has it: the keys stand in `designers`
        ["arm=onehot"],
    ):
        recipe = tiny_recipe("budget.steps=2", "value.shrink=false", *overrides)
        parts = Language().build(recipe, materials)
        result = train(Run(recipe, parts, step0={}))
        assert result.spent.steps == 2
        results[" ".join(overrides)] = weights_hash(parts)
    assert len(set(results.values())) == 3
    assert "below_mean" in Language().arms
    assert Steering(arm="below_mean", low=0.1).designer.low == 0.1


def test_its_keys_are_its_own(below_mean):
    with pytest.raises(UserError, match=r"designer\.low: .*out of range"):
        tiny_recipe("arm=below_mean", "designer.low=2")
    with pytest.raises(UserError, match=r"designer\.tilt: this is a key of the kind"):
        tiny_recipe("arm=below_mean", "designer.tilt=2")
    with pytest.raises(UserError, match="this is a key of the kind below_mean"):
        tiny_recipe("arm=token_weights", "designer.low=0.5")


ROWS = "{kind: word_problems, split: feedback, rows: 40}"
TASK = f"data.feedback.tasks={{avoid: {{kind: unlikelihood, rows: {ROWS}, ceiling: 0.9}}}}"


def test_a_kind_of_feedback_is_one_file(unlikelihood, tmp_path, command):
    """The command trains with it, and the same under a trainer's ``Steering``."""
    own = ["data.feedback.rows=null", TASK, "value.shrink=false", "budget.steps=2"]
    own += [name for name in TINY if not name.startswith(("data.feedback.rows", "budget."))]
    called = command(
        "train", "demo-language", *own, "value.meta_period=1", "--out", tmp_path / "run"
    )
    assert called.code == 0, called.err
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum("gain" in json.loads(line) for line in metrics) == 2
    with pytest.raises(UserError, match=r"data\.feedback\.tasks\.avoid\.ceiling: .*out of range"):
        tiny_recipe(TASK.replace("0.9", "2"))


def test_a_trainer_has_that_kind_too(unlikelihood, tmp_path):
    rows = word_problems.problems("feedback", 40, seed=0)
    texts = word_problems.problems("stream", 20, seed=0)
    gains = {}
    for feedback in ({"kind": "unlikelihood", "ceiling": 0.9}, {"kind": "likelihood"}):
        trainer = SteeredTrainer(
            tiny(),
            arguments(tmp_path, max_steps=2),
            DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
            [{"input_ids": TOKENIZER(row["problem"])["input_ids"]} for row in texts],
            processing_class=TOKENIZER,
            feedback_dataset=[{"prompt": r["problem"], "solution": r["solution"]} for r in rows],
            steering=Steering(meta_period=1, feedback_batch_size=8, feedback=feedback),
        )
        trainer.train()
        assert trainer.state.global_step == 2
        gains[feedback["kind"]] = trainer.steered_metrics["gain"]
    assert gains["unlikelihood"] != gains["likelihood"]
    with pytest.raises(UserError, match=r"Steering feedback\.ceiling"):
        Steering(feedback={"kind": "unlikelihood", "ceiling": 2.0})
