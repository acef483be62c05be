"""Reads all rows of a recipe, and reports every problem with them before training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from vpretrain.language import posttraining
from vpretrain.language.data import certificate
from vpretrain.language.data.layout import Layout
from vpretrain.language.data.reading import Reader
from vpretrain.language.data.row_store import StoredDocuments
from vpretrain.language.data.rows import Document, Encoded, Row, encode_into, overlap, same_tokens
from vpretrain.language.feedback.signals import TaskRows
from vpretrain.language.feedback.tasks import read_tasks
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.recipe.data import Data, Source
from vpretrain.language.recipe.feedback import SINGLE
from vpretrain.language.recipe.rows import TableFiles, TextFiles
from vpretrain.run.parts import FEW_ROWS
from vpretrain.system.errors import Problem, UserError, abbreviated, shortened
from vpretrain.system.locations import files, under

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PAIRS_SHOWN = 5


@dataclass(frozen=True)
class Texts:
    """All rows of a recipe, before tokenisation.

    Args:
        stream: rows by source name, in the recipe's order, stored on disk.
        feedback: the verified rows of all tasks.
        tasks: the same rows by task, with the rejected answers of preferences.
        evaluation: the rows of ``evaluate.split``.
        also: the rows of ``evaluate.also``, by split.
        posttraining: the rows of ``posttraining.rows``.
        skipped: problems of rows that ``data.on_bad_row: skip`` left out.
        doubts: warnings about stream sources that were not searched for near-duplicates of feedback
            and evaluation rows.
        copies: for each stream source, the number of rows that exactly repeat an earlier one.
    """

    stream: dict[str, Sequence[Row]]
    feedback: list[Row]
    tasks: dict[str, TaskRows]
    evaluation: list[Row]
    also: dict[str, list[Row]]
    posttraining: Sequence[Row]
    skipped: list[Problem] = field(default_factory=list)
    doubts: list[Problem] = field(default_factory=list)
    copies: dict[str, int] = field(default_factory=dict)


def read(recipe: LanguageRecipe) -> Texts:
    """Reads all rows of a recipe.

    Raises:
        UserError: with the problems of all sources at once, including feedback rows that are also
            in the stream or in the evaluation, and evaluation rows that are also in the stream.
    """
    data, split = recipe.data, recipe.evaluate.split
    reader = Reader(data)
    stream: dict[str, Sequence[Row]] = {
        source.name: reader.stream(source, f"data.stream.{i}")
        for i, source in enumerate(data.stream)
    }
    problems = reader.problems
    if len(stream) < len(data.stream):
        names = ", ".join(source.name for source in data.stream)
        message = "two sources have the same name; rename one"
        problems.append(Problem("data.stream", names, "distinct names", message))
    tasks, misfits = read_tasks(data.feedback, reader.rows, list(stream))
    feedback = [row for task in tasks.values() for row in task.rows]
    splits = {
        name: reader.rows(data.evaluation[name], name, f"data.evaluation.{name}")
        for name in (split, *recipe.evaluate.also)
    }
    problems += [*misfits, *_misfits(recipe, splits[split])]
    problems += _without_text(recipe, stream)
    trained = posttraining.rows_of(recipe, reader, stream, feedback)
    key = "data.feedback.rows" if data.feedback.rows is not None else "data.feedback.tasks"
    problems += _leaks(key, feedback, chain(*stream.values()), "the stream")
    for name, rows in splits.items():
        problems += _leaks(key, feedback, rows, f"the {name} rows")
        if trained is not feedback:
            problems += _leaks("posttraining.rows", trained, rows, f"the {name} rows")
        problems += _leaks(f"data.evaluation.{name}", rows, chain(*stream.values()), "the stream")
    if reader.unusable:
        message = f"{reader.unusable} rows cannot be used, as said: correct them, or leave them out"
        accepted = "skip, which leaves them out and names them"
        problems.append(Problem("data.on_bad_row", "stop", accepted, message))
    if problems:
        raise UserError(*problems)
    also = {name: splits[name] for name in recipe.evaluate.also}
    in_text = [row for row in chain(feedback, *splits.values()) if row.tokens is None]
    doubts = certificate.unchecked(_files(data), in_text)
    return Texts(
        stream, feedback, tasks, splits[split], also, trained, reader.skipped, doubts, reader.copies
    )


def _files(data: Data) -> Iterator[certificate.StreamFiles]:
    """The files of each stream source, without tokenised ones: near-duplicates need text."""
    for number, source in enumerate(data.stream):
        rows = source.rows
        if isinstance(rows, TextFiles) or (isinstance(rows, TableFiles) and rows.tokens is None):
            where = f"data.stream.{number}.rows"
            root, unit = data.root.expanduser(), None
            if isinstance(rows, TextFiles):
                unit = rows.document
            pattern = under(root, rows.path)
            yield certificate.StreamFiles(where, str(pattern), files(pattern, where), root, unit)


def documents_of(
    source: Source, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data
) -> tuple[StoredDocuments, Encoded]:
    """The documents of a source, stored on disk, and the counts; see :func:`encode_into`."""
    documents = StoredDocuments(source.name)
    parse, skip = data.parse_special_tokens, data.on_bad_row == "skip"
    layout = Layout(tokenizer, parse_special_tokens=parse, skip=skip)
    counts = encode_into(
        documents.keep,
        rows,
        layout,
        max_tokens=data.window_tokens,
        shortest_chunk_tokens=data.shortest_chunk_tokens,
        max_documents=source.max_documents,
    )
    return documents, counts


def notices(texts: Texts, counts: Mapping[str, Encoded], data: Data) -> list[str]:
    """Messages about rows that were left out or cut, to show before the first step. ``counts`` are
    keyed by ``stream/SOURCE`` and, for feedback and evaluation, by any other name."""
    lines = []
    if texts.doubts:
        what = "near-duplicates of feedback and evaluation rows in the stream"
        lines.append(f"warning: {what} would flatter the results:")
        lines += [f"  {doubt.where}: {doubt.message}" for doubt in texts.doubts]
    if texts.skipped:
        lines.append(f"rows are left out (data.on_bad_row: skip), {len(texts.skipped)} notes:")
        lines += [f"  {problem.where}: {problem.message}" for problem in texts.skipped]
    lines += [*_copies(texts, data), *_few(texts), *_repeated(texts)]
    for name, count in counts.items():
        limit = data.window_tokens if name.startswith("stream/") else data.feedback.max_tokens
        lines += [f"{name}: {loss}" for loss in count.losses(limit)]
    return [*lines, *unfamiliar(counts)]


def unfamiliar(counts: Mapping[str, Encoded]) -> Iterator[str]:
    """One warning that names all sets with many unknown tokens, if there are any."""
    shares = {name: share for name, count in counts.items() if (share := count.unfamiliar())}
    if shares:
        of = ", ".join(f"{share:.0%} of {name}" for name, share in shares.items())
        yield (
            "warning: the model's tokenizer does not know this text, and can learn little of it "
            f"(unknown tokens: {of}); name a model or tokenizer of this language and domain"
        )


def _copies(texts: Texts, data: Data) -> Iterator[str]:
    for name, count in texts.copies.items():
        if count and data.on_duplicate_row == "skip":
            yield f"stream/{name}: {count} rows left out, each a copy of an earlier one"
        elif count:
            total = f"{count} of {len(texts.stream[name])}"
            fix = "data.on_duplicate_row=skip leaves them out"
            yield f"stream/{name}: rows that are exact copies of earlier ones: {total}; {fix}"


def _repeated(texts: Texts) -> Iterator[str]:
    """Warnings about copies among feedback rows, which make its halves agree without sharing
    information."""
    for name, task in texts.tasks.items():
        distinct = len({(row.prompt, row.text) for row in task.rows if row.tokens is None})
        rows = sum(row.tokens is None for row in task.rows)
        if distinct < rows:
            whose = "the feedback" if name == SINGLE else f"the feedback {name}"
            yield (
                f"warning: {rows - distinct} of the {rows} rows of {whose} are copies of others, "
                "which makes the feedback look more reliable than it is: leave them out"
            )


def _few(texts: Texts) -> Iterator[str]:
    """Warnings about sets too small for a verdict, by the measurements in docs/choosing.md."""
    sets = {f"the feedback {name}": len(task.rows) for name, task in texts.tasks.items()}
    if SINGLE in texts.tasks:
        sets = {"the feedback": len(texts.tasks[SINGLE].rows)}
    for name, count in {**sets, "the evaluation": len(texts.evaluation)}.items():
        if count < FEW_ROWS:
            yield (
                f"warning: {name} has {count} rows, and on so few a verdict is unlikely: give "
                f"{FEW_ROWS} or more"
            )


def _misfits(recipe: LanguageRecipe, evaluation: Sequence[Row]) -> Iterator[Problem]:
    """Problems of settings and valid rows that do not fit each other."""
    data, split, answer = recipe.data, recipe.evaluate.split, recipe.evaluate.answer
    lengths = {
        "window_tokens": data.window_tokens,
        "feedback.max_tokens": data.feedback.max_tokens,
    }
    for key, tokens in lengths.items():
        if tokens < 2:
            message = "one token predicts the next, so a row holds two or more"
            yield Problem(f"data.{key}", str(tokens), "2 or more; usually hundreds", message)
    if answer is None or not evaluation:
        return
    if raw := next((row for row in evaluation if row.tokens or not row.prompt), None):
        message = "evaluate.answer asks for generated answers, and this row has no prompt to answer"
        accepted = "rows with a prompt and a solution, or evaluate.answer=null"
        where = f"data.evaluation.{split} {raw.origin}"
        yield Problem(where, shortened(raw.text), accepted, message)
    elif not any(re.search(answer, row.text) for row in evaluation):
        count = f"none of the {len(evaluation)} {split} solutions"
        message = f"this finds an answer in {count}; correct the expression"
        accepted = f"one that matches, say, {shortened(evaluation[0].text)!r}"
        yield Problem("evaluate.answer", answer, accepted, message)


def _without_text(recipe: LanguageRecipe, stream: Mapping[str, Sequence[Row]]) -> Iterator[Problem]:
    """Problems of tokenised rows in a stream that a tokenizer is to be trained on."""
    if recipe.learner.model is not None or recipe.learner.prepare is None:
        return
    for number, (name, rows) in enumerate(stream.items()):
        if rows and rows[0].tokens is not None:
            message = "a learner that is made from the stream has no tokenizer yet, and these rows "
            message += "are tokens: name the model that they were made for in learner.model"
            yield Problem(f"data.stream.{number}.rows.tokens", name, "rows of text", message)


def refuse_shared(
    texts: Texts,
    feedback: Sequence[Document],
    stream: Callable[[], Iterable[Document]],
    evaluation: Mapping[str, Sequence[Document]],
    special: Set[int],
) -> None:
    """Refuses rows of the feedback or of the evaluation that are also in the stream, and feedback
    rows that are evaluated on, if one of the two sets is tokenised and the other is text, which
    only shows after tokenisation.

    Args:
        texts: all rows; if none are tokenised, :func:`read` has already compared them.
        feedback: documents of the feedback.
        stream: gives the documents of the stream.
        evaluation: documents of each evaluated split, by name.
        special: ids to ignore in the comparison: beginning, end, padding.

    Raises:
        UserError: with the first such rows of each set.
    """
    parts = [*texts.stream.values(), texts.feedback, texts.evaluation, *texts.also.values()]
    if not any(rows and rows[0].tokens is not None for rows in parts):
        return
    named = {f"{name} rows": documents for name, documents in evaluation.items()}
    pairs: list[tuple[str, Sequence[Document], str, Iterable[Document]]] = [
        ("feedback rows", feedback, "the stream", stream()),
        *(("feedback rows", feedback, f"the {name}", each) for name, each in named.items()),
        *((name, each, "the stream", stream()) for name, each in named.items()),
    ]
    problems = []
    for what, documents, elsewhere, others in pairs:
        if shared := list(same_tokens(documents, others, special).items()):
            shown = abbreviated((f"{row} = {there}" for row, there in shared), _PAIRS_SHOWN)
            message = (
                f"{len(shared)} of the {what} are also in {elsewhere}, token by token; take them "
                "out of one of the two"
            )
            where = "data.feedback" if documents is feedback else "data.evaluation"
            problems.append(Problem(where, shown, "rows that stand nowhere else", message))
    if problems:
        raise UserError(*problems)


def _leaks(where: str, rows: Sequence[Row], others: Iterable[Row], what: str) -> Iterator[Problem]:
    pairs = overlap(rows, others)
    if pairs:
        shown = abbreviated((f"{a.origin} = {b.origin}" for a, b in pairs), _PAIRS_SHOWN)
        name = where.removeprefix("data.").partition(".")[0]
        message = f"{len(pairs)} of the {name} rows are also in {what}; take them out of one of "
        message += "the two (skip_rows and rows choose a part of a file)"
        yield Problem(where, shown, "rows that stand nowhere else", message)
