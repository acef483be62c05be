"""The data and model location shared by the runs of one language recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vpretrain.language.data.rows import Document, Encoded
from vpretrain.language.data.stream import Source
from vpretrain.language.data.texts import Texts
from vpretrain.language.feedback.signals import TaskDocuments


@dataclass(frozen=True)
class Materials:
    """Data and model location of a recipe, the same for every arm and seed.

    Args:
        location: folder or hub id of the learner; None for random weights.
        tokenizer: the learner's tokenizer.
        texts: all rows.
        sources: the stream's documents with their weights.
        tasks: the feedback tasks' documents, by name.
        evaluation, also: documents of ``texts.evaluation`` and ``texts.also``.
        counts: counts of tokenisation, by set of rows: documents, tokens, rows cut, chunked or
            dropped.
        benchmarks: the benchmarks of ``evaluate.tasks`` with their problems, by name
            (:mod:`vpretrain.language.evaluation`).
        notices: messages about the rows to show before the first step.
    """

    location: str | None
    tokenizer: Any
    texts: Texts
    sources: list[Source]
    tasks: dict[str, TaskDocuments]
    evaluation: list[Document]
    also: dict[str, list[Document]]
    counts: dict[str, Encoded]
    benchmarks: dict[str, tuple[Any, list[Any]]]
    notices: list[str]

    @property
    def feedback(self) -> list[Document]:
        """The documents of all feedback tasks."""
        return [document for task in self.tasks.values() for document in task.documents]

    @property
    def pad_id(self) -> int:
        """The padding token, or the end token if there is none; it is never predicted."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)
