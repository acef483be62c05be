"""What ``check`` says beside problems."""

from tests.test_recipes import shrunken
from vpretrain.studies.check import needs


def test_what_a_run_needs_follows_from_model_budget_and_one_forward_pass():
    few = needs(shrunken("demo-language", "budget.steps=10"))
    many = needs(shrunken("demo-language", "budget.steps=1000"))
    assert few.memory_bytes == many.memory_bytes > 0 and few.disk_bytes > 0
    assert few.seconds == 30 * few.forward_seconds
    assert many.seconds == 3000 * many.forward_seconds
    assert needs(shrunken("demo-language", "budget.seconds=0.0001")).seconds == 0.0001


def test_a_checkpoint_that_is_not_there_yet_is_not_made():
    recipe = shrunken("demo-language")
    made = recipe.learner.model_copy(update={"config": None, "model": None, "prepare": object()})
    assert needs(recipe.model_copy(update={"learner": made})) is None
