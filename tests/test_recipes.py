"""Every recipe, packaged or in the repository, takes two steps on a CPU with shrunken sizes."""

import json
from pathlib import Path

import pytest

from tests.designers import of_every_kind
from vpretrain.config import recipe as recipes
from vpretrain.language.steering.arms import ARMS
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.run import Run
from vpretrain.run.train import train

REPOSITORY = Path(__file__).parent.parent / "recipes"
SMALL_MODEL = (
    "learner.config={model_type: llama, vocab_size: 96, hidden_size: 16, intermediate_size: "
    "32, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, tie_word_embeddings: false}"
)
SMALL = [
    "learner.model=null",
    "learner.prepare=null",
    SMALL_MODEL,
    "learner.aligned_blocks=1",
    "learner.dtype=float32",
    "budget={steps: 2}",
    "budget.tokens=null",
    "budget.seconds=null",
    "data.batch_size=2",
    "data.feedback.batch_size=4",
    "value.settle_steps=1",
    *of_every_kind(ARMS, hidden=16, layers=1, heads=2, candidates=4),
]


def shrunken(source, *overrides):
    """The recipe with tiny sizes; rows are cut to what two steps need."""
    loaded = recipes.load(source, [*SMALL, *overrides], schemas=SCHEMAS)
    rows = [f"data.stream.{i}.rows.rows=60" for i in range(len(loaded.data.stream))]
    rows += [f"data.evaluation.{split}.rows=8" for split in loaded.data.evaluation] + [
        "data.feedback.rows.rows=40"
    ]
    return recipes.load(source, [*SMALL, *overrides, *rows], schemas=SCHEMAS)


PACKAGED = sorted(recipes.packaged())


def language(sources):
    """Those that are read as language; tests/vision/test_recipes.py has the others."""
    return [
        source for source in sources if recipes.load(source, schemas=SCHEMAS).modality == "language"
    ]


def two_steps(recipe):
    modality = MODALITIES[recipe.modality]()
    result = train(Run(recipe, modality.build(recipe, modality.load(recipe))))
    assert result.spent.steps == 2
    assert result.final.keys() == result.step0.keys()


@pytest.mark.parametrize("name", language(PACKAGED))
def test_packaged(name):
    two_steps(shrunken(name))


PAPER = sorted((REPOSITORY / "language" / "paper").glob("*.yaml"))


@pytest.mark.data
@pytest.mark.parametrize(
    "path",
    language(path for path in sorted(REPOSITORY.rglob("*.yaml")) if path not in PAPER),
    ids=lambda path: path.stem,
)
def test_in_the_repository(path, shared_data):
    two_steps(shrunken(path, f"data.root={shared_data}"))


COLUMNS = (
    "question",
    "answer",
    "problem",
    "solution",
    "instruction",
    "input",
    "output",
    "query",
    "response",
    "text",
    "content",
    "generated_solution",
)


def local(rows, folder, name):
    """The same rows from a file of the test's, whatever the recipe reads them from: every column
    that any recipe names.
    """
    word = "".join(letter for letter in name if letter.isalpha())
    lines = [
        {column: f"{word} {column} {number} of some" for column in COLUMNS} for number in range(60)
    ]
    for line in lines:
        line["answer"] += " #### 7"
        line["solution"] += r" \boxed{7}"
        line["response"] += " The answer is: 7"
        if rows.get("format") == "mmlu@1":
            line |= {"choices": ["this", "that"], "answer": 1}
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    kept = {
        key: rows[key]
        for key in ("text", "prompt", "template", "solution", "format", "columns")
        if rows.get(key)
    }
    return {"kind": "jsonl", "path": f"{name}.jsonl", "rows": 40, **kept}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_no_public_set_brings_what_a_run_refuses(path):
    """NuminaMath has GSM8K's own questions; MetaMathQA repeats each question in all rows of the
    types AnsAug; some answers of Alpaca are empty."""
    data = recipes.load(path, schemas=SCHEMAS).model_dump(mode="json")["data"]
    for rows in (source["rows"] for source in data["stream"]):
        where = rows.get("where") or {}
        if "numina" in rows["path"].lower():
            assert "gsm8k" in where["source"]["none_of"]
        if "MetaMathQA" in rows["path"]:
            tasks = data["feedback"]["tasks"].values()
            kept = [task["rows"]["where"] for task in tasks if task["rows"]["path"] == rows["path"]]
            assert all(each["type"]["one_of"] == where["type"]["none_of"] for each in kept) and kept
        if "alpaca" in rows["path"]:
            assert data["on_bad_row"] == "skip"


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_recipes(path, tmp_path):
    """With random weights of a tiny model, local rows in the place of the hub's, and everything
    else as it is written.
    """
    result = recipes.load(path, schemas=SCHEMAS).model_dump(mode="json")
    data = result["data"]
    for number, source in enumerate(data["stream"]):
        source["rows"] = local(source["rows"], tmp_path, f"stream{number}")
    named = data["feedback"]["tasks"] or {"feedback": data["feedback"]}
    for name, task in named.items():
        task["rows"] = local(task["rows"], tmp_path, f"task{name}")
        task["batch_size"] = 4
    data["evaluation"] = {
        name: local(rows, tmp_path, f"held{name}") for name, rows in data["evaluation"].items()
    }
    result["learner"] |= {
        "model": None,
        "dtype": "float32",
        "accumulate": 2,
        "aligned_blocks": 1,
        "config": {
            "model_type": "qwen2",
            "vocab_size": 96,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
    }
    result["designer"] |= {"hidden": 16, "layers": 1, "heads": 2, "candidates": 8}
    result["evaluate"] |= {"new_tokens": 4, "every": 2}
    result |= {"budget": {"steps": 2}, "threads": 1}
    data["batch_size"], data["root"] = 2, str(tmp_path)
    (tmp_path / "small.yaml").write_text(json.dumps(result), encoding="utf-8")
    two_steps(recipes.load(tmp_path / "small.yaml", schemas=SCHEMAS))


@pytest.mark.parametrize("path", sorted(REPOSITORY.rglob("*.yaml")), ids=lambda path: path.stem)
def test_opens_with_its_command(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# vpretrain ") and path.name in first


@pytest.mark.parametrize("name", ["demo-language", "demo-language-minority"])
def test_the_packaged_learner_is_an_ordinary_folder(name):
    """It opens with transformers alone, and its tokenizer reads the generator's text without
    unknown words.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from vpretrain.language.data import word_problems
    from vpretrain.models.load_errors import ASSETS

    folder = ASSETS / recipes.load(name, schemas=SCHEMAS).learner.model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 3e5 < sum(p.numel() for p in model.parameters()) < 1e6
    text = word_problems.problems("test", 1, seed=0)[0]["problem"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
