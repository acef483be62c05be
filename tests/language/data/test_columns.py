"""From named columns to a row, and what can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.language.data.files_of_rows import rows_of, the_problem, write
from vpretrain.language.data.columns import template_pieces
from vpretrain.language.data.rows import Row
from vpretrain.system.errors import Problem


def test_a_missing_column_lists_those_that_are_there(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"problem": "1+1?", "answer": "2", "id": 7})
    problem = the_problem(file, prompt="problem", solution="solution")
    assert problem.value == "'solution'"
    assert problem.accepted == "'problem', 'answer', 'id'"
    assert "data.stream.0.rows.solution" in problem.message


def test_an_empty_solution_or_prompt_is_a_problem(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl", {"q": "1+1?", "a": " "}, {"q": "", "a": "2"}, {"q": "1+2?", "a": "3"}
    )
    one, two, row = rows_of(file, prompt="q", solution="a")
    assert isinstance(one, Problem) and isinstance(two, Problem) and isinstance(row, Row)
    assert (one.where, two.where) == (f"{file}:1", f"{file}:2")
    assert "column 'a', the solution, is empty" in one.message
    assert "column 'q', the prompt, is empty" in two.message


def test_a_template_writes_the_prompt(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"q": "2 {x}?", "hint": "", "a": "4"})
    (row,) = rows_of(file, template="{{Q}}: {q}{hint}\nAnswer:", solution="a")
    assert row == Row("{Q}: 2 {x}?\nAnswer:", "4", f"{file}:1", "s", "2 {x}? ")


def test_an_unknown_field_lists_the_columns_there_are(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"question": "2?", "answer": "4"})
    problem = the_problem(file, template="Q: {questoin}", solution="answer")
    assert problem.where == f"{file}:1"
    assert (
        "no column 'questoin' (did you mean 'question'?): set data.stream.0.rows.template"
        in problem.message
    )
    assert problem.accepted == "'question', 'answer'"


def test_a_field_without_text_is_a_problem(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"q": None, "a": "4"})
    assert "column 'q' is null" in the_problem(file, template="Q: {q}", solution="a").message


@pytest.mark.parametrize("template", ["Question:", "{}", "{q!r}", "{q:>8}", "{q", ""])
def test_a_template_that_is_none(template: str) -> None:
    with pytest.raises(ValueError):  # in Python's own words where a brace is left open
        template_pieces(template)
