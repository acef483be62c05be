"""Files of rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.language.data import small_recipe
from tests.language.data.questions import OTHER, QUESTION, write


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    return write(
        tmp_path / "test.jsonl",
        {"question": QUESTION, "answer": "#### 18"},
        {"question": OTHER, "answer": "3"},
    )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name, rows in (
        ("stream", small_recipe.STREAM),
        ("feedback", small_recipe.FEEDBACK),
        ("test", small_recipe.TEST),
    ):
        small_recipe.write(tmp_path / f"{name}.jsonl", rows)
    return tmp_path
