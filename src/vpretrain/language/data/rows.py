"""Rows of text, and what a tokenizer makes of them: documents.

A row is raw text, or a prompt with the solution that is to be predicted. A document is the row in
tokens, with a mask that says which of them count in the loss (the set ``I(x)`` of eq. 37: the
prompt does not, raw text does throughout).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpretrain.system.errors import user_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST_TAIL_TOKENS = 8
"""The rest of a chunked raw text is kept from this length on, end token included: less teaches
little.
"""

_ROWS_PER_CALL = (
    1_000  # of the tokenizer: enough to use its threads, little enough to hold in memory twice
)


@dataclass(slots=True)  # frozen ones cost three times as much to make, and a stream makes millions
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


@dataclass(slots=True)  # frozen ones cost three times as much to make, and a stream makes millions
class Document:
    """One row, or one chunk of it, in tokens.

    Args:
        ids: token ids of prompt, text and end token, in this order; one that was laid down on disk
            has an int32 array.
        predicted: as long as ``ids``, bool or bytes; true where this token counts in the loss. The
            first token of a document has nothing before it to be predicted from: a batch masks it
            even where this is true.
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
        capped: rows that were not looked at, because there were documents enough.
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

    def losses(self, max_tokens: int) -> list[str]:
        """What became of rows that are not whole in the documents, in words; empty if all are.

        Args:
            max_tokens: as it was given to :func:`encode`.
        """
        said = {
            f"left out: the prompt alone fills {max_tokens} tokens": self.dropped,
            "left out: the tokenizer finds nothing to predict in them": self.empty,
            f"cut at {max_tokens} tokens, their end with it": self.truncated,
            "lost a rest too short for a document": self.tails,
            "not read: there are documents enough": self.capped,
        }
        return [f"{count} of {self.rows} rows {what}" for what, count in said.items() if count]


def encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    separator: str = " ",
    max_tokens: int | None = None,
) -> tuple[list[Document], Encoded]:
    """Tokenises rows into documents with their loss masks; arguments and errors as in
    :func:`encode_into`.

    Returns:
        The documents, in the order of the rows, and the counts.
    """
    documents: list[Document] = []

    def keep(ids: list[int], prompt_tokens: int, row: Row) -> None:
        predicted = [False] * prompt_tokens + [True] * (len(ids) - prompt_tokens)
        documents.append(Document(ids, predicted, row.origin, row.source))

    return documents, encode_into(keep, rows, tokenizer, separator=separator, max_tokens=max_tokens)


def encode_into(
    keep: Callable[[list[int], int, Row], object],
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    separator: str = " ",
    max_tokens: int | None = None,
    shortest_chunk_tokens: int = SHORTEST_TAIL_TOKENS,
    max_documents: int | None = None,
) -> Encoded:
    """Tokenises rows into documents with their loss masks, and hands them on one by one.

    Prompt and text are tokenised apart from each other, so that the mask falls exactly between
    them: a document is ``tokens(prompt + separator) + tokens(text) + [eos]``, with the text and the
    end token predicted. Whoever prompts the learner has to write ``prompt + separator`` too. No
    other special token is added.

    Args:
        keep: is given the documents in the order of their rows: ids, how many of them at the
            beginning are the prompt, and the row. Each has at least one token to predict after its
            first.
        rows: the rows; those without a prompt are raw text.
        tokenizer: any ``transformers`` tokenizer with an end token.
        separator: what stands between prompt and text, tokenised with the prompt.
        max_tokens: the longest document, at least 2 (None: no bound). A longer raw text is cut into
            chunks, which end with the end token only at the end of the text. A longer solution is
            cut at the right; where the prompt alone is as long, the row is left out.
        shortest_chunk_tokens: the rest of a chunked text is left out if it is shorter, end token
            included.
        max_documents: how many are kept at most, the first ones (None: all); rows after them are
            not tokenised.

    Raises:
        UserError: the tokenizer has no end token.
        ValueError: ``max_tokens`` is below 2.
    """
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(
            f"max_tokens must be at least 2 (one token predicts the next), got {max_tokens}"
        )
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise user_error(
            "learner.model",
            "its tokenizer has no end token (eos), and without one no document ends: set "
            "tokenizer.eos_token"
            " to one of its tokens and save_pretrained() it into the model's folder",
            value=tokenizer.name_or_path or type(tokenizer).__name__,
            accepted="a model whose tokenizer has an eos_token",
        )
    read = documents = tokens = dropped = empty = truncated = chunked = tails = 0
    for row, prompt, text in _tokenised(rows, tokenizer, separator):
        if documents == max_documents:
            break
        read += 1
        ids = [*prompt, *text, eos]
        limit = len(ids) if max_tokens is None else max_tokens
        pieces = [ids]
        if not text:
            empty += 1
            continue
        if len(prompt) >= limit:
            dropped += 1
            continue
        if len(ids) > limit and row.prompt:
            truncated += 1
            pieces = [ids[:limit]]
        elif len(ids) > limit:
            chunked += 1
            pieces = [ids[start : start + limit] for start in range(0, len(ids), limit)]
            if len(pieces[-1]) < min(shortest_chunk_tokens, limit):
                tails += 1
                del pieces[-1]
            if max_documents is not None:
                del pieces[max_documents - documents :]
        for piece in pieces:
            keep(piece, len(prompt), row)
            documents += 1
            tokens += len(piece)
    return Encoded(
        len(rows), documents, tokens, dropped, empty, truncated, chunked, tails, len(rows) - read
    )


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
            # the length is bounded here, not by the tokenizer, whose warning would mislead
            verbose=False,
        )["input_ids"]
        of_prompts, of_texts = iter(encoded[: len(prompts)]), encoded[len(prompts) :]
        for row, text in zip(some, of_texts, strict=True):
            yield row, (next(of_prompts) if row.prompt else []), text


def overlap(rows_a: Sequence[Row], rows_b: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Finds rows that are in both sets, whatever their white space and their upper and lower case.

    Two rows with prompts are the same if their prompts are: a feedback question that stands in the
    stream with another answer is a leak all the same. Otherwise prompt and text together are
    compared.

    Args:
        rows_a: the rows to look for, say those of the feedback set.
        rows_b: the rows to look in, say those of the stream; read once.

    Returns:
        In the order of ``rows_a``, each of its rows that is in ``rows_b`` with the first such row
        there.
    """
    # The second set may be a thousand times the first: only what the first asks for is held.
    in_prompts: dict[str, Row | None] = {_normal(row.prompt): None for row in rows_a if row.prompt}
    in_raw: dict[str, Row | None] = {_whole(row): None for row in rows_a if row.prompt}
    in_wholes: dict[str, Row | None] = {_whole(row): None for row in rows_a if not row.prompt}
    for row in rows_b:
        if row.prompt and in_prompts.get(prompt := _normal(row.prompt), row) is None:
            in_prompts[prompt] = row
        if row.prompt and not in_wholes:
            continue
        whole = _whole(row)
        for seen in (in_wholes,) if row.prompt else (in_wholes, in_raw):
            if seen.get(whole, row) is None:
                seen[whole] = row
    pairs: list[tuple[Row, Row]] = []
    for row in rows_a:
        same = (
            in_prompts[_normal(row.prompt)] or in_raw[_whole(row)]
            if row.prompt
            else in_wholes[_whole(row)]
        )
        if same is not None:
            pairs.append((row, same))
    return pairs


def held_out(row: Row, fraction: float, seed: int) -> bool:
    """Whether a row belongs to the held-out part of its source: a matter of its content alone.

    Rows that :func:`overlap` takes for the same because of their prompts (or, without prompts,
    their texts) are on the same side, wherever they stand and whatever stands around them.

    Args:
        row: any row.
        fraction: of the rows that are held out, in [0, 1].
        seed: another seed holds out others.
    """
    key = f"{seed}/{_normal(row.prompt or row.text)}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") < fraction * 2**64


def _whole(row: Row) -> str:
    return _normal(f"{row.prompt} {row.text}")


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def documents_hash(documents: Iterable[Document]) -> str:
    """SHA-256 of the documents' tokens, and of which of them are predicted; 64 hexadecimal
    digits.
    """
    sha = hashlib.sha256()
    for document in documents:
        sha.update(array("i", document.ids).tobytes())
        sha.update(bytes(document.predicted))
        sha.update(b"\n")
    return sha.hexdigest()
