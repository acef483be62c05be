"""Feedback from pairs of a chosen and a rejected answer: direct preference optimisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler
from vpretrain.language.feedback.gradient import Sampled, log_probabilities
from vpretrain.language.feedback.passes import passes
from vpretrain.language.feedback.signals import (
    SIGNALS,
    FeedbackSite,
    Signal,
    TaskRows,
    problems_of_rows,
)
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.method.roles import Gradient
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import Problem

Pair = tuple[Document, Document]


class Preferences(Sampled):
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7), with the initial
    checkpoint as the reference.

    The slow definition, with ``log p(y)`` summed over the tokens of an answer::

        for chosen, rejected in batch:
            now = log p(chosen) - log p(rejected)
            before = log p_reference(chosen) - log p_reference(rejected)
            loss -= log sigmoid(beta * (now - before)) / len(batch)

    Args:
        samplers: batches of the chosen answers, see :class:`Sampled`.
        pairs: ``(chosen, rejected)`` after the same prompt, which is masked; the ``origin`` of each
            chosen answer is unique.
        beta: > 0; a preference counts as learnt once its margin over the reference is about
            ``1 / beta`` nats.
    """

    def __init__(self, samplers: Sequence[Sampler], pairs: Sequence[Pair], *, beta: float) -> None:
        super().__init__(samplers)
        self.pairs, self.beta = pairs, beta
        self.rejected = {chosen.origin: rejected for chosen, rejected in pairs}
        if len(self.rejected) < len(pairs):
            raise ValueError(
                "two pairs have the same origin, by which rejected answers are looked up"
            )
        self.reference: dict[str, float] = {}
        self.margins: list[Tensor] = []

    def prepare(self, learner: CausalLearner) -> None:
        """Takes the current learner as the reference: runs it over all pairs and keeps one margin
        per pair."""
        chosen = [chosen for chosen, _ in self.pairs]
        with torch.no_grad(), evaluating(learner.model):
            for some in passes(chosen, self._tokens, learner.device):
                margins = self._margins(learner, some, self.samplers[0].pad_id).tolist()
                self.reference |= {
                    document.origin: margin for document, margin in zip(some, margins, strict=True)
                }

    def gradients(self, learner: CausalLearner) -> list[Gradient]:
        """See :class:`Sampled`; calls :meth:`prepare` first if there is no reference yet."""
        self.margins = []
        if not self.reference:
            self.prepare(learner)
        return super().gradients(learner)

    def losses(
        self, learner: CausalLearner, documents: list[Document], pad_id: int
    ) -> Iterator[Tensor]:
        """See :class:`Sampled`; both answers of a pair are in the same forward pass."""
        for some in passes(documents, self._tokens, learner.device):
            now = self._margins(learner, some, pad_id)
            before = now.new_tensor([self.reference[document.origin] for document in some])
            self.margins.append((now - before).detach())
            yield -nn.functional.logsigmoid(self.beta * (now - before)).sum() / len(documents)

    def _tokens(self, chosen: Document) -> int:
        """Tokens of a pair in a pass: two answers, both padded to the longer one."""
        return 2 * max(len(chosen.ids), len(self.rejected[chosen.origin].ids))

    def _margins(self, learner: CausalLearner, chosen: Sequence[Document], pad_id: int) -> Tensor:
        """``log p(chosen) - log p(rejected)`` of each pair, ``[R]``."""
        both = [*chosen, *(self.rejected[document.origin] for document in chosen)]
        return torch.sub(*log_probabilities(learner, both, pad_id).chunk(2))

    def metrics(self) -> dict[str, float]:
        """``margin``, the mean gain over the reference in nats, and ``preferred``, the fraction of
        pairs where it is above 0."""
        if not self.margins:
            return {}
        margins = torch.cat(self.margins)
        return {"margin": float(margins.mean()), "preferred": float((margins > 0).double().mean())}

    def state_dict(self) -> dict[str, Any]:
        """The samplers' positions and the reference margins, which a resumed run could not compute
        without the initial checkpoint."""
        return {**super().state_dict(), "reference": dict(self.reference)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.reference = dict(state["reference"])


@SIGNALS.declare("preference", "chosen over rejected answers: direct preference optimisation")
class PreferenceSignal(Signal):
    """Direct preference optimisation on pairs of a chosen and a rejected answer, with the initial
    checkpoint as the reference."""

    rejected: str
    """Column of the rejected answer; ``rows.solution`` is the column of the chosen one."""
    beta: PositiveFloat = 0.1
    """DPO beta: larger values keep the learner closer to the initial checkpoint."""

    @property
    def second_answer(self) -> tuple[str, str]:
        return "rejected", self.rejected

    def problems(self, task: TaskRows, where: str) -> Iterator[Problem]:
        """Problems of pairs whose two answers are the same."""
        same = [row for row in task.rows if row.text == task.rejected[row.origin].text]
        message = (
            "the chosen and the rejected answer are the same, which prefers nothing; correct "
            "the row, or take it out"
        )
        yield from problems_of_rows(same, "two different answers", message, where)

    def build(self, site: FeedbackSite) -> Preferences:
        pairs = [(chosen, site.task.rejected[chosen.origin]) for chosen in site.task.documents]
        return Preferences(site.samplers, pairs, beta=self.beta)
