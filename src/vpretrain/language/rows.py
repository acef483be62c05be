"""Rows of text, read from files and turned into token documents.

A row is raw text, or a prompt with the solution that is to be predicted. A document is the row in tokens,
with a mask that says which of them count in the loss (the set ``I(x)`` of eq. 37: the prompt does not, raw
text does throughout).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpretrain.errors import Problem, UserError, user_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST_TAIL_TOKENS = 8
"""The rest of a chunked raw text is kept from this length on, end token included: less teaches little."""

_PROBLEMS_SHOWN = 5
_FILES_SHOWN = 10
_HALF_PAIR = re.compile("[\ud800-\udfff]")  # json lets these through, tokenizers do not
_ROWS_PER_CALL = 1_000  # of the tokenizer: enough to use its threads, little enough to hold in memory twice


@dataclass(frozen=True)
class Row:
    """One row of text, after its columns were named.

    Args:
        prompt: what is given and never predicted; empty for raw text.
        text: what is predicted: the raw text, or the solution.
        origin: where it came from (``stream.jsonl:12``, ``word_problems:12``), for messages and for
            ``explain``.
        source: name of the source that it belongs to.
    """

    prompt: str
    text: str
    origin: str
    source: str


@dataclass(frozen=True)
class Document:
    """One row, or one chunk of it, in tokens.

    Args:
        ids: token ids of prompt, text and end token, in this order.
        predicted: as long as ``ids``; True where this token counts in the loss. The first token of a document
            has nothing before it to be predicted from: a batch masks it even where this says True.
        origin: as in :class:`Row`; the chunks of one row share it.
        source: as in :class:`Row`.
    """

    ids: list[int]
    predicted: list[bool]
    origin: str
    source: str


@dataclass(frozen=True)
class Encoded:
    """What :func:`encode` did to the rows, so that nothing goes missing in silence.

    Args:
        rows: rows that went in.
        documents: documents that came out.
        tokens: tokens in them.
        dropped: rows left out, because the prompt leaves no room for a token of the solution.
        empty: rows left out, because the tokenizer finds nothing in them that could be predicted.
        truncated: solutions cut at the right, their end token with it.
        chunked: raw texts cut into several documents.
        tails: chunked raw texts whose rest was shorter than ``SHORTEST_TAIL_TOKENS`` and left out.
    """

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    dropped: int = 0
    empty: int = 0
    truncated: int = 0
    chunked: int = 0
    tails: int = 0


def read_jsonl(
    path: str | Path,
    *,
    name: str,
    text: str | None = None,
    prompt: str | None = None,
    solution: str | None = None,
    where: str,
) -> list[Row]:
    """Reads a local JSONL file (UTF-8, one object a line): raw text, or prompts with their solutions.

    Args:
        path: the file. Blank lines are skipped, a byte order mark and CRLF are fine.
        name: name of the source, for :attr:`Row.source`.
        text: column of the raw text; give either this, or both of ``prompt`` and ``solution``.
        prompt: column of the prompt.
        solution: column of what follows the prompt and is to be predicted.
        where: dotted recipe key of the path (``data.stream[0].path``), for messages.

    Returns:
        The rows in the order of the file; at least one.

    Raises:
        UserError: there is no such file, it cannot be read, it holds no row, or rows are unusable: the first
            five of them by ``file:line``, and how many more there are.
    """
    path = Path(path)
    parent = where.rpartition(".")[0] or where
    if text is not None and prompt is None and solution is None:
        columns = {"text": text}
    elif text is None and prompt is not None and solution is not None:
        columns = {"prompt": prompt, "solution": solution}
    else:
        given = {"text": text, "prompt": prompt, "solution": solution}
        raise user_error(
            parent,
            "the columns to read are not clear: name either the one that holds raw text, or both of a pair",
            value={role: column for role, column in given.items() if column is not None},
            accepted="text=COLUMN, or prompt=COLUMN and solution=COLUMN",
        )
    rows: list[Row] = []
    problems: list[Problem] = []
    bad_rows = 0
    for number, line in _lines(path, where):
        origin = f"{path}:{number}"
        found = _cells(line, columns, origin, parent)
        if isinstance(found, dict):
            rows.append(Row(found.get("prompt", ""), found.get("text") or found["solution"], origin, name))
            continue
        bad_rows += 1
        if bad_rows <= _PROBLEMS_SHOWN:
            problems.append(found)
    if bad_rows > len(problems):
        message = f"{bad_rows - len(problems)} more rows of this file are unusable"
        problems.append(Problem(str(path), "", "", message))
    if problems:
        raise UserError(*problems)
    if not rows:
        message = "the file holds no rows: fill it, or name another"
        raise user_error(where, message, value=str(path), accepted="one JSON object a line")
    return rows


def _lines(path: Path, where: str) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1, without the byte order mark of the first."""
    try:
        if path.is_dir() or not path.exists():
            raise _missing(path, where)
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except OSError as error:
        message = f"the file cannot be read: {error.strerror}"
        raise user_error(where, message, value=str(path), accepted="a readable JSONL file") from error


def _missing(path: Path, where: str) -> UserError:
    folder = path.parent
    if path.is_dir():
        message = "this is a folder: name a file in it"
        accepted = _files(path, ".jsonl")
    elif folder.is_dir():
        message = "there is no such file: correct the path, or make the file"
        accepted = _files(folder, path.suffix)
    else:
        message = f"there is no such file, nor its folder: correct the path (it starts at {Path.cwd()})"
        accepted = f"a file in a folder that exists; {folder} does not"
    return user_error(where, message, value=str(path), accepted=accepted)


def _files(folder: Path, ending: str) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and entry.suffix == ending)
    if not names:
        return f"a JSONL file (no {'*' + ending if ending else 'file without an ending'} is in {folder})"
    more = f" and {len(names) - _FILES_SHOWN} more" if len(names) > _FILES_SHOWN else ""
    return f"one of those in {folder}: {', '.join(names[:_FILES_SHOWN])}{more}"


def _cells(line: bytes, columns: dict[str, str], origin: str, parent: str) -> dict[str, str] | Problem:
    """What the named columns of one line hold, by role; or the first thing that is wrong with it."""
    try:
        row: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} of this line is not UTF-8: convert the file (iconv -t UTF-8)"
        return Problem(origin, f"0x{line[error.start]:02x}", "UTF-8", message)
    except (ValueError, RecursionError) as error:
        why = str(error)
        if isinstance(error, json.JSONDecodeError):  # its own line number would contradict the file's
            why = f"{error.msg} at column {error.colno}"
        shown = _short(line.decode("utf-8").strip())
        return Problem(origin, shown, "one JSON object a line", f"this row is not JSON: {why}")
    if not isinstance(row, dict):
        message = f"this row is {_kind(row)}, not an object: name its columns"
        return Problem(origin, _short(json.dumps(row)), '{"column": "text", ...}', message)
    cells: dict[str, str] = {}
    for role, column in columns.items():
        if column not in row:
            near = difflib.get_close_matches(column, row, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            message = f"this row has no column {column!r}{hint}: set {parent}.{role} to one that is there"
            there = ", ".join(map(repr, row)) or "none: the row has no columns"
            return Problem(origin, repr(column), there, message)
        cell = row[column]
        if not isinstance(cell, str):
            message = f"column {column!r} is {_kind(cell)}, not text: write it as a string"
            return Problem(origin, _short(json.dumps(cell)), "a string", message)
        if not cell.strip():
            message = f"column {column!r}, the {role}, is empty: fill it, or take the row out"
            return Problem(origin, repr(cell), "text that is not only white space", message)
        if _HALF_PAIR.search(cell):
            message = f"column {column!r} holds half of a surrogate pair, which is no character: mend it"
            return Problem(origin, _short(ascii(cell)), "Unicode text", message)
        cells[role] = cell
    return cells


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    separator: str = " ",
    max_tokens: int | None = None,
) -> tuple[list[Document], Encoded]:
    """Tokenises rows into documents with their loss masks.

    Prompt and text are tokenised apart from each other, so that the mask falls exactly between them: a
    document is ``tokens(prompt + separator) + tokens(text) + [eos]``, with the text and the end token
    predicted. Whoever prompts the learner has to write ``prompt + separator`` too. No other special token is
    added.

    Args:
        rows: the rows; those without a prompt are raw text.
        tokenizer: any ``transformers`` tokenizer with an end token.
        separator: what stands between prompt and text, tokenised with the prompt.
        max_tokens: the longest document, at least 2 (None: no bound). A longer raw text is cut into chunks,
            of which the last is left out if shorter than ``SHORTEST_TAIL_TOKENS``, and which ends with the
            end token only at the end of the text. A longer solution is cut at the right; where the prompt
            alone is as long, the row is left out.

    Returns:
        The documents, in the order of the rows, each with at least one token to predict after its first; and
        the counts.

    Raises:
        UserError: the tokenizer has no end token.
        ValueError: ``max_tokens`` is below 2.
    """
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2 (one token predicts the next), got {max_tokens}")
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise user_error(
            "learner.model",
            "its tokenizer has no end token (eos), and without one no document ends: set tokenizer.eos_token"
            " to one of its tokens and save_pretrained() it into the model's folder",
            value=tokenizer.name_or_path or type(tokenizer).__name__,
            accepted="a model whose tokenizer has an eos_token",
        )
    documents: list[Document] = []
    dropped = empty = truncated = chunked = tails = 0
    for row, prompt, text in _tokenised(rows, tokenizer, separator):
        ids = [*prompt, *text, eos]
        predicted = [False] * len(prompt) + [True] * (len(text) + 1)
        limit = len(ids) if max_tokens is None else max_tokens
        if not text:
            empty += 1
        elif len(prompt) >= limit:
            dropped += 1
        elif len(ids) <= limit or row.prompt:
            truncated += len(ids) > limit
            documents.append(Document(ids[:limit], predicted[:limit], row.origin, row.source))
        else:
            chunked += 1
            for start in range(0, len(ids), limit):
                chunk = ids[start : start + limit]
                if len(chunk) == limit or len(chunk) >= SHORTEST_TAIL_TOKENS:
                    documents.append(Document(chunk, [True] * len(chunk), row.origin, row.source))
                else:
                    tails += 1
    tokens = sum(len(document.ids) for document in documents)
    return documents, Encoded(len(rows), len(documents), tokens, dropped, empty, truncated, chunked, tails)


def _tokenised(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, separator: str
) -> Iterator[tuple[Row, list[int], list[int]]]:
    """Every row with the tokens of its prompt (none for raw text) and of its text."""
    for start in range(0, len(rows), _ROWS_PER_CALL):
        some = rows[start : start + _ROWS_PER_CALL]
        prompts = [row.prompt + separator for row in some if row.prompt]
        encoded = tokenizer(
            prompts + [row.text for row in some],
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,  # the length is bounded here, not by the tokenizer, whose warning would mislead
        )["input_ids"]
        of_prompts, of_texts = iter(encoded[: len(prompts)]), encoded[len(prompts) :]
        for row, text in zip(some, of_texts, strict=True):
            yield row, (next(of_prompts) if row.prompt else []), text


def overlap(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Finds rows that are in both sets, whatever their white space and their upper and lower case.

    Two rows with prompts are the same if their prompts are: a feedback question that stands in the stream
    with another answer is a leak all the same. Otherwise prompt and text together are compared.

    Args:
        rows_a: the rows to look for, say those of the feedback set.
        rows_b: the rows to look in, say those of the stream.

    Returns:
        In the order of ``rows_a``, each of its rows that is in ``rows_b`` with the first such row there.
    """
    prompts: dict[str, Row] = {}
    wholes: dict[str, Row] = {}
    raw: dict[str, Row] = {}
    for row in rows_b:
        whole = _normal(f"{row.prompt} {row.text}")
        wholes.setdefault(whole, row)
        if row.prompt:
            prompts.setdefault(_normal(row.prompt), row)
        else:
            raw.setdefault(whole, row)
    pairs: list[tuple[Row, Row]] = []
    for row in rows_a:
        whole = _normal(f"{row.prompt} {row.text}")
        same = prompts.get(_normal(row.prompt)) or raw.get(whole) if row.prompt else wholes.get(whole)
        if same is not None:
            pairs.append((row, same))
    return pairs


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()
