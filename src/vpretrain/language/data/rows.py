"""Rows of text, and what a tokenizer makes of them: documents.

A row is raw text, or a prompt with the solution that is to be predicted. A document is the row in
tokens, with a mask that says which of them count in the loss (the set ``I(x)`` of eq. 37: the
prompt does not, raw text does throughout).
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
"""Between prompt and solution where a recipe names none."""

SHORTEST_TAIL_TOKENS = 8
"""From here on the rest of a chunked raw text is kept, end token included: less teaches little."""


_PROBLEMS_SHOWN = 5

UNKNOWN_SHARE = 0.01
"""Of a place's tokens: from here on a person is told."""


class Tokens(NamedTuple):
    """What a row of tokens holds: ids as int32, and a byte each, 1 where it is predicted."""

    ids: bytes
    predicted: bytes


@dataclass(slots=True)  # frozen ones cost three times as much to make, and a stream makes millions
class Row:
    """One row of text, after its columns were named.

    Args:
        prompt: what is given and never predicted, up to the first character of the text; empty for
            raw text.
        text: what is predicted: the raw text, or the solution.
        origin: where it came from (``stream.jsonl:12``, ``word_problems:12``), for messages and for
            ``explain``.
        source: name of the source that it belongs to.
        question: the prompt before a template or a format was put around it, by which the
            same rows are recognised; empty where that is the prompt.
        conversation: ``messages`` (the last the assistant's, which is ``text``), and ``tools`` if
            there are any, for the tokenizer's chat template; None for text.
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
        ids: token ids of beginning (where the tokenizer has one), prompt, text and end token.
        predicted: as long as ``ids``, bool or bytes; true where this token counts in the loss. A
            batch masks the first token, which has nothing before it, even where this is true.
        origin: as in :class:`Row`; the chunks of one row share it.
        source: as in :class:`Row`.
    """

    ids: Sequence[int]
    predicted: Sequence[int]
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
        tails: chunked raw texts whose rest was shorter than the shortest allowed and left out.
        capped: rows that were not read, because there were documents enough.
        merged: rows whose text begins inside the last token of their prompt, which is predicted.
        unknown: tokens that stand for text which the tokenizer has no tokens for.
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

    def losses(self, max_tokens: int) -> list[str]:
        """What became of rows that are not whole in the documents, in words; ``max_tokens`` as
        :func:`encode` was given it."""
        counts = {
            f"left out: the prompt alone fills {max_tokens} tokens": self.dropped,
            "left out: the tokenizer finds nothing to predict in them": self.empty,
            f"cut at {max_tokens} tokens, their end with it": self.truncated,
            f"cut into pieces of {max_tokens} tokens, the last left out as too short": self.tails,
            "not read: there are documents enough": self.capped,
            "begin inside the last token of their prompt (see data.separator)": self.merged,
        }
        lines = [f"{count} of {self.rows} rows {what}" for what, count in counts.items() if count]
        return lines

    def unfamiliar(self) -> float:
        """The share of tokens that stand for text which the tokenizer has none for; 0 where it is
        too small to matter (a name or so)."""
        return self.unknown / self.tokens if self.unknown > UNKNOWN_SHARE * self.tokens else 0.0


def encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None = None,
    parse_special_tokens: bool = False,
) -> tuple[list[Document], Encoded]:
    """The documents of rows, in their order, and the counts; see :func:`encode_into`."""
    documents: list[Document] = []

    def keep(ids: list[int], predicted: bytes, row: Row) -> None:
        documents.append(Document(ids, [*map(bool, predicted)], row.origin, row.source))

    layout = Layout(tokenizer, parse_special_tokens=parse_special_tokens)
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
    """Tokenises rows into documents with their loss masks, and hands them on one by one.

    Args:
        keep: gets the documents in the order of their rows: ids, a byte for each (1 where it is
            predicted), and the row. Each has a token to predict after its first.
        rows: the rows; those without a prompt are raw text. Either all or none are tokens.
        layout: how they are written in tokens; the end token follows, predicted.
        max_tokens: the longest document, at least 2 (None: no bound). Longer raw text is cut into
            chunks, each begun as the text is, the last with the end token; a longer solution is
            cut at the right, and a row left out whose prompt alone is as long.
        shortest_chunk_tokens: a shorter rest of a chunked text, end token included, is left out.
        max_documents: how many are kept, the first ones (None: all); rows after them are not read.

    Raises:
        UserError: as :meth:`Layout.documents`, and for tokens that the tokenizer does not have.
    """
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2: one predicts the next; got {max_tokens}")
    count: Counter[str] = Counter()
    unknown = layout.tokenizer.unk_token_id
    if unknown == layout.end:  # as in GPT-2, whose bytes can spell everything
        unknown = None
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
        if len(ids) > limit and (row.prompt or 0 in predicted[given:]):
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
            count["unknown"] += piece.count(unknown)
    read = count.pop("rows", 0)
    return Encoded(rows=len(rows), capped=len(rows) - read, **count)


Encoding = tuple[Row, list[int], bytes, bool]
"""A row, its ids, a byte for each that is 1 where it is predicted, and whether its text begins
where the prompt's own tokens end."""


def _written(rows: Sequence[Row], layout: Layout) -> Iterator[Encoding]:
    for row, ids, given, natural in layout.documents(rows):
        ids.append(layout.end)
        learnable = len(ids) > given + 1  # the end alone is nothing to learn
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
    """Each of ``rows_a`` that is in ``rows_b`` (read once), with the first such row there, whatever
    the white space and the case.

    Two rows with prompts are the same if their questions are, whatever was written around them: a
    feedback question that stands in the stream with another answer is a leak all the same.
    Otherwise question and text together are compared.
    """
    # The second set may be a thousand times the first: only what the first asks for is held.
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
    """The origin of each of ``documents_a`` that is in ``documents_b`` (read once), with the last
    such one there.

    Two documents are the same if their prompts are, or all of their tokens, special ones apart.
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
    """Whether a row is in the held-out ``fraction`` of its source: a matter of seed and content.

    Rows that :func:`overlap` takes for the same because of their prompts (or, without prompts,
    their texts) are on the same side, wherever they stand and whatever stands around them.
    """
    key = f"{seed}/{_key(row)}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") < fraction * 2**64


def asked(row: Row) -> str:
    """What a row asks, without what a template or a format wrote around it; raw text is itself."""
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
