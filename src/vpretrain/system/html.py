"""HTML and SVG as text.

Everything that is not :class:`Markup` is escaped, so data cannot become a tag.
"""

from __future__ import annotations

import html
import re
from importlib import resources

_VOID = {"br", "hr", "img", "link", "meta"}
# Characters not allowed in HTML: control characters, and lone surrogates, which JSON permits.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


# The browser must not run or load anything: a second safeguard in addition to escaping.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Markup(str):
    """Text that is already HTML and is inserted unescaped."""


def printable(value: object) -> str:
    """Returns the value as text, with unprintable characters replaced."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))


def escaped(value: object) -> Markup:
    """Escapes text for HTML; :class:`Markup` is returned as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(printable(value)))


def joined(*parts: object) -> Markup:
    """Concatenates the parts, each escaped."""
    return Markup("".join(map(escaped, parts)))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Returns one element.

    Args:
        name: of the element; never from data.
        children: escaped, unless they are :class:`Markup`.
        attributes: names in Python spelling (``class_``, ``aria_label``); None and False omit an
            attribute, True gives it without a value.
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
    """Returns the text of markup, for a terminal."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def name(text: object, **attributes: object) -> Markup:
    """Returns a name from the data as an isolated element.

    It may break after an underscore, slash or hyphen.
    """
    pieces = re.split(r"(?<=[_/\-])", printable(text))
    inner = Markup("<wbr>".join(map(escaped, pieces)))
    return tag("bdi", inner, class_="name", **attributes)


def document(title: str, *content: Markup, style: str = "") -> str:
    """Returns a whole page: a single file without scripts or network access.

    Args:
        title: of the window; escaped.
        content: of the page.
        style: CSS, appended to the shared style sheet.
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
