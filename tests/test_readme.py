"""What README shows runs as it is written."""

import re
from pathlib import Path

import yaml

from tests.designers import arms_of
from vpretrain.config import recipe
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.arms import ARMS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL).group(1)


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = block("python")
    fewer = code.replace('"budget.steps=40"', '"budget.steps=10", "data.evaluation.test.rows=24"')
    assert fewer != code
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(fewer, "README.md", "exec"), {})
    before, after = (float(figure) for figure in capsys.readouterr().out.split(" -> "))
    assert after < before
    assert (tmp_path / "steered-model" / "model.safetensors").is_file()


def test_the_recipe_is_a_recipe(tmp_path):
    (tmp_path / "steer.yaml").write_text(block("yaml"))
    loaded = recipe.load(tmp_path / "steer.yaml", schemas={"language": lambda: LanguageRecipe})
    assert yaml.safe_load(block("yaml"))["arm"] == loaded.arm


def test_the_table_of_arms_is_complete():
    table = README[README.index("## Arms") : README.index("## How the value")]
    assert {arm for arm in re.findall(r"`(\w+)`", table)} >= set(arms_of(ARMS))
