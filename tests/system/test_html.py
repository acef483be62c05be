from __future__ import annotations

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
