"""What README and the guide show from Python runs as it is written, and README stays short."""

import re
from pathlib import Path

import pytest
import yaml
from transformers import DataCollatorForLanguageModeling

from tests.designers import arms_of
from tests.integrations.conftest import TOKENIZER, arguments, tiny
from vpretrain.config import recipe
from vpretrain.language.data.word_problems import problems
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.arms import ARMS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
CHOOSING = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")


def block(language, page=README):
    return re.search(rf"```{language}\n(.*?)```", page, re.DOTALL).group(1)


def test_it_is_one_page_with_one_table_and_one_picture():
    assert len(README.splitlines()) <= 100
    assert len(re.findall(r"^\|---", README, re.MULTILINE)) == 1
    assert len(re.findall(r"!\[", README)) == 1


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = block("python", GUIDE)
    fewer = code.replace('"budget.steps=40"', '"budget.steps=10", "data.evaluation.test.rows=24"')
    assert fewer != code
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    exec(compile(fewer, "guide.md", "exec"), {})
    before, after = (float(figure) for figure in capsys.readouterr().out.split(" -> "))
    assert after < before
    assert (tmp_path / "steered-model" / "model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_the_trainer_example_steers(tmp_path):
    texts = [f"{row['problem']} {row['solution']}" for row in problems("stream", 40, seed=0)]
    names = {
        "model": tiny(),
        "args": arguments(tmp_path, max_steps=2),
        "collator": DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
        "train_dataset": [{"input_ids": ids} for ids in TOKENIZER(texts)["input_ids"]],
        "tokenizer": TOKENIZER,
        "verified": [
            {"prompt": row["problem"], "solution": row["solution"]}
            for row in problems("feedback", 64, seed=0)
        ],
    }
    exec(compile(block("python"), "README.md", "exec"), names)
    assert names["trainer"].train().global_step == 2


def test_the_recipe_is_a_recipe_of_ten_lines(tmp_path):
    assert len(block("yaml").splitlines()) <= 10
    (tmp_path / "steer.yaml").write_text(block("yaml"))
    loaded = recipe.load(tmp_path / "steer.yaml", schemas={"language": lambda: LanguageRecipe})
    assert yaml.safe_load(block("yaml"))["arm"] == loaded.arm


def test_the_table_of_arms_is_complete():
    table = CHOOSING.split("\n## Arms\n")[1].split("\n## ")[0]
    assert {arm for arm in re.findall(r"`([\w+]+)`", table)} >= set(arms_of(ARMS))
