"""Rows of text, and documents, which are tokenised rows.

A row is raw text, or a prompt with the solution to predict. A document is a row in tokens, with a
mask of the tokens that count in the loss (the set ``I(x)`` of eq. 37: no token of the prompt, every
token of raw text).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vpretrain.language.data.layout import Layout
from vpretrain.system.errors import Problem, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n"
"""Default separator between prompt and solution."""

SHORTEST_TAIL_TOKENS = 8
"""Minimum length, end token included, of the last chunk of a raw text: shorter ones teach little.
"""


_PROBLEMS_SHOWN = 5

UNKNOWN_SHARE = 0.01
"""Fraction of unknown tokens in a set of rows above which the user is warned."""


class Tokens(NamedTuple):
    """The content of a tokenised row: int32 ids, and a mask with one byte a token, 1 if it is
    predicted."""

    ids: bytes
    predicted: bytes


@dataclass(slots=True)  # not frozen: that makes creation, of millions of rows, three times slower
class Row:
    """One row of text.

    Args:
        prompt: the text before the predicted text, separator included; never predicted, and empty
            for raw text.
        text: the predicted text: raw text, or the solution.
        origin: where the row was read (``stream.jsonl:12``, ``word_problems:12``), for messages and
            for ``explain``.
        source: name of the row's source.
        question: the prompt without the template or format around it, by which copies of a row are
            recognised; empty if it equals the prompt.
        conversation: ``messages`` (the last one is the assistant's, and its content is ``text``)
            and optionally ``tools``, for the tokenizer's chat template; None for text.
        tokens: the row's tokens, if it was tokenised before; None for text.
    """

    prompt: str
    text: str
    origin: str
    source: str
    question: str = ""
    conversation: dict[str, Any] | None = None
    tokens: Tokens | None = None


@dataclass(slots=True)
class Document:
    """One row, or one chunk of it, in tokens.

    Args:
        ids: token ids of beginning (if the tokenizer has one), prompt, text and end token.
        predicted: bools or bytes, as many as ``ids``; true where the token counts in the loss. A
            batch masks the first token in any case, since it has no context.
        origin: see :class:`Row`; the chunks of one row share it.
        source: see :class:`Row`.
    """

    ids: Sequence[int]
    predicted: Sequence[int]
    origin: str
    source: str


@dataclass(frozen=True)
class Encoded:
    """Counts of what :func:`encode` did to the rows, so that nothing is lost silently.

    Args:
        rows: rows given.
        documents: documents made.
        tokens: tokens in these documents.
        dropped: rows left out because the prompt leaves no room for a token of the solution.
        empty: rows left out because they have no token to predict.
        truncated: solutions cut at the right, including their end token.
        chunked: raw texts cut into several documents.
        tails: chunked raw texts whose last chunk was too short and left out.
        capped: rows not read because the maximum number of documents was reached.
        merged: rows whose text begins inside the last token of their prompt, which is predicted.
        unknown: unknown tokens (``unk``), which stand for text outside the vocabulary.
        refused: conversations left out because the chat template cannot write them.
        refusal: why the first of these.
    """

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    dropped: int = 0
    empty: int = 0
    truncated: int = 0
    chunked: int = 0
    tails: int = 0
    capped: int = 0
    merged: int = 0
    unknown: int = 0
    refused: int = 0
    refusal: str = ""

    def losses(self, max_tokens: int) -> list[str]:
        """Messages about rows that are incomplete or missing in the documents; ``max_tokens`` is
        the argument of :func:`encode`."""
        counts = {
            f"left out: the prompt alone fills {max_tokens} tokens": self.dropped,
            f"left out (data.on_bad_row: skip), the first as {self.refusal}": self.refused,
            "left out: the tokenizer finds nothing to predict in them": self.empty,
            f"cut at {max_tokens} tokens, their end with it": self.truncated,
            f"cut into pieces of {max_tokens} tokens, the last left out as too short": self.tails,
            "not read: there are documents enough": self.capped,
            "begin inside the last token of their prompt (see data.separator)": self.merged,
        }
        lines = [f"{count} of {self.rows} rows {what}" for what, count in counts.items() if count]
        return lines

    def unfamiliar(self) -> float:
        """The fraction of unknown tokens, or 0 if it is at most ``UNKNOWN_SHARE``."""
        return self.unknown / self.tokens if self.unknown > UNKNOWN_SHARE * self.tokens else 0.0


def encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None = None,
    parse_special_tokens: bool = False,
    skip: bool = False,
) -> tuple[list[Document], Encoded]:
    """The documents of rows, in order, and the counts; see :func:`encode_into`."""
    documents: list[Document] = []

    def keep(ids: list[int], predicted: bytes, row: Row) -> None:
        documents.append(Document(ids, [*map(bool, predicted)], row.origin, row.source))

    layout = Layout(tokenizer, parse_special_tokens=parse_special_tokens, skip=skip)
    return documents, encode_into(keep, rows, layout, max_tokens=max_tokens)


def encode_into(
    keep: Callable[[list[int], bytes, Row], object],
    rows: Sequence[Row],
    layout: Layout,
    *,
    max_tokens: int | None = None,
    shortest_chunk_tokens: int = SHORTEST_TAIL_TOKENS,
    max_documents: int | None = None,
) -> Encoded:
    """Tokenises rows into documents with loss masks, and passes them to ``keep`` one by one.

    Args:
        keep: called with each document in row order: ids, a mask with one byte a token (1 if it is
            predicted), and the row. A token after the first is predicted in every document.
        rows: the rows; those without a prompt are raw text. Either all or none are tokenised.
        layout: how rows are tokenised; a predicted end token is added.
        max_tokens: maximum length of a document, at least 2 (None: no limit). Longer raw text is
            cut into chunks that all start with the text's beginning, and the last has the end
            token. A longer solution is cut at the right; a row whose prompt alone is as long is
            left out.
        shortest_chunk_tokens: a last chunk shorter than this, end token included, is left out.
        max_documents: documents to keep, from the first (None: all); later rows are not read.

    Raises:
        UserError: like :meth:`Layout.documents`, and for ids outside the tokenizer's vocabulary.
    """
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2: one predicts the next; got {max_tokens}")
    count: Counter[str] = Counter()
    unknown = _unknown(layout)
    tokenised = len(rows) > 0 and rows[0].tokens is not None
    for row, ids, predicted, natural in (_tokenised if tokenised else _written)(rows, layout):
        if count["documents"] == max_documents:
            break
        count["rows"] += 1
        limit = len(ids) if max_tokens is None else max_tokens
        if (unusable := not any(predicted[1:])) or not any(predicted[1:limit]):
            count["empty" if unusable else "dropped"] += 1
            continue
        count["merged"] += not natural
        pieces, given = [ids], predicted.index(1)
        if len(ids) > limit and (row.prompt or row.conversation or 0 in predicted[given:]):
            count["truncated"] += 1
            pieces = [ids[:limit]]
        elif len(ids) > limit:
            count["chunked"] += 1
            pieces = _chunks(ids, given, limit)
            if len(pieces[-1]) < min(shortest_chunk_tokens, limit):
                count["tails"] += 1
                del pieces[-1]
        left = None if max_documents is None else max_documents - count["documents"]
        for piece in pieces[:left]:
            keep(piece, predicted[: len(piece)], row)
            count["documents"] += 1
            count["tokens"] += len(piece)
            count["unknown"] += 0 if unknown is None else piece.count(unknown)
    read, refused = count.pop("rows", 0), layout.refused
    why = f"{refused[0].where}: {refused[0].message}" if refused else ""
    capped = len(rows) - read - len(refused)
    return Encoded(rows=len(rows), capped=capped, refused=len(refused), refusal=why, **count)


def _unknown(layout: Layout) -> int | None:
    """The id that stands for unknown text; None where there is none, as in GPT-2, whose byte-level
    BPE has its end token in that place."""
    unknown: int | None = layout.tokenizer.unk_token_id
    return None if unknown == layout.end else unknown


Encoding = tuple[Row, list[int], bytes, bool]
"""A row, its ids, its loss mask (one byte a token, 1 if it is predicted), and whether its text
begins where the prompt's own tokens end."""


def _written(rows: Sequence[Row], layout: Layout) -> Iterator[Encoding]:
    for row, ids, given, natural in layout.documents(rows):
        ids.append(layout.end)
        learnable = len(ids) > given + 1  # an end token alone is not worth learning
        given = given if learnable else len(ids)
        yield row, ids, bytes(given) + b"\1" * (len(ids) - given), natural


def _tokenised(rows: Sequence[Row], layout: Layout) -> Iterator[Encoding]:
    size, wrong = layout.vocabulary_size, list[Problem]()
    for row in rows:
        assert row.tokens is not None
        ids = array("i", row.tokens.ids).tolist()
        if (largest := max(ids)) < size:
            yield row, ids, row.tokens.predicted, True
            continue
        message = f"token {ids.index(largest) + 1} of this row is none of the learner's tokenizer: "
        message += "tokenise the rows with it, or name the model that they were made for"
        wrong.append(Problem(row.origin, str(largest), f"0 to {size - 1}", message))
        if len(wrong) == _PROBLEMS_SHOWN:
            break
    if wrong:
        raise UserError(*wrong)


def _chunks(ids: list[int], given: int, limit: int) -> list[list[int]]:
    begin, text, room = ids[:given], ids[given:], limit - given
    return [begin + text[start : start + room] for start in range(0, len(text), room)]


def overlap(rows_a: Sequence[Row], rows_b: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Each row of ``rows_a`` that is also in ``rows_b`` (read once), with the first such row there;
    white space and case are ignored.

    Two rows with prompts are the same if their questions are, whatever template is around them: a
    feedback question in the stream is a leak even with another answer. Otherwise question and text
    together are compared.
    """
    # rows_b may be a thousand times larger, so only rows that match rows_a are held in memory.
    in_prompts: dict[str, Row | None] = {_key(row): None for row in rows_a if row.prompt}
    in_raw: dict[str, Row | None] = {_whole(row): None for row in rows_a if row.prompt}
    in_wholes: dict[str, Row | None] = {_whole(row): None for row in rows_a if not row.prompt}
    for row in rows_b:
        if row.prompt and in_prompts.get(prompt := _key(row), row) is None:
            in_prompts[prompt] = row
        if row.prompt and not in_wholes:
            continue
        whole = _whole(row)
        for seen in (in_wholes,) if row.prompt else (in_wholes, in_raw):
            if seen.get(whole, row) is None:
                seen[whole] = row
    same = (
        in_prompts[_key(row)] or in_raw[_whole(row)] if row.prompt else in_wholes[_whole(row)]
        for row in rows_a
    )
    return [(row, other) for row, other in zip(rows_a, same, strict=True) if other is not None]


def same_tokens(
    documents_a: Iterable[Document], documents_b: Iterable[Document], special: Set[int]
) -> dict[str, str]:
    """Origins of ``documents_a`` that are also in ``documents_b`` (read once), each with the origin
    of the last such document there.

    Two documents are the same if their prompts or all of their tokens are, without special tokens.
    """
    origins: dict[tuple[int, ...], str] = {}
    for document in documents_a:
        for key in _token_keys(document, special):
            origins.setdefault(key, document.origin)
    return {
        origins[key]: document.origin
        for document in documents_b
        for key in _token_keys(document, special)
        if key in origins
    }


def _token_keys(document: Document, special: Set[int]) -> set[tuple[int, ...]]:
    first = next((at for at, counts in enumerate(document.predicted) if counts), 0)
    parts = (document.ids, document.ids[:first])
    keys = (tuple(token for token in part if token not in special) for part in parts)
    return {key for key in keys if key}


def held_out(row: Row, fraction: float, seed: int) -> bool:
    """Whether a row is in the held-out ``fraction`` of its source, decided by seed and content.

    Rows that :func:`overlap` finds the same by their questions (or, without prompts, their texts)
    are either all held out or all kept, in any order and with any template around them.
    """
    key = f"{seed}/{_key(row)}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") < fraction * 2**64


def asked(row: Row) -> str:
    """The question of a row, without the template or format around it; for raw text, the text."""
    return row.question or row.prompt or row.text


def _key(row: Row) -> str:
    return _normal(asked(row))


def _whole(row: Row) -> str:
    return _normal(f"{row.question or row.prompt} {row.text}")


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def documents_hash(documents: Iterable[Document]) -> str:
    """SHA-256 of the documents' tokens and masks; 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for document in documents:
        sha.update(array("i", document.ids).tobytes())
        sha.update(bytes(document.predicted))
        sha.update(b"\n")
    return sha.hexdigest()
