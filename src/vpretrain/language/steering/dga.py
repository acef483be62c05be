"""A mixture of sources updated from the feedback by exponentiated gradient steps (DGA)."""

from __future__ import annotations

import logging
import math
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from vpretrain.language.learner.causal import Context
from vpretrain.language.learner.targets import SoftTargets, one_hot
from vpretrain.language.steering.arms import ARMS, LanguageArm, Site
from vpretrain.language.steering.rules import Candidates, sources_of
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import (
    AlignmentName,
    Bounds,
    Designer,
    Learned,
    Metrics,
    State,
    ValueFunction,
)
from vpretrain.method.rules import standardised
from vpretrain.system import distributed

log = logging.getLogger(__name__)

STARVED = 0.01
"""Weight of a source's tokens below which a warning is logged."""


class SourceMixture(Designer[Context, SoftTargets]):
    """One-hot targets with tokens weighted by source: ``alpha_s / pi_s``, where ``alpha`` is the
    mixture learned from the feedback and ``pi`` the mixture of the stream, as the meta steps'
    batches have had it so far.

    A meta step sets ``alpha_s <- alpha_s exp(eta a_s) / sum``. ``a_s = <u, grad_S (L_s - L)>``,
    with the mean loss ``L_s`` of the tokens of source s in the batch and ``L`` of all tokens, is
    measured in standard errors: the mean token value over the values' standard deviation, times the
    square root of the number of tokens. A source that a batch lacks keeps its ``alpha_s / pi_s`` up
    to the normalisation. Weights use a running mean of that ratio.

    Args:
        step_size: eta >= 0.
        memory: weight of the past in the running mean, in [0, 1).
        reliability: measures the feedback; values are not shrunk by it, as the method does not.

    Attributes:
        logs: ``log(alpha_s / pi_s)`` by source, up to a constant.
        ratio: running mean of ``alpha_s / pi_s`` by source; 1 for sources not seen yet.
        tokens: predicted tokens of each source in the meta steps' batches, of which ``pi`` is made.
    """

    uses_feedback = True
    alignment = "dot"

    def __init__(self, step_size: float, memory: float, reliability: Reliability) -> None:
        self.step_size, self.memory, self.reliability = step_size, memory, reliability
        self.logs: dict[str, float] = {}
        self.ratio: dict[str, float] = {}
        self.tokens: dict[str, float] = {}
        self._warned: set[str] = set()

    @property
    def bounds(self) -> Bounds:
        return {"weight_spread": (0.0, math.inf)}

    def baseline_task(self, context: Context) -> SoftTargets:
        return one_hot(context.labels)

    def make_task(self, context: Context, value_of: ValueFunction[Context]) -> SoftTargets:
        """Weights under the mixture of the latest meta step; computes no values."""
        return SoftTargets(context.labels[:, None], self._weights(context)[:, None])

    def _weights(self, context: Context) -> Tensor:
        """Token weights ``[N]``, with mean 1 over the stream: a batch of one source alone is
        weighted too."""
        source, names = sources_of(context)
        ratio = torch.tensor([self.ratio.get(name, 1.0) for name in names], device=source.device)
        return ratio[source].float()

    def learn(self, context: Context, value_of: ValueFunction[Context]) -> Learned[SoftTargets]:
        probe = Candidates.among(context, 1, weighted=True)
        gradients = [each.gradient[0] for each in value_of.each(context, probe)]
        self.reliability.update(gradients)
        mean = torch.stack(gradients).mean(dim=0)
        # Weights from before this feedback, so that noise gains nothing. (With a memory of the
        # feedback it can: the average shares its past with what moved the mixture.)
        before = self._weights(context)
        gain = float(distributed.total(((before - 1) * mean[:, 0]).sum()))
        mixture = self._update(context, standardised(probe.values(mean))[:, 0])
        task = self.make_task(context, value_of)
        metrics: Metrics = {
            "gain": gain,
            "weight_spread": float(distributed.std(task.mass)),
            **{f"mixture.{name}": fraction for name, fraction in mixture.items()},
            **self.reliability.metrics(),
        }
        return Learned(metrics, task)

    def _update(self, context: Context, values: Tensor) -> dict[str, float]:
        """Takes one exponentiated step; returns the resulting mixture by source."""
        source, names = sources_of(context)
        values = values - distributed.mean(values)
        sums = values.new_zeros(2, len(names), dtype=torch.float64).index_add(
            1, source, torch.stack([values, torch.ones_like(values)]).double()
        )
        total, count = distributed.total(sums)
        alignments = (total / count.clamp_min(1).sqrt()).tolist()
        for name, alignment, tokens in zip(names, alignments, count.tolist(), strict=True):
            self.logs[name] = self.logs.get(name, 0.0) + self.step_size * alignment
            self.tokens[name] = self.tokens.get(name, 0.0) + tokens
        known = [name for name, tokens in self.tokens.items() if tokens]
        pi = torch.tensor([self.tokens[name] for name in known], dtype=torch.float64)
        pi /= pi.sum()
        logs = torch.tensor([self.logs[name] for name in known], dtype=torch.float64)
        alpha = torch.softmax(logs + pi.log(), dim=0)
        for name, new in zip(known, (alpha / pi).tolist(), strict=True):
            old = self.ratio.get(name, 1.0)
            self.ratio[name] = self.memory * old + (1 - self.memory) * new
            self._watch(name)
        mixture = torch.tensor([self.ratio[name] for name in known], dtype=torch.float64) * pi
        return dict(zip(known, (mixture / mixture.sum()).tolist(), strict=True))

    def _watch(self, source: str) -> None:
        if self.ratio[source] < STARVED and source not in self._warned:
            self._warned.add(source)
            if distributed.rank() == 0:
                log.warning(
                    "tokens of source %r count %.2g of what they do in the stream: the learner "
                    "trains on next to nothing of it",
                    source,
                    self.ratio[source],
                )

    def state_dict(self) -> State:
        return {
            "logs": dict(self.logs),
            "ratio": dict(self.ratio),
            "tokens": dict(self.tokens),
            "reliability": self.reliability.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.logs, self.ratio = dict(state["logs"]), dict(state["ratio"])
        self.tokens = dict(state["tokens"])
        self.reliability.load_state_dict(state["reliability"])


@ARMS.declare(
    "dga",
    "each source weighted by how well its gradient agrees with that of the feedback (DGA)",
)
class DgaArm(LanguageArm):
    """DGA (Fan, Grangier and Ablin, arXiv:2410.02498): every few steps, mirror descent updates the
    mixture of domains by the inner product of each domain's gradient with the gradient of the
    specialised set.

    Differences from the published form: tokens are weighted by the mixture rather than sampled from
    it, which gives the same gradient in expectation; gradients are over S, and those of all sources
    come from the learner's own batch rather than a batch per source; alignments are in standard
    errors of their source's mean, so that one step size fits every scale of loss and gradient.
    """

    needs_sources = True

    step_size: NonNegativeFloat = 0.1
    """eta, the step size of the exponentiated gradient step."""
    mixture_memory: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Weight of earlier mixtures in the running mean."""

    @property
    def valued_by(self) -> AlignmentName | None:
        return SourceMixture.alignment

    def build(self, site: Site) -> SourceMixture:
        return SourceMixture(self.step_size, self.mixture_memory, site.reliability)
