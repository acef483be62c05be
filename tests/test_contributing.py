"""What CONTRIBUTING shows is built and run."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from tests.run.test_train import tiny_recipe, weights_hash
from vpretrain.integrations.steering import Steering
from vpretrain.language import Language
from vpretrain.language.steering.arms import ARMS
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import UserError


@pytest.fixture
def below_mean(tmp_path):
    """The file as it stands there, imported as a file of the folder would be."""
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Add a designer")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(code.splitlines()) <= 60
    path = tmp_path / "below_mean.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("below_mean", path)
    sys.modules["below_mean"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield
    del ARMS.kinds["below_mean"], sys.modules["below_mean"]


def test_a_designer_is_one_file(below_mean):
    materials = Language().load(tiny_recipe())
    found = {}
    for overrides in (
        ["arm=below_mean", "designer.low=0.25"],
        ["arm=below_mean"],  # as a comparison has it: the keys stand in `designers`
        ["arm=onehot"],
    ):
        recipe = tiny_recipe("budget.steps=2", "value.shrink=false", *overrides)
        parts = Language().build(recipe, materials)
        result = train(Run(recipe, parts, step0={}))
        assert result.spent.steps == 2
        found[" ".join(overrides)] = weights_hash(parts)
    assert len(set(found.values())) == 3
    assert "below_mean" in Language().arms
    assert Steering(arm="below_mean", low=0.1).designer.low == 0.1


def test_its_keys_are_its_own(below_mean):
    with pytest.raises(UserError, match=r"designer\.low: .*out of range"):
        tiny_recipe("arm=below_mean", "designer.low=2")
    with pytest.raises(UserError, match=r"designer\.tilt: this is a key of the kind"):
        tiny_recipe("arm=below_mean", "designer.tilt=2")
    with pytest.raises(UserError, match="this is a key of the kind below_mean"):
        tiny_recipe("arm=token_weights", "designer.low=0.5")
