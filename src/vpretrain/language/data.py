"""From the recipe's data section to rows of text; every problem in them is found before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpretrain.errors import Problem, UserError, user_error
from vpretrain.language import word_problems
from vpretrain.language.corrupt import corrupt_digits
from vpretrain.language.recipe import Chatter, JsonLines, LanguageRecipe, Rows, WordProblems
from vpretrain.language.rows import Row, overlap, read_jsonl

_PAIRS_SHOWN = 5


@dataclass(frozen=True)
class Texts:
    """All rows of a recipe, before any tokenizer.

    Args:
        stream: rows by source name, in the recipe's order.
        feedback: the verified rows.
        evaluation: the rows of ``evaluate.split``.
        also: those of ``evaluate.also``, by split.
    """

    stream: dict[str, list[Row]]
    feedback: list[Row]
    evaluation: list[Row]
    also: dict[str, list[Row]]


def read(recipe: LanguageRecipe) -> Texts:
    """Reads every source.

    Raises:
        UserError: with the problems of all sources at once; also when feedback rows stand in the stream or in the rows
            that are evaluated on.
    """
    data, split = recipe.data, recipe.evaluate.split
    problems: list[Problem] = []

    def rows(spec: Rows, name: str, where: str) -> list[Row]:
        try:
            return read_rows(spec, name, where, data.root)
        except UserError as error:
            problems.extend(error.problems)
            return []

    stream = {s.name: rows(s.rows, s.name, f"data.stream.{i}.rows") for i, s in enumerate(data.stream)}
    if len(stream) < len(data.stream):
        names = ", ".join(source.name for source in data.stream)
        problems.append(Problem("data.stream", names, "distinct names", "two sources have the same name; rename one"))
    feedback = rows(data.feedback.rows, "feedback", "data.feedback.rows")
    evaluation = rows(data.evaluation[split], split, f"data.evaluation.{split}")
    also = {name: rows(data.evaluation[name], name, f"data.evaluation.{name}") for name in recipe.evaluate.also}
    problems += _misfits(recipe, feedback, evaluation)
    problems += _leaks(feedback, [row for source in stream.values() for row in source], "the stream")
    for name, held_out in {split: evaluation, **also}.items():
        problems += _leaks(feedback, held_out, f"the {name} rows")
    if problems:
        raise UserError(*problems)
    return Texts(stream, feedback, evaluation, also)


def read_rows(spec: Rows, name: str, where: str, root: Path) -> list[Row]:
    """The rows of one source, file or generator.

    Args:
        spec: the source.
        name: for :attr:`Row.source`.
        where: its dotted recipe key, for messages.
        root: folder that a relative path starts from; ``~`` is the home folder, here and in the path.

    Returns:
        At least one row.

    Raises:
        UserError: the file cannot be used (see :func:`read_jsonl`), no row is chosen, or the generator refuses.
    """
    if isinstance(spec, JsonLines):
        path = root.expanduser() / spec.path.expanduser()
        columns = {"text": spec.text, "prompt": spec.prompt, "solution": spec.solution}
        found = read_jsonl(path, name=name, **columns, where=f"{where}.path")
        chosen = found[spec.skip_rows :][: spec.rows]
        if not chosen:
            message = "no row of the file is left; skip fewer"
            accepted = f"0 to {len(found) - 1}: the file has {len(found)} rows"
            raise user_error(f"{where}.skip_rows", message, value=spec.skip_rows, accepted=accepted)
        return corrupt_digits(chosen, spec.corrupt_digits, seed=0) if spec.corrupt_digits else chosen
    try:
        if isinstance(spec, WordProblems):
            made = word_problems.problems(
                spec.split, spec.rows, seed=spec.seed, noise_share=spec.noise_share, random_share=spec.random_share,
                forms=spec.forms, operations=spec.operations,
            )  # fmt: skip
        else:
            assert isinstance(spec, Chatter)
            made = word_problems.chatter(spec.rows, seed=spec.seed)
    except ValueError as error:
        raise user_error(where, str(error), value=spec.model_dump()) from None
    texts = ((row.get("problem", ""), row.get("solution") or row["text"]) for row in made)
    return [Row(prompt, text, f"{name}:{i}", name) for i, (prompt, text) in enumerate(texts, 1)]


def _misfits(recipe: LanguageRecipe, feedback: Sequence[Row], evaluation: Sequence[Row]) -> Iterator[Problem]:
    """Rows that are good in themselves, but not for what the recipe does with them."""
    data, split, answer = recipe.data, recipe.evaluate.split, recipe.evaluate.answer
    for key, tokens in (("window_tokens", data.window_tokens), ("feedback.max_tokens", data.feedback.max_tokens)):
        if tokens < 2:
            message = "one token predicts the next, so a row holds two or more"
            yield Problem(f"data.{key}", str(tokens), "2 or more; usually hundreds", message)
    batches = data.feedback.batches
    if feedback and len(feedback) // batches < (needed := data.feedback.batch_size):
        message = f"the feedback set is smaller than {batches} batches without a row in common; lower this or add rows"
        accepted = f"1 to {len(feedback) // batches}: there are {len(feedback)} rows"
        yield Problem("data.feedback.batch_size", str(needed), accepted, message)
    if raw := next((row for row in feedback if not row.prompt), None):
        message = "this feedback row has no prompt, so nothing in it is a verified solution; use other rows"
        accepted = "rows of a `prompt` column and a `solution` column, or of word_problems"
        yield Problem(f"data.feedback.rows {raw.origin}", _shortened(raw.text), accepted, message)
    if answer is None or not evaluation:
        return
    if raw := next((row for row in evaluation if not row.prompt), None):
        message = "evaluate.answer asks for answers to be generated, and this row has no prompt to answer"
        accepted = "rows with a prompt and a solution, or evaluate.answer=null"
        yield Problem(f"data.evaluation.{split} {raw.origin}", _shortened(raw.text), accepted, message)
    elif not any(re.search(answer, row.text) for row in evaluation):
        message = f"this finds an answer in none of the {len(evaluation)} {split} solutions; correct the expression"
        accepted = f"one that matches, say, {_shortened(evaluation[0].text)!r}"
        yield Problem("evaluate.answer", answer, accepted, message)


def _leaks(feedback: Sequence[Row], others: Sequence[Row], what: str) -> Iterator[Problem]:
    pairs = overlap(feedback, others)
    if pairs:
        shown = ", ".join(f"{a.origin} = {b.origin}" for a, b in pairs[:_PAIRS_SHOWN])
        more = ", ..." if len(pairs) > _PAIRS_SHOWN else ""
        message = (
            f"{len(pairs)} of the feedback rows are also in {what}; take them out of one of the two"
            " (skip_rows and rows choose a part of a file)"
        )
        yield Problem("data.feedback.rows", shown + more, "feedback rows that stand nowhere else", message)


def _shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
