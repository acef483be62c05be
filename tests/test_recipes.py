"""Every recipe, packaged or in the repository, takes two steps on a CPU with shrunken sizes."""

from pathlib import Path

import pytest

from vpretrain import recipe as recipes
from vpretrain.modalities import MODALITIES, SCHEMAS
from vpretrain.train import run

REPOSITORY = Path(__file__).parent.parent / "recipes"
SMALL_MODEL = (
    "learner.config={model_type: llama, vocab_size: 96, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, tie_word_embeddings: false}"
)
SMALL = [
    "learner.model=null", "learner.prepare=null", SMALL_MODEL, "learner.aligned_blocks=1", "learner.dtype=float32",
    "budget={steps: 2}", "budget.tokens=null", "budget.seconds=null", "data.batch_size=2", "data.feedback.batch_size=4",
    "value.burn_in_steps=1", "designer.hidden=16", "designer.layers=1", "designer.heads=2", "designer.candidates=4",
]  # fmt: skip


def shrunken(source, *overrides):
    """The recipe with tiny sizes; rows are cut to what two steps need."""
    loaded = recipes.load(source, [*SMALL, *overrides], schemas=SCHEMAS)
    rows = [f"data.stream.{i}.rows.rows=60" for i in range(len(loaded.data.stream))]
    rows += [f"data.evaluation.{split}.rows=8" for split in loaded.data.evaluation] + ["data.feedback.rows.rows=40"]
    return recipes.load(source, [*SMALL, *overrides, *rows], schemas=SCHEMAS)


PACKAGED = sorted(recipes.packaged())


def language(sources):
    """Those that are read as language; tests/vision/test_recipes.py has the others."""
    return [source for source in sources if recipes.load(source, schemas=SCHEMAS).modality == "language"]


def two_steps(recipe):
    modality = MODALITIES[recipe.modality]()
    result = run(recipe, modality.build(recipe, modality.load(recipe)))
    assert result.spent.steps == 2
    assert result.final.keys() == result.step0.keys()


@pytest.mark.parametrize("name", language(PACKAGED))
def test_packaged(name):
    two_steps(shrunken(name))


@pytest.mark.data
@pytest.mark.parametrize("path", language(sorted(REPOSITORY.rglob("*.yaml"))), ids=lambda path: path.stem)
def test_in_the_repository(path, shared_data):
    two_steps(shrunken(path, f"data.root={shared_data}"))


@pytest.mark.parametrize("path", sorted(REPOSITORY.rglob("*.yaml")), ids=lambda path: path.stem)
def test_opens_with_its_command(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# vpretrain ") and path.name in first


@pytest.mark.parametrize("name", ["demo-language", "demo-language-minority"])
def test_the_packaged_learner_is_an_ordinary_folder(name):
    """It opens with transformers alone, and its tokenizer reads the generator's text without unknown words."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from vpretrain.language import word_problems
    from vpretrain.language.loading import ASSETS

    folder = ASSETS / recipes.load(name, schemas=SCHEMAS).learner.model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 3e5 < sum(p.numel() for p in model.parameters()) < 1e6
    text = word_problems.problems("test", 1, seed=0)[0]["problem"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_checkpoints_are_model_folders(tmp_path):
    from transformers import AutoModelForCausalLM

    from vpretrain.single import train_one

    found = train_one(shrunken("demo-language", "checkpoint.every=1"), tmp_path / "run", lambda record, share: None)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-0000001", "step-0000002"]
    for folder in ("model", "checkpoints/step-0000002"):
        AutoModelForCausalLM.from_pretrained(Path(found["run_dir"]) / folder)
