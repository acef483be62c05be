"""The base class of language feedback: batches of rows, and the gradient of a loss over S,
accumulated over forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from vpretrain.language.data.batch import padded
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.method.feedback import gradient_on_aligned
from vpretrain.method.roles import Feedback, Gradient


class Sampled(Feedback[CausalLearner]):
    """Feedback on batches of rows; each kind of signal defines the loss of one batch.

    Args:
        samplers: each gives one batch, and one gradient, at a time. They share no rows (see
            :func:`vpretrain.language.feedback.parted`), so that gradients never agree just because
            they come from the same rows.
    """

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self.samplers = samplers

    def gradients(self, learner: CausalLearner) -> list[Gradient]:
        """``g_down`` over S, one per sampler, in float32 or wider; ``.grad`` and the global RNG do
        not change."""
        return [self.gradient(learner, sampler.draw(), sampler.pad_id) for sampler in self.samplers]

    def losses(
        self, learner: CausalLearner, documents: list[Document], pad_id: int
    ) -> Iterator[Tensor]:
        """Yields scalars that sum to the loss of one batch, with their graph to the learner; each
        is computed after the graph of the previous one is freed. A kind of signal overrides this or
        :meth:`gradient`."""
        raise NotImplementedError

    def gradient(self, learner: CausalLearner, documents: list[Document], pad_id: int) -> Gradient:
        """``g_down`` over S of one batch."""
        return gradient_on_aligned(learner, self.losses(learner, documents, pad_id))

    def state_dict(self) -> dict[str, Any]:
        return {"samplers": [sampler.state_dict() for sampler in self.samplers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for sampler, saved in zip(self.samplers, state["samplers"], strict=True):
            sampler.load_state_dict(saved)


def log_probabilities(
    learner: CausalLearner, documents: Sequence[Document], pad_id: int, temperature: float = 1.0
) -> Tensor:
    """Log probability of each document's predicted tokens given the tokens before them, summed.

    Args:
        learner: the model; gradients flow to it if they are enabled.
        documents: R documents.
        pad_id: padding token, which is never predicted.
        temperature: > 0; the logits are divided by it.

    Returns:
        ``[R]``, float32 or wider, <= 0.
    """
    losses, row = learner.token_losses(padded(documents, pad_id=pad_id), temperature)
    return -losses.new_zeros(len(documents)).index_add(0, row, losses)


def split(document: Document) -> tuple[list[int], list[int]]:
    """The tokens of the prompt, and those of the solution (with the end token, unless it was cut
    off)."""
    cut = document.predicted.index(True)
    return list(document.ids[:cut]), list(document.ids[cut:])
