"""HTML and SVG as text. Whatever is not :class:`Markup` already is escaped, so that data cannot
become a tag.
"""

from __future__ import annotations

import html
import re

_VOID = {"br", "hr", "link", "meta"}
# What no HTML file can hold as such: control characters, and halves of surrogate pairs that JSON
# lets through.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already and goes onto the page as it is."""


def printable(value: object) -> str:
    """The value's text, with a replacement character for each one that a file cannot hold."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))


def escaped(value: object) -> Markup:
    """Text as HTML that shows it; :class:`Markup` is left as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(printable(value)))


def joined(*parts: object) -> Markup:
    """The parts one after the other, each escaped."""
    return Markup("".join(map(escaped, parts)))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element.

    Args:
        name: of the element; ours, never from data.
        children: escaped, unless they are :class:`Markup`.
        attributes: names as Python allows them (``class_``, ``aria_label``); None and False leave
            one out, True gives it without a value.
    """
    given = []
    for key, value in attributes.items():
        label = key.rstrip("_").replace("_", "-")
        if value is True:
            given.append(f" {label}")
        elif value is not None and value is not False:
            given.append(f' {label}="{html.escape(printable(value))}"')
    opened = f"<{name}{''.join(given)}>"
    return Markup(opened if name in _VOID else f"{opened}{joined(*children)}</{name}>")


def name(text: object, **attributes: object) -> Markup:
    """A name from the data: set apart from the text around it, and free to break after an
    underscore or a slash.
    """
    pieces = re.split(r"(?<=[_/\-])", printable(text))
    inner = Markup("<wbr>".join(map(escaped, pieces)))
    return tag("bdi", inner, class_="name", **attributes)
