"""A working folder with a small recipe and its rows, and commands in it."""

import json

import pytest

from vpretrain.language.data import word_problems

TINY = r"""modality: language
description: Tiny.
arm: onehot
threads: 1
budget: {steps: 2}
data:
  root: data
  window_tokens: 48
  batch_size: 2
  stream:
    - {name: problems, rows: {kind: jsonl, path: stream.jsonl, prompt: problem, solution: solution}}
    - {name: prose, rows: {kind: jsonl, path: prose.jsonl, text: text}}
  feedback:
    rows: {kind: jsonl, path: feedback.jsonl, prompt: problem, solution: solution}
    batch_size: 8
    max_tokens: 64
  evaluation:
    test: {kind: jsonl, path: test.jsonl, prompt: problem, solution: solution}
learner:
  config: {model_type: llama, vocab_size: 96, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2,
    num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128, tie_word_embeddings: false}
  aligned_blocks: 1
  learning_rate: 1e-3
designer: {kind: token_weights}
designers:
  closed_form: {candidates: 4}
  ascent: {candidates: 4, hidden: 8, layers: 1, heads: 2}
  field: {candidates: 4, hidden: 8, layers: 1, heads: 2}
value: {meta_period: 2, settle_steps: 1}
evaluate: {split: test, answer: '= ([\d ]+)', new_tokens: 2}
"""


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


STREAM, FEEDBACK, TEST = (
    word_problems.problems(split, 24, seed=0) for split in ("stream", "feedback", "test")
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a recipe on small JSONL files, good ones and bad ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "tiny.yaml").write_text(TINY)
    unsolved = [*FEEDBACK[:10], {"problem": "?"}, {"problem": "?", "solution": " "}, *FEEDBACK[10:]]
    files = {
        "stream.jsonl": lines(STREAM),
        "prose.jsonl": lines(word_problems.chatter(24, seed=0)),
        "feedback.jsonl": lines(FEEDBACK),
        "test.jsonl": lines(TEST),
        "empty.jsonl": "\n\n",
        "unsolved.jsonl": lines(unsolved),
        "torn.jsonl": lines(FEEDBACK) + '{"problem": "1 +',
        "leaky-stream.jsonl": lines([*STREAM, FEEDBACK[3]]),
        "leaky-test.jsonl": lines([*TEST, FEEDBACK[5]]),
    }
    (tmp_path / "data").mkdir()
    for name, text in files.items():
        (tmp_path / "data" / name).write_text(text)
    (tmp_path / "data" / "binary.jsonl").write_bytes(bytes(range(256)) * 8)
    return tmp_path


@pytest.fixture
def call(here, command):
    """The same in the working folder."""
    return command


def files_in(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }
