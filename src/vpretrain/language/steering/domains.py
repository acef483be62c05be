"""Domain-matched alignment (eq. 44-46): each stream document is compared with the feedback of its
own domain.

The value of a batch is ``sum_d <g_down^d, g_pre^d>``, where ``g_pre^d`` is the gradient of the part
of the loss in documents of domain d. This becomes an ordinary inner product if every domain gets
its own copy of S: the loss is then ``sum_d L_d(S_d)``, its gradient is the concatenation of the
``g_pre^d``, and ``g_down`` that of the ``g_down^d``. A learner with these copies (:class:`Matched`)
and feedback over them (:class:`MatchedFeedback`) are therefore enough: alignment, estimator,
preconditioner, reliability and designer do not change.

Eq. 46 averages over domains, each with a separate batch. It takes a learner with
:attr:`Matched.equal`, batches with the same number of rows of each domain, and an alignment in
groups, one a domain. Otherwise a batch is a mixture, a domain counts by its share of the predicted
tokens (as in the step being valued), and ``cosine`` and ``lower_bound`` are taken over all copies
together.

The suffix runs once for each domain in the batch; the head still runs once for each token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vpretrain.language.data.batch import TokenBatch
from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.learner.targets import SoftTargets
from vpretrain.method import vectors
from vpretrain.method.feedback import MultiTaskFeedback
from vpretrain.method.roles import Feedback, Gradient, Learner, Objective
from vpretrain.method.wrappers import WrappedLearner
from vpretrain.system import distributed

ALL = "*"
"""The domain of documents whose source no task names; its feedback is that of all tasks."""

Domains = Mapping[str, Collection[str]]
"""The feedback tasks of each domain, by the domain's name."""


def domains_of(
    sources: Mapping[str, Sequence[str]], tasks: Collection[str]
) -> tuple[Domains, dict[str, str]]:
    """The tasks of each domain (:data:`ALL` with all ``tasks`` first), and the domain of each
    stream source that a task names in ``sources``. Other sources belong to :data:`ALL`."""
    named = dict.fromkeys(source for each in sources.values() for source in each)
    of_source = {
        source: "+".join(task for task in tasks if source in sources.get(task, ()))
        for source in named
    }
    domains = {domain: domain.split("+") for domain in of_source.values()}
    return {ALL: list(tasks), **domains}, of_source


def _own(vector: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """The part of a vector over all copies that belongs to one domain, by the names of S."""
    return {
        name.removeprefix(f"{domain}/"): piece
        for name, piece in vector.items()
        if name.startswith(f"{domain}/")
    }


class Matched(WrappedLearner[TokenBatch, Context, SoftTargets]):
    """A causal learner with a copy of S for every domain; its training loss does not change.

    Args:
        learner: the learner whose parameters are trained.
        domains: distinct names without a slash, among them :data:`ALL`.
        of_source: domains by stream source; other sources belong to the domain :data:`ALL`.
        equal: whether the objective weights all domains of a batch equally (eq. 46) rather than by
            their share of the loss.
    """

    def __init__(
        self,
        learner: CausalLearner,
        domains: Collection[str],
        of_source: Mapping[str, str],
        *,
        equal: bool = False,
    ) -> None:
        super().__init__(learner)
        self.domains, self.of_source, self.equal = list(domains), of_source, equal
        self.aligned = {
            f"{domain}/{name}": p for domain in domains for name, p in learner.aligned.items()
        }

    def objective(self, context: Context, task: SoftTargets) -> Objective:
        """The loss as a function of all copies of S, with each token under its domain's copy; all
        processes must call it together."""
        places = self._places(context)
        contexts = {domain: context.part(where) for domain, where in places.items()}
        fractions = self._fractions(context, contexts)
        parts = []
        for domain, where in places.items():
            targets = SoftTargets(task.ids[where], task.mass[where])
            objective = self.learner.objective(contexts[domain], targets)
            parts.append((domain, where, fractions[domain], objective))

        def loss(parameters: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
            total = inputs[0].new_zeros(())
            for domain, where, fraction, objective in parts:
                own = objective.loss(_own(parameters, domain), (inputs[0][where],))
                total = total + fraction * own
            return total

        return Objective(task.controls(), loss)

    def _fractions(self, context: Context, contexts: Mapping[str, Context]) -> dict[str, float]:
        """Weight of each domain's mean loss in the objective of this process, which is then
        weighted by the process's share of the whole batch."""
        own = {domain: self._weight(part) for domain, part in contexts.items()}
        if not self.equal:
            whole = self._weight(context)
            return {domain: weight / whole for domain, weight in own.items()}
        here = [float(own.get(domain, 0)) for domain in self.domains]
        sizes = distributed.total(torch.tensor(here, dtype=torch.float64)).tolist()
        totals, count = dict(zip(self.domains, sizes, strict=True)), sum(map(bool, sizes))
        share = sum(here) / (sum(sizes) or 1.0)
        return {domain: size / totals[domain] / count / share for domain, size in own.items()}

    def _weight(self, context: Context) -> int:
        """Number of tokens or documents that the loss of a context averages."""
        if context.batch.loss_mean == "token":
            return len(context.labels)
        return len(context.document.unique())

    def _places(self, context: Context) -> dict[str, Tensor]:
        """Indices into the N predicted tokens, by domain, for domains that occur in the batch."""
        number = {domain: at for at, domain in enumerate(self.domains)}
        sources = [each.source for each in context.batch.documents]
        of_document = [number[self.of_source.get(source, ALL)] for source in sources]
        of_token = torch.tensor(of_document, device=context.labels.device)[context.document]
        places = {domain: (of_token == at).nonzero()[:, 0] for domain, at in number.items()}
        return {domain: where for domain, where in places.items() if len(where)}


class MatchedFeedback(Feedback[Matched]):
    """The gradients of each domain's tasks, as one vector over all copies of S.

    Args:
        tasks: the tasks with their weights. A domain gets the mean of its tasks' weighted
            gradients. The weights have mean 1, so that all domains have the same scale.
        domains: the tasks of each domain.
    """

    def __init__(self, tasks: MultiTaskFeedback, domains: Domains) -> None:
        self.tasks, self.domains = tasks, domains

    def prepare(self, learner: Matched) -> None:
        self.tasks.prepare(learner.learner)

    def gradients(self, learner: Matched) -> list[Gradient]:
        """``g_down`` over the copies of S, one per feedback batch."""
        return [
            {
                f"{domain}/{name}": piece
                for domain, tasks in self.domains.items()
                for name, piece in vectors.mean([batch[task] for task in tasks]).items()
            }
            for batch in self.tasks.each(learner.learner)
        ]

    def metrics(self) -> dict[str, float]:
        return self.tasks.metrics()

    def state_dict(self) -> dict[str, Any]:
        return self.tasks.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tasks.load_state_dict(state)


def matched(
    learner: CausalLearner,
    feedback: MultiTaskFeedback,
    sources: Mapping[str, Sequence[str]],
    *,
    equal: bool = False,
) -> tuple[Learner, Feedback]:
    """Learner and feedback, matched by domain if a task names ``sources`` of the stream, otherwise
    unchanged. See :class:`Matched` for ``equal``."""
    if not any(sources.values()):
        return learner, feedback
    domains, of_source = domains_of(sources, list(feedback.tasks))
    return Matched(learner, domains, of_source, equal=equal), MatchedFeedback(feedback, domains)
