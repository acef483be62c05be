"""What runs of one language recipe share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vpretrain.language.data.rows import Document, Encoded
from vpretrain.language.data.stream import Source
from vpretrain.language.data.texts import Texts
from vpretrain.language.feedback.signals import TaskDocuments


@dataclass(frozen=True)
class Materials:
    """What runs of one recipe share, whatever their arm and seed.

    Args:
        location: folder or hub id of the learner; None for random weights.
        tokenizer: the learner's.
        texts: all rows.
        sources: the stream's documents with their weights.
        tasks: the feedback tasks' documents, by name.
        evaluation, also: documents of those rows.
        counts: what became of the rows of each source: documents, tokens, rows cut, chunked or
            dropped.
        benchmarks: of ``evaluate.tasks``, by name (:mod:`vpretrain.language.evaluation`), each with
            its problems.
        notices: what a person should know of the rows before the first step, a line each.
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
        """What short rows are filled with; never predicted, so that any id would do."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)
