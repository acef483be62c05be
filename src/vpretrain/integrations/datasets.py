"""Converts rows in the formats of TRL's trainers to documents.

Rows come from a ``datasets`` table or any sequence of dicts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vpretrain.integrations.batches import OTHER_LABELS
from vpretrain.language.data.formats import conversation
from vpretrain.language.data.rows import SEPARATOR, Document, Row
from vpretrain.language.data.texts import unfamiliar
from vpretrain.language.data.token_columns import IGNORED
from vpretrain.language.feedback.likelihood import LikelihoodSignal
from vpretrain.language.feedback.signals import Signal, TaskDocuments, TaskRows
from vpretrain.language.feedback.tasks import encode_task
from vpretrain.system.errors import Problem, UserError, renamed, shortened, user_error

log = logging.getLogger(__name__)

FORMATS = (
    "prompt and solution, prompt and completion (texts or lists of messages), messages that end "
    "with the assistant's, text, or tokens: input_ids and labels"
)
ANSWERS = ("solution", "completion")
_SHOWN = 5


def documents_of(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, *, max_tokens: int, where: str
) -> list[Document]:
    """Returns rows as documents under the likelihood signal, see :func:`feedback_of`."""
    signal = LikelihoodSignal()
    return feedback_of(rows, tokenizer, signal, max_tokens=max_tokens, where=where).documents


def feedback_of(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    signal: Signal,
    *,
    max_tokens: int,
    where: str,
) -> TaskDocuments:
    """Returns rows as documents whose loss is on the verified part.

    This is the solution, the completion, or the last assistant message.

    Rows are tokenised as in a recipe (:class:`vpretrain.language.data.layout.Layout`): a
    ``solution`` is separated from its prompt by a line break, and a ``completion`` follows it
    directly, as in TRL.

    Args:
        rows: with the columns of one of :data:`FORMATS`; in ``text`` every token is predicted. If
            ``signal`` reads a second answer, the first may be named ``chosen``.
        tokenizer: with an end token, and for messages with a chat template; None for tokenised
            rows.
        signal: the kind of feedback to make of them.
        max_tokens: longer rows are truncated on the right; rows whose prompt alone is as long are
            dropped. Both are logged. Of tokenised rows, padding (``attention_mask`` 0) is left out
            before.
        where: the argument that the rows come from, for messages.

    Returns:
        In the order of the rows.

    Raises:
        UserError: a row is in none of the formats, has nothing to predict, does not fit the kind of
            feedback, or needs a tokenizer or a template that is missing.
    """
    rows = list(rows)
    if any(not isinstance(row, Mapping) for row in rows[:1]):
        message = "rows are dicts of columns; of a DatasetDict take one split (split='train')"
        raise user_error(where, message, value=shortened(repr(rows[0])), accepted=FORMATS)
    if rows and "input_ids" in rows[0]:
        if signal.reads_text or signal.second_answer is not None:
            message = f"feedback of the kind {signal.kind} reads text, and these rows are tokens"
            raise user_error(where, message, value="input_ids", accepted="prompts with answers")
        return TaskDocuments(list(_tokenised(rows, max_tokens, where)), {})
    task = _in_text(rows, tokenizer, signal, where)
    # Special tokens in the text are parsed as such, as in TRL.
    with renamed({"learner.tokenizer": "processing_class"}):
        documents, counts = encode_task(
            task, tokenizer, max_tokens=max_tokens, parse_special_tokens=True
        )
    for loss in (*counts.losses(max_tokens), *unfamiliar({where: counts})):
        log.warning("%s: %s", where, loss)
    return documents


def _in_text(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, signal: Signal, where: str
) -> TaskRows:
    """Returns text rows with the answers that the kind of feedback needs."""
    if not hasattr(tokenizer, "get_vocab"):
        raise user_error(
            "processing_class",
            f"the rows of {where} are text: give the tokenizer that reads them",
            value=tokenizer,
            accepted="the model's tokenizer",
        )

    def read(columns: Sequence[str]) -> list[Row]:
        return [
            _row(row, tokenizer, f"{where}[{place}]", columns) for place, row in enumerate(rows)
        ]

    second = signal.second_answer
    task = TaskRows(read(ANSWERS if second is None else (*ANSWERS, "chosen")))
    if second is not None:
        task = TaskRows(task.rows, {row.origin: row for row in read([second[1]])})
    if problems := list(_unfit(task, signal)):
        raise UserError(*problems)
    return task


def _unfit(task: TaskRows, signal: Signal) -> Iterator[Problem]:
    if raw := next((row for row in task.rows if signal.reads_text and not row.prompt), None):
        message = f"feedback of the kind {signal.kind} asks for answers, and this row has no prompt"
        yield Problem(raw.origin, shortened(raw.text), "rows with a prompt", message)
    yield from signal.problems(task, "Steering feedback")


def _tokenised(
    rows: Sequence[Mapping[str, Any]], max_tokens: int, where: str
) -> Iterator[Document]:
    problems = []
    for place, row in enumerate(rows):
        origin, labels, mask = f"{where}[{place}]", row.get("labels"), row.get("attention_mask")
        ids = [int(token) for token in row["input_ids"]]
        targets = [IGNORED] * len(ids) if labels is None else [int(label) for label in labels]
        if any(len(each) != len(ids) for each in (targets, mask) if each is not None):
            message = "labels and attention_mask have one entry for each token"
            problems.append(Problem(origin, shortened(str(row)), f"{len(ids)} of each", message))
            continue
        real = [at for at in range(len(ids)) if mask is None or mask[at]][:max_tokens]
        predicted = [targets[at] != IGNORED for at in real]
        accepted = f"labels beside input_ids, {IGNORED} on the prompt"
        if not any(predicted[1:]):
            message = "these tokens have nothing to predict; say with labels what is verified"
            problems.append(Problem(origin, shortened(str(labels)), accepted, message))
        elif any(targets[at] not in (IGNORED, ids[at]) for at in real[1:]):
            problems.append(Problem(origin, shortened(str(labels)), accepted, OTHER_LABELS))
        yield Document([ids[at] for at in real], predicted, origin, where)
    if problems:
        raise UserError(*problems[:_SHOWN])


def _row(row: Mapping[str, Any], tokenizer: Any, origin: str, columns: Sequence[str]) -> Row:
    """Returns the row with the answer from the first of ``columns`` that it has."""
    answer = next((row[name] for name in columns if name in row), None)
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and isinstance(answer, str):
        separator = SEPARATOR if "solution" in row else ""
        return Row(prompt + separator, _unended(answer, tokenizer), origin, origin)
    if isinstance(answer, list | tuple) or (isinstance(prompt, list | tuple) and answer):
        messages = _messages(prompt, answer)
    if isinstance(messages, Sequence):
        chat = conversation(list(messages), origin, origin, tools=row.get("tools"))
        if isinstance(chat, Problem):
            raise UserError(chat)
        return chat
    if prompt is None and isinstance(row.get("text"), str):
        return Row("", _unended(row["text"], tokenizer), origin, origin)
    for name in ("prompt", *columns, "messages", "text"):
        if name in row and row[name] is None:
            message = f"the cell of {name} is empty: fill it, or leave the row out"
            raise user_error(origin, message, value=None, accepted="text")
    raise user_error(
        origin,
        "this row has none of the columns that are read; rename them",
        value=", ".join(row),
        accepted=FORMATS
        if columns == ANSWERS
        else f"prompt, and the answer as one of {', '.join(columns)}",
    )


def _messages(prompt: Any, answer: Any) -> list[Any]:
    """Returns the conversation of a prompt and an answer, each a text or a list of messages.

    The answer may hold the prompt again, as in preference data sets.
    """
    answered = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    first = answered[0] if answered else None
    if prompt is None or (isinstance(first, Mapping) and first.get("role") in ("system", "user")):
        return list(answered)
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [*asked, *answered]


def _unended(text: str, tokenizer: Any) -> str:
    """Strips the end token that some rows and templates contain, since every document gets one."""
    end = tokenizer.eos_token
    return text.rstrip().removesuffix(end) if end and text.rstrip().endswith(end) else text
