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
from vpretrain.system.html import Markup, escaped, joined, name, printable, tag


def test_text_from_data_cannot_become_a_tag_or_leave_an_attribute() -> None:
    assert tag("p", "<b>&") == "<p>&lt;b&gt;&amp;</p>"
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert tag("i", title='" onclick="x') == '<i title="&quot; onclick=&quot;x"></i>'
    assert joined("<", Markup("<br>")) == "&lt;<br>"
    assert "<script" not in name("</script><script>alert(1)</script>")


def test_characters_that_no_file_can_hold_are_replaced() -> None:
    assert (
        printable("a\x00b\ud800c\nd") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\nd"
    )
    escaped("\udfff\x1b[31m").encode("utf-8")


def test_attributes_without_value_and_left_out() -> None:
    assert tag("details", open=True, class_=None, hidden=False) == "<details open></details>"
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'


def test_names_may_break_after_an_underscore() -> None:
    assert name("a_b") == '<bdi class="name">a_<wbr>b</bdi>'


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
