"""The cached learner that a recipe prepares: told apart by all that it is made from."""

from tests.run.test_train import TINY
from vpretrain.config import recipe as recipes
from vpretrain.language.data.texts import read
from vpretrain.language.prepare import cached
from vpretrain.run.modalities import SCHEMAS

PREPARE = "{config: {model_type: llama}, tokenizer: bpe, phases: [{steps: 2, learning_rate: 1e-3}]}"


def name(*overrides):
    own = [each for each in TINY if not each.startswith(("learner.prepare", "learner.config"))]
    own += ["learner.config=null", f"learner.prepare={PREPARE}", *overrides]
    recipe = recipes.load("demo-language", own, schemas=SCHEMAS)
    return cached(recipe, read(recipe)).name


def test_learners_prepared_otherwise_do_not_stand_in_for_each_other():
    result = name()
    others = [
        "data.packing=false",
        "data.parse_special_tokens=true",
        "data.shortest_chunk_tokens=9",
        "data.window_tokens=50",
    ]
    assert len({result, *map(name, others)}) == 1 + len(others)
    assert name("data.packing=true", "data.parse_special_tokens=false") == result
