"""From the recipe's feedback section to feedback: rows, documents, signals; every problem is found
before a step is taken.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vpretrain.language.data.batch import LossMean
from vpretrain.language.data.columns import shortened
from vpretrain.language.data.rows import Document, Encoded, Row, encode
from vpretrain.language.data.stream import Sampler
from vpretrain.language.feedback.checkers import CHECKERS, DEFAULT_PATTERNS, checker_named
from vpretrain.language.feedback.likelihood import Likelihood, parted, shuffled
from vpretrain.language.feedback.preferences import Preferences
from vpretrain.language.feedback.rewards import Rewards, Sampling
from vpretrain.language.recipe.feedback import (
    FeedbackSet,
    LikelihoodTask,
    PreferenceTask,
    RewardTask,
)
from vpretrain.language.recipe.rows import Rows
from vpretrain.method.conflict import Resolve, kept, projected
from vpretrain.method.feedback import MultiTaskFeedback
from vpretrain.method.roles import Feedback
from vpretrain.system.errors import Problem, UserError, user_error

_PROBLEMS_SHOWN = 5

RESOLVE: Mapping[str, Resolve] = {"sum": kept, "project": projected}


@dataclass(frozen=True)
class TaskRows:
    """The rows of one task.

    Args:
        rows: prompts with their verified solutions (the chosen answers of preferences).
        rejected: of preferences, by the ``origin`` of the chosen row: the same prompt with the
            other answer.
    """

    rows: list[Row]
    rejected: dict[str, Row] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskDocuments:
    """The same in tokens.

    Args:
        documents: prompt (masked) and solution.
        rows: the row behind each document's ``origin``.
        rejected: of preferences, by the same.
    """

    documents: list[Document]
    rows: dict[str, Row]
    rejected: dict[str, Document] = field(default_factory=dict)


def read_tasks(
    section: FeedbackSet, read: Callable[[Rows, str, str], list[Row]], stream: Sequence[str]
) -> tuple[dict[str, TaskRows], list[Problem]]:
    """The rows of every task, and what is wrong with them.

    Args:
        section: of the recipe.
        read: ``(rows, name, dotted key)`` to rows; reports its own problems and then gives none.
        stream: names of the stream's sources.
    """
    tasks: dict[str, TaskRows] = {}
    problems: list[Problem] = []
    for name, task in section.named().items():
        where = section.where(name)
        rows = read(task.rows, name, f"{where}.rows")
        rejected = {}
        if isinstance(task, PreferenceTask) and rows:
            other = task.rows.model_copy(update={"solution": task.rejected})
            # A problem with a column reads "set <this>.solution to one that is there".
            rejected = {
                row.origin: row
                for row in read(other, name, f"{where}.rejected, which takes the place of rows")
            }
            rows = [row for row in rows if row.origin in rejected]
        tasks[name] = TaskRows(rows, rejected)
        problems += _misfits(section, name, tasks[name], stream)
    return tasks, problems


def _misfits(
    section: FeedbackSet, name: str, task_rows: TaskRows, stream: Sequence[str]
) -> Iterator[Problem]:
    """Rows that are good in themselves, but not for what their task does with them."""
    task, where, rows = section.named()[name], section.where(name), task_rows.rows
    needed, batches = section.batch_of(name), section.batches
    if rows and len(rows) // batches < needed:
        message = (
            f"the feedback set is smaller than {batches} batches without a row in common; "
            "lower this or add rows"
        )
        accepted = f"none yet: {batches} batches need {batches} rows or more"
        if most := len(rows) // batches:
            accepted = f"1 to {most}: there are {len(rows)} rows"
        yield Problem(f"{where}.batch_size", str(needed), accepted, message)
    if raw := next((row for row in rows if not row.prompt), None):
        message = (
            "this feedback row has no prompt, so nothing in it is a verified solution; use "
            "other rows"
        )
        accepted = "rows with a prompt and a `solution`, or of word_problems"
        yield Problem(f"{where}.rows {raw.origin}", shortened(raw.text), accepted, message)
    for source in task.sources:
        if source not in stream:
            message = "the stream has no source of this name; correct it"
            yield Problem(f"{where}.sources", source, "of " + ", ".join(stream), message)
    if isinstance(task, RewardTask):
        yield from _unanswered(task, where, rows)
    same = [
        row
        for row in rows
        if row.origin in task_rows.rejected and row.text == task_rows.rejected[row.origin].text
    ]
    message = (
        "the chosen and the rejected answer are the same, which prefers nothing; correct "
        "the row, or take it out"
    )
    yield from _some(same, "two different answers", message, where)


def _unanswered(task: RewardTask, where: str, rows: Sequence[Row]) -> Iterator[Problem]:
    """An unknown checker; rows whose own solution earns nothing."""
    if task.checker not in CHECKERS:
        message = (
            "there is no such checker; name one of these, or put your own into CHECKERS in Python"
        )
        yield Problem(f"{where}.checker", task.checker, ", ".join(CHECKERS), message)
        return
    if task.checker in DEFAULT_PATTERNS:  # what others pay for is theirs to say
        checker = checker_named(task.checker, task.answer)
        bad = [row for row in rows if not checker(row, row.text)]
        message = (
            f"the checker {task.checker} finds no answer in this solution; correct the row, or "
            f"set {where}.answer"
        )
        yield from _some(
            bad, f"a solution with {task.answer or DEFAULT_PATTERNS[task.checker]}", message, where
        )


def _some(rows: Sequence[Row], accepted: str, message: str, where: str) -> Iterator[Problem]:
    for row in rows[:_PROBLEMS_SHOWN]:
        yield Problem(row.origin, shortened(row.text), accepted, message)
    if len(rows) > _PROBLEMS_SHOWN:
        yield Problem(
            f"{where}.rows", "", "", f"{len(rows) - _PROBLEMS_SHOWN} more rows are like that"
        )


def encode_tasks(
    section: FeedbackSet,
    tasks: Mapping[str, TaskRows],
    tokenizer: Any,
    *,
    parse_special_tokens: bool = False,
) -> tuple[dict[str, TaskDocuments], dict[str, Encoded]]:
    """The tasks' rows in tokens.

    Returns:
        By task the documents, and what became of its rows. A pair of which one answer is lost, or
        of which nothing but what is the same remains at ``max_tokens``, is left out, and counted as
        dropped.

    Raises:
        UserError: too few rows of a task are left for its batches.
    """
    encoded: dict[str, TaskDocuments] = {}
    counts: dict[str, Encoded] = {}
    problems = []

    def documents_of(rows: Sequence[Row]) -> tuple[list[Document], Encoded]:
        return encode(
            rows,
            tokenizer,
            max_tokens=section.max_tokens,
            parse_special_tokens=parse_special_tokens,
        )

    for name, task in tasks.items():
        documents, count = documents_of(task.rows)
        rejected: dict[str, Document] = {}
        if task.rejected:
            others, _ = documents_of([task.rejected[row.origin] for row in task.rows])
            rejected = {document.origin: document for document in others}
            documents, count = _paired(documents, rejected, count)
        counts[name] = count
        encoded[name] = TaskDocuments(documents, {row.origin: row for row in task.rows}, rejected)
        if len(documents) // section.batches < (needed := section.batch_of(name)):
            message = (
                f"of {count.rows} rows {count.dropped + count.empty} do not fit "
                f"data.feedback.max_tokens ({section.max_tokens}), and too few are left for "
                f"{section.batches} batches; raise it, or lower this"
            )
            most = len(documents) // section.batches
            accepted = f"1 to {most}" if most else "none: there are more batches than rows left"
            problems.append(
                Problem(f"{section.where(name)}.batch_size", str(needed), accepted, message)
            )
    if problems:
        raise UserError(*problems)
    return encoded, counts


def _paired(
    documents: Sequence[Document], rejected: Mapping[str, Document], count: Encoded
) -> tuple[list[Document], Encoded]:
    """The chosen answers that have a rejected one which differs, and what became of the rows."""
    pairs = [d for d in documents if d.origin in rejected and d.ids != rejected[d.origin].ids]
    return pairs, replace(
        count,
        documents=len(pairs),
        dropped=count.dropped + len(documents) - len(pairs),
        tokens=sum(len(d.ids) for d in pairs),
    )


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
    """The tasks of a recipe, weighed together.

    Args:
        section: of the recipe.
        tasks: by name, as :func:`encode_tasks` gives them.
        tokenizer: of the learner.
        pad_id: fills rows up.
        seed: of batches and draws.
        wrong_labels: for a control: solutions and reference answers of other rows, preferences by
            the toss of a coin.
        around: is given each task's name and feedback, and returns what takes its place (a
            memory, a control).
    """
    if wrong_labels:
        tasks = {name: _mislabelled(documents, seed) for name, documents in tasks.items()}
    settings = section.named()
    signals: dict[str, Feedback] = {}
    for name, documents in tasks.items():
        samplers = parted(
            documents.documents,
            section.batches,
            batch_size=section.batch_of(name),
            seed=seed,
            pad_id=pad_id,
            where=section.where(name),
        )
        signal = _signal(
            settings[name],
            documents,
            samplers,
            tokenizer,
            seed=seed,
            where=section.where(name),
            loss_mean=section.loss_mean,
        )
        signals[name] = around(name, signal)
    weights = {name: task.weight for name, task in settings.items()}
    return MultiTaskFeedback(
        signals, weights, resolve=RESOLVE[section.conflict], unit=section.scale == "unit"
    )


def _signal(
    task: LikelihoodTask | RewardTask | PreferenceTask,
    documents: TaskDocuments,
    samplers: Sequence[Sampler],
    tokenizer: Any,
    *,
    seed: int,
    where: str,
    loss_mean: LossMean,
) -> Feedback:
    if isinstance(task, RewardTask):
        if task.checker not in CHECKERS:
            message = "there is no such checker; put it into CHECKERS before the run is built"
            raise user_error(
                f"{where}.checker", message, value=task.checker, accepted=", ".join(CHECKERS)
            )
        sampling = Sampling(task.samples, task.temperature, task.new_tokens)
        return Rewards(
            samplers,
            documents.rows,
            tokenizer,
            checker_named(task.checker, task.answer),
            sampling=sampling,
            baseline=task.baseline,
            seed=seed,
            where=where,
            checker_seconds=task.checker_seconds,
        )
    if isinstance(task, PreferenceTask):
        pairs = [
            (document, documents.rejected[document.origin]) for document in documents.documents
        ]
        return Preferences(samplers, pairs, beta=task.beta)
    return Likelihood(samplers, loss_mean)


def _mislabelled(task: TaskDocuments, seed: int) -> TaskDocuments:
    """Right format, wrong labels."""
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
    answers = [row.text for row in task.rows.values()]
    random.Random(f"shuffled {seed}").shuffle(answers)
    rows = {
        origin: replace(row, text=text)
        for (origin, row), text in zip(task.rows.items(), answers, strict=True)
    }
    return replace(task, documents=shuffled(task.documents, seed), rows=rows)
