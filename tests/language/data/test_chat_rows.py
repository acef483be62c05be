"""Rows of `messages` and of prompt, chosen, rejected: in stream, feedback and evaluation, as data
sets have them."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.language.data.small_recipe import FEEDBACK, STREAM, TEST, recipe, refused
from vpretrain.language.data import word_problems
from vpretrain.language.init_places import Place
from vpretrain.language.modality import Language
from vpretrain.run.run import Run
from vpretrain.run.train import train

TEMPLATE = (
    "{% if tools %}tools {{ tools | length }} . {% endif %}"
    "{% for m in messages %}{{ m['role'] ~ ' : ' ~ m['content'] ~ ' . ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
SIZES = "hidden_size: 16, intermediate_size: 16, num_hidden_layers: 2, num_attention_heads: 2"


def talks(rows: list[dict[str, str]], **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": row["problem"]},
                {"role": "assistant", "content": row["solution"]},
            ],
            **more,
        }
        for row in rows
    ]


def pairs(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": row["problem"]}],
            "chosen": [{"role": "assistant", "content": row["solution"]}],
            "rejected": [{"role": "assistant", "content": f"{row['solution']} no"}],
        }
        for row in rows
    ]


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).to_parquet(path)


@pytest.fixture
def learner(here: Path) -> str:
    """Overrides of a learner whose tokenizer has a chat template."""
    tokenizer = word_problems.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(here / "tokenizer")
    return f"learner={{tokenizer: {here}/tokenizer, config: {{model_type: llama, vocab_size: 128, {SIZES}}}}}"


def of(name: str, more: str = "format: chat") -> str:
    return f"{{kind: parquet, path: {name}.parquet, {more}}}"


def test_messages_in_every_role_and_preferences_steer_a_run(here: Path, learner: str) -> None:
    for name, rows in (("stream", STREAM), ("test", TEST)):
        save(here / f"{name}.parquet", talks(rows))
    save(here / "feedback.parquet", pairs(FEEDBACK))
    task = f"{{kind: preference, rejected: rejected, rows: {of('feedback', 'format: chat, prompt: prompt, solution: chosen')}}}"
    results = recipe(
        here,
        learner,
        f"data.stream.0.rows={of('stream')}",
        "data.feedback.rows=null",
        f"data.feedback.tasks.style={task}",
        f"data.evaluation.test={of('test')}",
        "arm=token_weights",
        "value={meta_period: 1, settle_steps: 1}",
        "learner.aligned_blocks=1",
        "threads=1",
    )
    materials = Language().load(results)
    row, document = STREAM[0], materials.sources[0].documents[0]
    text = materials.tokenizer.decode(list(document.ids))
    assert text.startswith(f"<unk> : {row['problem']} . <unk> : {row['solution']}")
    predicted = [i for i, p in zip(document.ids, document.predicted, strict=True) if p]
    assert materials.tokenizer.decode(predicted).startswith(row["solution"])
    result = train(Run(results, Language().build(results, materials)))
    assert set(result.final) == {"test/nll"}


def test_tools_are_given_to_the_template(here: Path, learner: str) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    rows = [*talks(STREAM[:2], tools=json.dumps(tools)), *talks(STREAM[2:4], tools=tools)]
    path = here / "stream.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = "{kind: jsonl, path: stream.jsonl, format: chat, columns: {tools: tools}}"
    stream = Language().load(recipe(here, learner, f"data.stream.0.rows={keys}")).texts.stream
    assert [row.conversation["tools"] for row in stream["problems"]] == [tools] * 4
    path.write_text(json.dumps(talks(STREAM[:1], tools="{")[0]))
    problems = refused(here, f"data.stream.0.rows={keys}")
    assert "the tools are no JSON" in problems["stream.jsonl:1"].message


def test_wrong_digits_are_in_what_a_conversation_trains_on(here: Path, learner: str) -> None:
    save(here / "stream.parquet", talks(STREAM))

    def told(more: str) -> list[tuple[str, str]]:
        rows = of("stream", f"format: chat{more}")
        materials = Language().load(recipe(here, learner, f"data.stream.0.rows={rows}"))
        told = []
        for document in materials.sources[0].documents:
            parts = zip(document.ids, document.predicted, strict=True)
            sides: tuple[list[int], list[int]] = ([], [])
            for token, predicted in parts:
                sides[bool(predicted)].append(token)
            asked, answered = map(materials.tokenizer.decode, sides)
            told.append((asked, answered))
        return told

    for (asked, right), (still, wrong) in zip(told(""), told(", corrupt_digits: 1.0"), strict=True):
        assert still == asked
        assert wrong != right and re.sub(r"\d", "", wrong) == re.sub(r"\d", "", right)


def test_dates_and_decimals_of_messages_reach_the_template_as_text(
    here: Path, learner: str
) -> None:
    """As in WildChat, whose messages carry their time."""
    rows = talks(STREAM, tools=[{"since": date(2023, 4, 9)}])
    for row in rows:
        for message in row["messages"]:
            message["timestamp"] = datetime(2023, 4, 9, 0, 2, 53, tzinfo=UTC)
            message["header"] = {"costs": [Decimal("0.50")], "redacted": False, "turn": 3}
    save(here / "stream.parquet", rows)
    keys = of("stream", "format: chat, columns: {tools: tools}")
    held_out = "data.stream.0.held_out={fraction: 0.2}"
    texts = Language().load(recipe(here, learner, f"data.stream.0.rows={keys}", held_out)).texts
    for row in texts.stream["problems"]:
        assert row.conversation["tools"] == [{"since": "2023-04-09"}]
        for message in row.conversation["messages"]:
            assert message["timestamp"] == "2023-04-09 00:02:53+00:00"
            assert message["header"] == {"costs": ["0.50"], "redacted": False, "turn": 3}


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        (talks(FEEDBACK), {"format": "chat"}),
        (pairs(FEEDBACK), {"prompt": "prompt", "solution": "chosen", "format": "chat"}),
        ([{"input_ids": [1, 2], "labels": [-100, 2]}], {"tokens": "input_ids", "labels": "labels"}),
    ],
)
def test_init_knows_the_columns_of_data_sets(
    tmp_path: Path, rows: list[dict[str, Any]], keys: dict[str, str]
) -> None:
    save(tmp_path / "rows.parquet", rows)
    place = Place("--feedback", str(tmp_path / "rows.parquet"))
    section = place.section(solutions=True)
    assert section == {"kind": "parquet", "path": str(tmp_path / "rows.parquet"), **keys}
