"""From the recipe's data section to token documents; every problem is found before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpretrain.errors import Problem, UserError, user_error
from vpretrain.language import word_problems
from vpretrain.language.corrupt import corrupt_digits
from vpretrain.language.recipe import Chatter, JsonLines, LanguageRecipe, Rows, WordProblems
from vpretrain.language.rows import Row, overlap, read_jsonl


@dataclass(frozen=True)
class Texts:
    """All rows of a recipe, before any tokenizer.

    Args:
        stream: rows by source name, in the recipe's order.
        feedback: the verified rows.
        evaluation: the rows of ``evaluate.split``.
    """

    stream: dict[str, list[Row]]
    feedback: list[Row]
    evaluation: list[Row]


def read(recipe: LanguageRecipe) -> Texts:
    """Reads every source.

    Raises:
        UserError: with the problems of all sources at once; also when feedback rows stand in the stream or in the rows
            that are evaluated on.
    """
    problems: list[Problem] = []

    def rows(spec: Rows, name: str, where: str) -> list[Row]:
        try:
            return read_rows(spec, name, where, recipe.data.root)
        except UserError as error:
            problems.extend(error.problems)
            return []

    stream = {s.name: rows(s.rows, s.name, f"data.stream.{i}.rows") for i, s in enumerate(recipe.data.stream)}
    if len(stream) < len(recipe.data.stream):
        names = [source.name for source in recipe.data.stream]
        problems.append(Problem("data.stream", repr(names), "distinct names", "two sources have the same name; rename one"))
    feedback = rows(recipe.data.feedback.rows, "feedback", "data.feedback.rows")
    split = recipe.evaluate.split
    evaluation = rows(recipe.data.evaluation[split], split, f"data.evaluation.{split}")
    needed = recipe.data.feedback.batch_size
    if feedback and len(feedback) < needed:
        problems.append(Problem(
            "data.feedback.batch_size", str(needed), f"1 to {len(feedback)}, the rows there are",
            "the feedback set is smaller than one batch; lower the batch size or add rows",
        ))  # fmt: skip
    problems += [
        Problem(
            row.origin, _shorten(row.prompt), "feedback rows with a prompt and its verified solution",
            "this feedback row has no prompt; name the columns with `prompt` and `solution`",
        )  # fmt: skip
        for row in feedback[:1]
        if not row.prompt
    ]
    if not problems:
        problems += _leaks(feedback, [row for source in stream.values() for row in source], "the stream")
        problems += _leaks(feedback, evaluation, f"the {split} rows")
    if problems:
        raise UserError(*problems)
    return Texts(stream, feedback, evaluation)


def read_rows(spec: Rows, name: str, where: str, root: Path) -> list[Row]:
    """The rows of one source, file or generator."""
    if isinstance(spec, JsonLines):
        found = read_jsonl(
            root / spec.path, name=name, text=spec.text, prompt=spec.prompt, solution=spec.solution, where=f"{where}.path"
        )
        chosen = found[spec.skip_rows :][: spec.rows]
        if not chosen:
            raise user_error(
                f"{where}.skip_rows", "no row is left", value=spec.skip_rows, accepted=f"less than {len(found)}, its rows"
            )
        return corrupt_digits(chosen, spec.corrupt_digits, seed=0) if spec.corrupt_digits else chosen
    try:
        if isinstance(spec, WordProblems):
            made = word_problems.problems(
                spec.split, spec.rows, seed=spec.seed, noise_share=spec.noise_share, random_share=spec.random_share
            )
        else:
            assert isinstance(spec, Chatter)
            made = word_problems.chatter(spec.rows, seed=spec.seed)
    except ValueError as error:
        raise user_error(where, str(error), value=spec.model_dump()) from None
    return [
        Row(row.get("problem", ""), row.get("solution") or row["text"], f"{name}:{i}", name) for i, row in enumerate(made, 1)
    ]


def _leaks(feedback: Sequence[Row], others: Sequence[Row], what: str) -> list[Problem]:
    pairs = overlap(feedback, others)
    if not pairs:
        return []
    shown = ", ".join(f"{a.origin} = {b.origin}" for a, b in pairs[:5]) + (", ..." if len(pairs) > 5 else "")
    return [Problem(
        "data.feedback", shown, "feedback rows that stand nowhere else",
        f"{len(pairs)} feedback rows are also in {what}; take them out of one of the two (skip_rows and rows choose a part)",
    )]  # fmt: skip


def _shorten(text: Any, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
