"""Extraction of the answer from a completion: strictly, in the form the prompt asks for, or
flexibly, wherever it is.

Every function takes the completion and returns the answer as text, or None if there is none. They
are versioned with the benchmarks that use them: a change here raises those versions
(``tests/language/evaluation/golden`` has the expected results).
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A minus is a sign only if nothing before it could be subtracted from.
NUMBER = rf"(?:(?<![\w)\]])[-−])?\$?(?:{_DIGITS})(?:\s?/\s?\d+(?!\d*\.\d))?\s?%?"
_NUMBER = re.compile(NUMBER)
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\,)(?=\d{3}(?!\d))")
_LATEX_FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_STATED = re.compile(
    r"answer(?:\s+is|\s*[:=])\s*:?\s*(.+?)(?=\.\s|\.?$|\n)", re.IGNORECASE | re.MULTILINE
)
_FENCE = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_CODE_STARTS = re.compile(
    r"^(?:def |async def |class |import |from |@|[A-Za-z_]\w*\s*=)", re.MULTILINE
)


def last_match(text: str, pattern: str | re.Pattern[str]) -> str | None:
    """The group of the pattern's last match, stripped."""
    matches = re.findall(pattern, text)
    return matches[-1].strip() if matches else None


def plain_match(text: str, pattern: str) -> str | None:
    """:func:`last_match` without white space, commas and trailing points."""
    match = last_match(text, pattern)
    return None if match is None else re.sub(r"[\s,]", "", match).rstrip(".")


def after_hashes(text: str) -> str | None:
    """The rest of the line after the first ``####``; later ones belong to other answers."""
    match = _HASHES.search(text)
    return (trimmed(match[1]) or None) if match else None


def number_after_hashes(text: str) -> str | None:
    """The first number on the line of the first ``####``."""
    answer = after_hashes(_plain(text))
    match = _NUMBER.search(answer) if answer is not None else None
    return match[0].strip() if match else None


def boxed(text: str, *, first: bool = False) -> str | None:
    r"""The content of the last (or ``first``) ``\boxed{...}`` whose braces are balanced; it may
    contain nested braces."""
    starts = [match.end() for match in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]
    for start in starts if first else reversed(starts):
        depth = 1
        for at in range(start, len(text)):
            if text[at] in "{}" and text[at - 1] != "\\":
                depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return trimmed(text[start:at]) or None
    return None


def stated(text: str) -> str | None:
    """The rest of the sentence after the last "answer is ..." or "answer: ..."."""
    match = last_match(text, _STATED)
    return None if match is None else trimmed(match) or None


def last_number(text: str) -> str | None:
    """The last number of the text."""
    return last_match(_plain(text), _NUMBER)


def final_answer(text: str) -> str | None:
    """The marked answer: after ``####``, else in the last box, else after the last "answer is"."""
    return after_hashes(text) or boxed(text) or stated(text)


def any_number(text: str) -> str | None:
    """The last number of the marked answer, else the last number of the text."""
    answer = final_answer(text)
    return (last_number(answer) if answer is not None else None) or last_number(text)


def any_answer(text: str) -> str | None:
    """The marked answer, else the last number of the text."""
    return final_answer(text) or last_number(text)


def first_box(text: str) -> str | None:
    """The content of the first box."""
    return boxed(text, first=True)


def first_box_or_end(text: str) -> str | None:
    """The content of the first box, else the first non-empty line after the last ``Answer:``, else
    the last non-empty line (v1 A.4)."""
    if (answer := first_box(text)) is not None:
        return answer
    _, _, after = text.rpartition("Answer:")
    lines = after.split("\n") if "Answer:" in text else text.split("\n")[::-1]
    return next((trimmed(line) or None for line in lines if line.strip()), None)


def as_written(text: str) -> str | None:
    """The completion without line breaks at its ends; None if it is blank."""
    return text.strip("\r\n") if text.strip() else None


def code(text: str) -> str | None:
    """The Python code of a completion: the first fenced block, or the text from the first statement
    as far as it parses.

    Prose before and after is dropped. If nothing parses, the text from the first statement is
    returned unchanged.
    """
    before, fence, _ = text.partition("```")
    if text.count("```") == 1 and _CODE_STARTS.search(before):
        text = before  # a closing fence that was opened in the prompt, or not at all
    elif fence and (fenced := _FENCE.search(text)):
        return textwrap.dedent(fenced[1]).strip("\r\n") or None
    text = textwrap.dedent(text.expandtabs(4)).replace("```", "")
    match = _CODE_STARTS.search(text)
    if match is None:
        return None
    lines = text[match.start() :].rstrip().split("\n")
    for end in range(len(lines), 0, -1):
        if (statements := _statements("\n".join(lines[:end]))) is None:
            continue
        while statements and isinstance(statements[-1], (ast.Expr, ast.AnnAssign)):
            statements.pop()  # prose such as `Done` and `Note: x` is also valid Python
        if statements:
            return "\n".join(lines[: statements[-1].end_lineno])
    return "\n".join(lines)


def trimmed(text: str) -> str:
    """An answer without surrounding white space, emphasis, math delimiters, final punctuation, and
    parentheses around a single letter."""
    before = None
    while before != text:
        before = text
        text = text.strip().strip("*`").rstrip(".,;:!").strip()
        for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            if (
                len(text) > len(opening + closing)
                and text.startswith(opening)
                and text.endswith(closing)
            ):
                text = text[len(opening) : -len(closing)]
        if re.fullmatch(r"\(?[A-Z]\)", text):
            text = text.strip("()")
    return text


def _plain(text: str) -> str:
    r"""The text with LaTeX's thousands separators (``10{,}080``, ``10,\!080``, ``10\,080``) as
    commas, and ``\frac{1}{2}`` as ``1/2``."""
    return _LATEX_FRACTION.sub(r"\1/\2", _LATEX_COMMA.sub(",", text))


def _statements(program: str) -> list[ast.stmt] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escape sequences are deprecated
        try:
            return ast.parse(program).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
