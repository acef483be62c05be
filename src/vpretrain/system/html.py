"""HTML and SVG as text. Whatever is not :class:`Markup` already is escaped, so that data cannot
become a tag."""

from __future__ import annotations

import html
import re
from importlib import resources

_VOID = {"br", "hr", "img", "link", "meta"}
# What no HTML file can hold as such: control characters, and halves of surrogate pairs that JSON
# lets through.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


# The browser is told to run and to load nothing: a second lock behind the escaping.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


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
    pairs = []
    for key, value in attributes.items():
        label = key.rstrip("_").replace("_", "-")
        if value is True:
            pairs.append(f" {label}")
        elif value is not None and value is not False:
            pairs.append(f' {label}="{html.escape(printable(value))}"')
    opened = f"<{name}{''.join(pairs)}>"
    return Markup(opened if name in _VOID else f"{opened}{joined(*children)}</{name}>")


def plain(markup: Markup) -> str:
    """The text of it, for a terminal."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def name(text: object, **attributes: object) -> Markup:
    """A name from the data: set apart from the text around it, and free to break after an
    underscore or a slash."""
    pieces = re.split(r"(?<=[_/\-])", printable(text))
    inner = Markup("<wbr>".join(map(escaped, pieces)))
    return tag("bdi", inner, class_="name", **attributes)


def document(title: str, *content: Markup, style: str = "") -> str:
    """A whole page: one file without script that asks nothing of the network.

    Args:
        title: of the window; escaped.
        content: of the page.
        style: CSS behind the style sheet that all pages share.
    """
    sheet = resources.files("vpretrain.system").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(f"{sheet}\n{style}")),
    )
    body = tag("body", tag("main", *content))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
