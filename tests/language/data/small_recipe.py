"""A recipe of a few rows, and what is wrong with its data."""

import json

import pytest

from vpretrain.config.recipe import load
from vpretrain.language.data import word_problems
from vpretrain.language.data.texts import read
from vpretrain.run.modalities import SCHEMAS
from vpretrain.system.errors import UserError

STREAM, FEEDBACK, TEST = (
    word_problems.problems(split, 12, seed=0) for split in ("stream", "feedback", "test")
)


ROWS = "{kind: jsonl, path: %s.jsonl, prompt: problem, solution: solution}"


RECIPE = f"""\
modality: language
description: Tiny.
arm: onehot
budget: {{steps: 1}}
data:
  window_tokens: 48
  batch_size: 2
  separator: ""
  stream: [{{name: problems, rows: {ROWS % "stream"}}}, {{name: prose, rows: {{kind: chatter, rows: 5}}}}]
  feedback: {{rows: {ROWS % "feedback"}, batch_size: 4}}
  evaluation: {{dev: {ROWS % "nowhere"}, test: {ROWS % "test"}}}
learner: {{config: {{model_type: llama}}}}
"""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(here, *overrides):
    (here / "tiny.yaml").write_text(RECIPE)
    return load(here / "tiny.yaml", [f"data.root={here}", *overrides], schemas=SCHEMAS)


def texts(here, *overrides):
    return read(recipe(here, *overrides))


def refused(here, *overrides):
    """The problems by where they are; the folder of the files left out."""
    with pytest.raises(UserError) as caught:
        texts(here, *overrides)
    return {problem.where.replace(f"{here}/", ""): problem for problem in caught.value.problems}
