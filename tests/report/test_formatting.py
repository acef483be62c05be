"""Numbers and lists as people read them."""

from __future__ import annotations

import pytest

from vpretrain.report.formatting import (
    brief,
    compact,
    decimals_for,
    fixed,
    fraction,
    listed,
    p_phrase,
    p_value,
    short,
    signed,
)


def test_numbers_read_as_people_write_them() -> None:
    assert fixed(-1234.567, 1) == "−1,234.6"
    assert signed(0.5, 2) == "+0.50"
    assert [brief(value) for value in (0.0123456, 12.34, 12345.6, 1.5e-7, 0.0)] == [
        "0.0123",
        "12.3",
        "12,346",
        "1.50e−7",
        "0.00",
    ]
    assert [compact(value) for value in (950, 12_000, 1_500_000, 2e12)] == [
        "950",
        "12k",
        "1.5M",
        "2T",
    ]
    assert [short(value) for value in (5e-5, 0.25, -3e-8)] == ["5e−5", "0.25", "−3e−8"]
    assert [fraction(value) for value in (0.0012, 0.5, 1.0)] == ["0.1%", "50%", "100%"]
    assert [p_value(p) for p in (None, 0.0001, 0.0314, 0.43)] == [
        "–",
        "<\u00a00.001",
        "0.031",
        "0.43",
    ]
    assert p_phrase(0.0001) == "p\u00a0<\u00a00.001"
    assert fixed(float("nan"), 2) == "not finite"


@pytest.mark.parametrize(
    ("spreads", "decimals"), [([0.0123, 1.0], 3), ([0.00079], 4), ([None, 0.0], 4), ([1e-9], 6)]
)
def test_decimals_show_the_smallest_spread(spreads: list[float | None], decimals: int) -> None:
    assert decimals_for(spreads) == decimals


def test_lists_in_words() -> None:
    assert listed([]) == []
    assert listed(["a"]) == [""]
    assert listed(["a", "b", "c"]) == [", ", " and ", ""]
