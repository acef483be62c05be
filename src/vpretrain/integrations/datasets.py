"""Rows of a ``datasets`` table (or any sequence of dicts), in the formats that TRL's trainers read,
as documents.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain
from typing import Any

from vpretrain.integrations.collated import IGNORED
from vpretrain.language.data.columns import shortened
from vpretrain.language.data.rows import Document, Row, encode
from vpretrain.system.errors import Problem, UserError, user_error

log = logging.getLogger(__name__)

FORMATS = (
    "prompt and solution, prompt and completion (text, or lists of messages), messages that "
    "end with the assistant's, text, "
    "or tokens: input_ids and labels"
)
_SHOWN = 5


def documents_of(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, *, max_tokens: int, where: str
) -> list[Document]:
    """Rows as documents whose loss is on what is verified: solution, completion, or the assistant's
    last message.

    Every text begins as the tokenizer begins it and ends with the end token. Prompt and completion
    are tokenised apart, so that the mask falls exactly between them; ``solution`` is set apart from
    its prompt by a space, as in a recipe, and ``completion`` follows it as it stands, as in TRL.

    Args:
        rows: with the columns of one of the formats, see :data:`FORMATS`; of ``text`` every token
            is predicted.
        tokenizer: with an end token, and for messages with a chat template; None for rows in
            tokens.
        max_tokens: longer rows are cut at the right; those whose prompt alone is as long are left
            out. Both are logged.
        where: the argument that the rows come from, for messages.

    Returns:
        In the order of the rows.

    Raises:
        UserError: a row is in none of the formats, has nothing to predict, or asks for a tokenizer
            or a template that is not there.
    """
    rows = list(rows)
    if rows and "input_ids" in rows[0]:
        return list(_tokenised(rows, max_tokens, where))
    if not hasattr(tokenizer, "get_vocab"):
        raise user_error(
            "processing_class",
            f"the rows of {where} are text: give the tokenizer that reads them",
            value=tokenizer,
            accepted="the model's tokenizer",
        )
    read = [_row(row, tokenizer, f"{where}[{place}]") for place, row in enumerate(rows)]
    separator = " " if rows and "solution" in rows[0] else ""
    begin = _begin(tokenizer)
    documents, counts = encode(
        read, tokenizer, separator=separator, max_tokens=max_tokens - len(begin)
    )
    for loss in counts.losses(max_tokens):
        log.warning("%s: %s", where, loss)
    return [_begun(document, begin) for document in documents]


def check_apart(
    feedback: Sequence[Document],
    train: Iterable[Document],
    special: Set[int],
    *,
    where: str = "feedback_dataset",
) -> None:
    """Refuses feedback rows that are trained on: their answers would be learned and not steered
    towards.

    Two rows are the same if their prompts are, or all of their tokens, special ones apart.

    Args:
        feedback: its documents.
        train: documents of the training set; read once.
        special: tokens that do not count: of beginning, end, padding.
        where: the argument, for the message.

    Raises:
        UserError: with the first rows that are in both.
    """
    seen = {
        key: document.origin for document in reversed(feedback) for key in _keys(document, special)
    }
    found = {
        seen[key]: document.origin
        for document in train
        for key in _keys(document, special)
        if key in seen
    }
    if found:
        pairs = [f"{row} = {other}" for row, other in found.items()]
        raise user_error(
            where,
            f"{len(found)} of {len(feedback)} rows are also in train_dataset; take them out "
            "of one of the two",
            value=", ".join(pairs[:_SHOWN]) + (", ..." if len(pairs) > _SHOWN else ""),
            accepted="rows that are not trained on",
        )


def trained_on(dataset: Any, tokenizer: Any) -> Iterator[Document] | None:
    """The rows of a training set as documents, packed ones taken apart; None where they cannot be
    known beforehand.
    """
    if not hasattr(dataset, "__len__") or not len(dataset):
        return None
    first = dataset[0]
    if not isinstance(first, Mapping):
        return None
    if "input_ids" in first:
        columns = [name for name in ("input_ids", "labels", "seq_lengths") if name in first]
        table = dataset.select_columns(columns) if hasattr(dataset, "select_columns") else dataset
        return chain.from_iterable(_unpacked(table[place], place) for place in range(len(dataset)))
    try:
        return iter(
            documents_of(
                (dataset[i] for i in range(len(dataset))),
                tokenizer,
                max_tokens=2**31,
                where="train_dataset",
            )
        )
    except UserError:
        return None


def _tokenised(
    rows: Sequence[Mapping[str, Any]], max_tokens: int, where: str
) -> Iterator[Document]:
    problems = []
    for place, row in enumerate(rows):
        labels = row.get("labels")
        predicted = (
            [] if labels is None else [int(label) != IGNORED for label in labels][:max_tokens]
        )
        if not any(predicted[1:]):
            message = "these tokens have nothing to predict; say with labels what is verified"
            accepted = f"labels beside input_ids, {IGNORED} on the prompt"
            problems.append(Problem(f"{where}[{place}]", shortened(str(labels)), accepted, message))
        yield Document(
            [int(token) for token in row["input_ids"]][:max_tokens],
            predicted,
            f"{where}[{place}]",
            where,
        )
    if problems:
        raise UserError(*problems[:_SHOWN])


def _unpacked(row: Mapping[str, Any], place: int) -> Iterator[Document]:
    """A training row in tokens; one that TRL packed is taken apart again."""
    ids = [int(token) for token in row["input_ids"]]
    predicted = [int(label) != IGNORED for label in row.get("labels", ids)]
    at = 0
    for length in row.get("seq_lengths") or [len(ids)]:
        part = slice(at, at + int(length))
        yield Document(ids[part], predicted[part], f"train_dataset[{place}]", "train_dataset")
        at += int(length)


def _keys(document: Document, special: Set[int]) -> set[tuple[int, ...]]:
    first = next((at for at, counts in enumerate(document.predicted) if counts), 0)
    parts = (document.ids, document.ids[:first])
    return {
        key for part in parts if (key := tuple(token for token in part if token not in special))
    }


def _row(row: Mapping[str, Any], tokenizer: Any, origin: str) -> Row:
    answer = next((row[name] for name in ("solution", "completion") if name in row), None)
    prompt = row.get("prompt")
    if isinstance(row.get("messages"), Sequence):
        return _chat(row["messages"][:-1], row["messages"][-1:], row, tokenizer, origin)
    if isinstance(prompt, str) and isinstance(answer, str):
        return Row(prompt, _unended(answer, tokenizer), origin, origin)
    if (
        isinstance(prompt, Sequence)
        and isinstance(answer, Sequence)
        and not isinstance(answer, str)
    ):
        return _chat(prompt, answer, row, tokenizer, origin)
    if prompt is None and isinstance(row.get("text"), str):
        return Row("", _unended(row["text"], tokenizer), origin, origin)
    raise user_error(
        origin,
        "this row has none of the columns that are read; rename them",
        value=", ".join(row),
        accepted=FORMATS,
    )


def _chat(
    before: Sequence[Any],
    answer: Sequence[Any],
    row: Mapping[str, Any],
    tokenizer: Any,
    origin: str,
) -> Row:
    """Messages as the chat template writes them."""
    if not getattr(tokenizer, "chat_template", None):
        raise user_error(
            "processing_class",
            f"{origin} holds messages, and this tokenizer has no chat template; set its "
            "chat_template",
            accepted="a tokenizer of a chat model, or rows with prompt and completion in text",
        )
    if not before or not answer or answer[-1].get("role") != "assistant":
        roles = ", ".join(str(message.get("role")) for message in (*before, *answer))
        raise user_error(
            origin,
            "the verified answer is the assistant's, and has to come last",
            value=roles,
            accepted="at least one message, and then the assistant's",
        )
    options = {"tokenize": False, "tools": row.get("tools")}
    prompt = tokenizer.apply_chat_template(list(before), add_generation_prompt=True, **options)
    whole = tokenizer.apply_chat_template([*before, *answer], **options)
    if not whole.startswith(prompt):
        raise user_error(
            origin,
            "the chat template writes the prompt in another way once it is answered, so that "
            "the answer cannot be "
            "told from it",
            value=shortened(prompt),
            accepted="rows with prompt and completion in text",
        )
    return Row(prompt, _unended(whole.removeprefix(prompt), tokenizer), origin, origin)


def _unended(text: str, tokenizer: Any) -> str:
    """The text without the end token that some rows and templates write out: every document gets
    one.
    """
    end = tokenizer.eos_token
    return text.rstrip().removesuffix(end) if end and text.rstrip().endswith(end) else text


def _begin(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text: the token of beginning, or nothing."""
    empty = tokenizer("", verbose=False)["input_ids"]
    return [empty[0]] if empty and empty[0] == tokenizer.bos_token_id else []


def _begun(document: Document, begin: list[int]) -> Document:
    """The document with its beginning; chat templates may have written it already."""
    if list(document.ids[: len(begin)]) == begin:
        return document
    return replace(
        document,
        ids=[*begin, *document.ids],
        predicted=[*[False] * len(begin), *document.predicted],
    )
