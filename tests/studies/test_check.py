"""What ``check`` says beside problems."""

from tests.test_recipes import shrunken
from vpretrain.run.modalities import MODALITIES
from vpretrain.studies.check import Examined, examine, needs


def needs_of(*overrides: str):
    recipe = shrunken("demo-language", *overrides)
    checked = MODALITIES[recipe.modality]().check(recipe)
    assert not checked.problems
    return needs(recipe, checked.parts)


def test_what_a_run_needs_follows_from_model_budget_and_one_forward_pass():
    few, many = needs_of("budget.steps=10"), needs_of("budget.steps=1000")
    assert few.memory_bytes == many.memory_bytes > 0 and few.disk_bytes > 0
    assert few.seconds == 30 * few.forward_seconds
    assert many.seconds == 3000 * many.forward_seconds
    assert needs_of("budget.seconds=0.0001").seconds == 0.0001


def test_a_checkpoint_that_is_not_there_yet_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("VPRETRAIN_CACHE", str(tmp_path))
    found = examine("demo-language", ["learner.model=null", "data.batch_size=2"])
    assert found == Examined([]) and not list(tmp_path.rglob("*.safetensors"))
