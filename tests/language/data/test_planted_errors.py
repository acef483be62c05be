"""Planted noise: one digit of every number, in a share of the rows."""

import re

import pytest

from vpretrain.language.data.planted_errors import corrupt_digits
from vpretrain.language.data.rows import Row

ROWS = [
    Row(f"what is {n} plus 7 ?", f"{n} + 7 = {n + 7} .", f"r:{n}", "s") for n in range(100, 300)
]


def digits_that_differ(one: Row, other: Row) -> list[int]:
    numbers = zip(re.findall(r"\d+", one.text), re.findall(r"\d+", other.text), strict=True)
    return [sum(a != b for a, b in zip(x, y, strict=True)) for x, y in numbers]


def test_every_number_of_a_wrong_row_has_one_wrong_digit():
    for row, wrong in zip(ROWS, corrupt_digits(ROWS, 1.0, seed=0), strict=True):
        assert digits_that_differ(row, wrong) == [1, 1, 1]
        assert (wrong.prompt, wrong.origin, wrong.source) == (row.prompt, row.origin, row.source)


def test_the_share_of_wrong_rows_is_that_asked_for():
    assert list(corrupt_digits(ROWS, 0.0, seed=0)) == ROWS
    wrong = sum(a != b for a, b in zip(ROWS, corrupt_digits(ROWS, 0.5, seed=0), strict=True))
    assert wrong == pytest.approx(100, abs=25)


def test_a_seed_plants_the_same_errors():
    one, again, other = (list(corrupt_digits(ROWS, 0.5, seed=seed)) for seed in (1, 1, 2))
    assert one == again != other
