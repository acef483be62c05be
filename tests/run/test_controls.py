"""The controls that steer by noise: each feedback task has noise of its own."""

import pytest

from tests.run.test_train import tiny_recipe
from vpretrain.language import Language
from vpretrain.method.feedback import RandomDirection
from vpretrain.run.controls import seed_of_task

TASK = "{kind: likelihood, rows: {kind: word_problems, split: feedback, rows: 64, seed: %d}}"
TASKS = [
    "data.feedback.rows=null",
    f"data.feedback.tasks.a={TASK % 0}",
    f"data.feedback.tasks.b={TASK % 1}",
]


@pytest.mark.parametrize("arm", ["random_feedback", "fixed_random_direction"])
def test_the_noise_of_one_task_says_nothing_of_anothers(arm):
    recipe = tiny_recipe(f"arm={arm}", *TASKS)
    parts = Language().build(recipe, Language().load(recipe))
    parts.feedback.gradients(parts.learner)
    assert abs(parts.feedback.metrics()["conflict/a~b"]) < 0.1


def test_a_single_task_has_the_runs_seed_as_in_earlier_runs():
    recipe = tiny_recipe("arm=fixed_random_direction", "value.memory=0", "seed=7")
    noise = Language().build(recipe, Language().load(recipe)).feedback.tasks["feedback"]
    assert isinstance(noise, RandomDirection) and noise.seed == 7


def test_seeds_go_by_run_and_name_and_not_by_the_other_tasks():
    assert seed_of_task(0, "a", ["a", "b"]) == seed_of_task(0, "a", ["c", "a", "d"])
    seeds = {seed_of_task(seed, name, ["a", "b"]) for seed in (0, 1) for name in "ab"}
    assert len(seeds) == 4
