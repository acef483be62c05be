"""Rows that are tokens already: as `datasets` saves them, in every role, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.language.data.small_recipe import FEEDBACK, STREAM, TEST, recipe, refused, texts
from vpretrain.language.data import word_problems
from vpretrain.language.data.rows import encode
from vpretrain.language.modality import Language
from vpretrain.studies.check import check
from vpretrain.system.errors import UserError

KEYS = "tokens: input_ids, labels: labels"


def tokenised(rows: list[dict[str, Any]], *, labels: bool = True) -> list[dict[str, Any]]:
    """As a tokenizer and a collator of transformers leave prompts with solutions."""
    tokenizer, made = word_problems.tokenizer(), []
    for row in rows:
        asked, answer = (
            tokenizer(row[part], add_special_tokens=False)["input_ids"]
            for part in ("problem", "solution")
        )
        ids = [*asked, *answer, tokenizer.eos_token_id]
        masked = {"labels": [-100] * len(asked) + ids[len(asked) :]} if labels else {}
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), **masked})
    return made


def saved(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets = pytest.importorskip("datasets")
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def tokens(here: Path) -> Path:
    saved(here / "stream.parquet", tokenised(STREAM))
    saved(here / "feedback.parquet", tokenised(FEEDBACK))
    saved(here / "test.parquet", tokenised(TEST))
    return here


def of(name: str, keys: str = KEYS, ending: str = "parquet") -> str:
    return f"{{kind: {'jsonl' if ending == 'jsonl' else ending}, path: {name}.{ending}, {keys}}}"


IN_TOKENS = [
    f"data.stream.0.rows={of('stream')}",
    f"data.feedback.rows={of('feedback')}",
    f"data.evaluation.test={of('test')}",
]
SPACE = "data.separator=' '"
LEARNER = "learner={config: {model_type: llama, vocab_size: 128, hidden_size: 16, "
LEARNER += "intermediate_size: 16, num_hidden_layers: 2, num_attention_heads: 2}}"


def test_tokens_are_the_documents_that_the_text_makes_in_every_role(tokens: Path) -> None:
    tokenizer = word_problems.tokenizer()
    made, text = texts(tokens, *IN_TOKENS), texts(tokens, SPACE)
    for rows, same in (
        (made.stream["problems"], text.stream["problems"]),
        (made.feedback, text.feedback),
        (made.evaluation, text.evaluation),
    ):
        documents, expected = encode(rows, tokenizer)[0], encode(same, tokenizer)[0]
        assert [d.ids for d in documents] == [d.ids for d in expected]
        assert [d.predicted for d in documents] == [d.predicted for d in expected]
    assert made.feedback[2].origin == f"{tokens}/feedback.parquet:3"


def test_a_recipe_of_tokens_passes_check_and_its_rows_are_used_as_they_are(tokens: Path) -> None:
    result = recipe(tokens, *IN_TOKENS, LEARNER)
    materials = Language().load(result)
    first = materials.sources[0].documents[0]
    assert list(first.ids) == tokenised(STREAM)[0]["input_ids"]
    assert materials.feedback[0].predicted[-1] and not materials.feedback[0].predicted[0]
    (tokens / "steer.yaml").write_text((tokens / "tiny.yaml").read_text())
    assert check(str(tokens / "steer.yaml"), [f"data.root={tokens}", *IN_TOKENS, LEARNER]) == []


def test_long_rows_without_labels_are_cut_into_chunks_and_labelled_ones_at_the_right(
    here: Path,
) -> None:
    ids = list(range(2, 22))
    saved(here / "a.jsonl", [{"input_ids": ids}])
    half = [*([-100] * 4), *ids[4:8], *([-100] * 4), *ids[12:]]
    saved(here / "b.jsonl", [{"input_ids": ids, "labels": half}])
    rows = texts(here, f"data.stream.0.rows={of('a', 'tokens: input_ids', 'jsonl')}")
    documents, counts = encode(rows.stream["problems"], word_problems.tokenizer(), max_tokens=8)
    assert [d.ids for d in documents] == [
        ids[:8],
        ids[8:16],
    ] and counts.tails == counts.chunked == 1
    rows = texts(here, f"data.stream.0.rows={of('b', KEYS, 'jsonl')}")
    ((document,), counts) = encode(
        rows.stream["problems"], word_problems.tokenizer(), max_tokens=14
    )
    assert document.ids == ids[:14] and counts.truncated == 1
    assert document.predicted == [False] * 4 + [True] * 4 + [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"input_ids": [3, 4], "labels": [-100]}, "not as many labels"),
        ({"input_ids": [3, 4], "labels": [-100, -100]}, "no token of this row is predicted"),
        ({"input_ids": [3, 4, 5], "labels": [4, 5, -100]}, "labels are not shifted"),
        ({"input_ids": [3, -4], "labels": [3, -4]}, "holds no document"),
        ({"input_ids": [], "labels": []}, "holds no document"),
        ({"input_ids": [3, 4.5], "labels": [3, 4]}, "no list of token ids"),
        ({"input_ids": "3 4", "labels": [3, 4]}, "a string, and no list"),
        ({"labels": [3, 4]}, "no column 'input_ids'"),
    ],
)
def test_a_broken_row_of_tokens_is_named_by_line(
    here: Path, row: dict[str, Any], said: str
) -> None:
    saved(here / "bad.jsonl", [*tokenised(STREAM[:2]), row])
    problems = refused(here, f"data.stream.0.rows={of('bad', KEYS, 'jsonl')}")
    assert said in problems["bad.jsonl:3"].message


def test_ids_that_the_tokenizer_does_not_have_are_named_by_line(here: Path) -> None:
    size = len(word_problems.tokenizer())
    saved(
        here / "other.jsonl",
        [*tokenised(STREAM[:1]), {"input_ids": [3, size], "labels": [3, size]}],
    )
    source = f"data.stream.0.rows={of('other', KEYS, 'jsonl')}"
    with pytest.raises(UserError, match="none of the learner's tokenizer") as caught:
        Language().load(recipe(here, source, LEARNER))
    (problem,) = caught.value.problems
    assert problem.where == f"{here}/other.jsonl:2" and problem.value == str(size)


def test_feedback_in_tokens_that_stands_in_the_stream_as_text_is_refused(here: Path) -> None:
    saved(here / "feedback.parquet", tokenised([*FEEDBACK[:11], STREAM[0]]))
    with pytest.raises(UserError, match="token by token") as caught:
        Language().load(recipe(here, IN_TOKENS[1], LEARNER, SPACE))
    assert "feedback.parquet:12" in caught.value.problems[0].value
    assert "stream.jsonl:1" in caught.value.problems[0].value


def test_evaluated_text_that_stands_in_the_stream_in_tokens_is_refused(here: Path) -> None:
    saved(here / "stream.parquet", tokenised([*STREAM, TEST[1]]))
    with pytest.raises(UserError, match="token by token") as caught:
        Language().load(recipe(here, IN_TOKENS[0], LEARNER, SPACE))
    (problem,) = caught.value.problems
    assert problem.where == "data.evaluation" and "test rows are also in the stream" in str(problem)
    assert "test.jsonl:2" in problem.value and "stream.parquet" in problem.value


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"data.stream.0.rows={of('stream', KEYS + ', text: text')}"], "leave out text"),
        ([f"data.stream.0.rows={of('stream', 'labels: labels')}"], "goes together with `tokens`"),
        ([*IN_TOKENS, "evaluate.answer='= (.*)'"], "asks for generated answers"),
        (
            [
                "data.feedback.rows=null",
                f"data.feedback.tasks.a={{kind: reward, checker: exact, rows: {of('feedback')}}}",
            ],
            "reads text, and these rows are tokens",
        ),
    ],
)
def test_what_tokens_cannot_be_used_for_is_refused(
    tokens: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        texts(tokens, *overrides)
    assert said in str(caught.value)
