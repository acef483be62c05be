"""Builds feedback from the recipe's feedback section (rows, then documents, then signals), and
finds every problem before the first step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vpretrain.language.data.rows import Document, Encoded, Row, encode
from vpretrain.language.feedback.gradient import split
from vpretrain.language.feedback.likelihood import parted, shuffled, too_few
from vpretrain.language.feedback.signals import FeedbackSite, TaskDocuments, TaskRows
from vpretrain.language.recipe.feedback import FeedbackSet
from vpretrain.language.recipe.rows import Rows
from vpretrain.method.conflict import Resolve, kept, projected
from vpretrain.method.feedback import MultiTaskFeedback
from vpretrain.method.roles import Feedback
from vpretrain.system.errors import Problem, UserError, shortened, user_error

RESOLVE: Mapping[str, Resolve] = {"sum": kept, "project": projected}


def read_tasks(
    section: FeedbackSet, read: Callable[[Rows, str, str], list[Row]], stream: Sequence[str]
) -> tuple[dict[str, TaskRows], list[Problem]]:
    """The rows of every task, and the problems with them.

    Args:
        section: the recipe's feedback section.
        read: maps ``(rows, name, dotted key)`` to rows; returns none if there are problems, which
            it reports itself.
        stream: names of the stream's sources.
    """
    tasks: dict[str, TaskRows] = {}
    problems: list[Problem] = []
    for name, task in section.named().items():
        where = section.where(name)
        rows, rejected = read(task.rows, name, f"{where}.rows"), {}
        if rows and task.second_answer is not None and task.second_rows is not None:
            # A problem with a column reads "set <this>.solution to one that is there".
            place = f"{where}.{task.second_answer[0]}, which takes the place of rows"
            rejected = {row.origin: row for row in read(task.second_rows, name, place)}
            rows = [row for row in rows if row.origin in rejected]
        tasks[name] = TaskRows(rows, rejected)
        problems += _misfits(section, name, tasks[name], stream)
    return tasks, problems


def _misfits(
    section: FeedbackSet, name: str, task_rows: TaskRows, stream: Sequence[str]
) -> Iterator[Problem]:
    """Problems of valid rows that their task cannot use, and of the task's settings."""
    task, where, rows = section.named()[name], section.where(name), task_rows.rows
    needed, batches = section.batch_of(name), section.batches
    if rows and len(rows) // batches < needed:
        most = len(rows) // batches
        message = too_few(len(rows), batches, needed, "batch_size")
        accepted = f"1 to {most}: there are {len(rows)} rows" if most else f"{batches} rows or more"
        yield Problem(f"{where}.batch_size", str(needed), accepted, message)
    if raw := next((row for row in rows if not row.prompt), None):
        message = (
            "this feedback row has no prompt, so nothing in it is a verified solution; use "
            "other rows"
        )
        accepted = "rows with a prompt and a `solution`, or of word_problems"
        yield Problem(f"{where}.rows {raw.origin}", shortened(raw.text), accepted, message)
    if task.reads_text and rows and rows[0].tokens is not None:
        message = f"feedback of the kind {task.kind} reads text, and these rows are tokens"
        yield Problem(f"{where}.rows.tokens", rows[0].origin, "prompts with answers", message)
    for source in task.sources:
        if source not in stream:
            message = "the stream has no source of this name; correct it"
            yield Problem(f"{where}.sources", source, "of " + ", ".join(stream), message)
    yield from task.problems(task_rows, where)


def encode_task(
    task: TaskRows,
    tokenizer: Any,
    *,
    max_tokens: int,
    parse_special_tokens: bool,
    skip: bool = False,
) -> tuple[TaskDocuments, Encoded]:
    """The tokenised rows of a task, and the counts of :func:`encode`.

    A pair is left out, and counted as dropped, if one of its answers is, or if both are the same
    after truncation to ``max_tokens``.
    """

    def documents_of(rows: Sequence[Row]) -> tuple[list[Document], Encoded]:
        return encode(
            rows,
            tokenizer,
            max_tokens=max_tokens,
            parse_special_tokens=parse_special_tokens,
            skip=skip,
        )

    documents, count = documents_of(task.rows)
    rejected: dict[str, Document] = {}
    if task.rejected:
        others, _ = documents_of([task.rejected[row.origin] for row in task.rows])
        rejected = {document.origin: document for document in others}
        pairs = [d for d in documents if d.origin in rejected and d.ids != rejected[d.origin].ids]
        count = replace(
            count,
            documents=len(pairs),
            dropped=count.dropped + len(documents) - len(pairs),
            tokens=sum(len(d.ids) for d in pairs),
        )
        documents = pairs
    return TaskDocuments(documents, {row.origin: row for row in task.rows}, rejected), count


def encode_tasks(
    section: FeedbackSet,
    tasks: Mapping[str, TaskRows],
    tokenizer: Any,
    *,
    parse_special_tokens: bool = False,
    skip: bool = False,
) -> tuple[dict[str, TaskDocuments], dict[str, Encoded]]:
    """The tokenised rows of all tasks.

    Returns:
        Documents by task, and counts by task (see :func:`encode_task`).

    Raises:
        UserError: a task has too few rows left for its batches.
    """
    encoded: dict[str, TaskDocuments] = {}
    counts: dict[str, Encoded] = {}
    problems = []
    for name, task in tasks.items():
        encoded[name], counts[name] = encode_task(
            task,
            tokenizer,
            max_tokens=section.max_tokens,
            parse_special_tokens=parse_special_tokens,
            skip=skip,
        )
        left, count = len(encoded[name].documents) // section.batches, counts[name]
        if left < (needed := section.batch_of(name)):
            message = (
                f"of {count.rows} rows {count.dropped + count.empty} do not fit "
                f"data.feedback.max_tokens ({section.max_tokens}), and too few are left for "
                f"{section.batches} batches; raise it, or lower this"
            )
            where = f"{section.where(name)}.batch_size"
            accepted = f"1 to {left}" if left else "none: there are more batches than rows left"
            problems.append(Problem(where, str(needed), accepted, message))
    if problems:
        raise UserError(*problems)
    return encoded, counts


def feedback_from(
    section: FeedbackSet,
    tasks: Mapping[str, TaskDocuments],
    tokenizer: Any,
    *,
    pad_id: int,
    seed: int,
    wrong_labels: bool = False,
    around: Callable[[str, Feedback], Feedback] = lambda name, feedback: feedback,
) -> MultiTaskFeedback:
    """The feedback of a recipe: its tasks, combined by their weights.

    Args:
        section: the recipe's feedback section.
        tasks: documents by task, from :func:`encode_tasks`.
        tokenizer: the learner's tokenizer.
        pad_id: padding token.
        seed: seed of batches and sampling.
        wrong_labels: whether labels are wrong, for a control (see :func:`mislabelled`).
        around: maps each task's name and feedback to a replacement (a memory, a control).
    """
    settings = section.named()
    signals: dict[str, Feedback] = {}
    for name, documents in tasks.items():
        where = section.where(name)
        if wrong_labels:
            documents = mislabelled(documents, seed, where)
        samplers = parted(
            documents.documents,
            section.batches,
            batch_size=section.batch_of(name),
            seed=seed,
            pad_id=pad_id,
            where=where,
        )
        site = FeedbackSite(documents, samplers, tokenizer, seed, where, section.loss_mean)
        signals[name] = around(name, settings[name].build(site))
    weights = {name: task.weight for name, task in settings.items()}
    return MultiTaskFeedback(
        signals, weights, resolve=RESOLVE[section.conflict], unit=section.scale == "unit"
    )


def mislabelled(task: TaskDocuments, seed: int, where: str) -> TaskDocuments:
    """The task with wrong labels in the right format: solutions and reference answers are permuted
    among rows; the two answers of a preference are swapped with probability 1/2.

    Raises:
        UserError: all rows have the same prompt, or none, so that no solution would be wrong;
            ``where`` is the recipe key or argument of the rows.
    """
    if task.rejected:
        coin = random.Random(f"shuffled {seed}")
        swapped = {document.origin for document in task.documents if coin.random() < 0.5}
        both = {
            document.origin: (document, task.rejected[document.origin])
            for document in task.documents
        }
        both = {origin: pair[::-1] if origin in swapped else pair for origin, pair in both.items()}
        return replace(
            task,
            documents=[chosen for chosen, _ in both.values()],
            rejected={origin: rejected for origin, (_, rejected) in both.items()},
        )
    if len({tuple(split(document)[0]) for document in task.documents}) < 2:
        message = "shuffled_feedback gives each prompt the solution of another, and these rows all "
        message += "have the same prompt or none: take another control, or rows with prompts"
        accepted = "rows with prompts of their own; or the arm fixed_random_direction"
        raise user_error(where, message, accepted=accepted)
    answers = [row.text for row in task.rows.values()]
    random.Random(f"shuffled {seed}").shuffle(answers)
    rows = {
        origin: replace(row, text=text)
        for (origin, row), text in zip(task.rows.items(), answers, strict=True)
    }
    return replace(task, documents=shuffled(task.documents, seed), rows=rows)
