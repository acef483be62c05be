"""Everything that moves while a run goes on, in one place: what a checkpoint holds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch

from vpretrain.method.roles import Parts, Score
from vpretrain.method.step import SteeredStep
from vpretrain.models.trained import load_trained_state, trained_state
from vpretrain.run.budget import Spending
from vpretrain.system import distributed, sharding


class Progress:
    """A run between two steps.

    Args:
        parts: freshly built; learner, designer, feedback and stream are moved by
            :meth:`load_state_dict`.
        step: Algorithm 1 for these parts.

    Attributes:
        spent: what was used so far.
        step0: scores of the untouched checkpoint.
        digest: over all batches drawn, in their order.
        records: how many were handed out, so that a log can be cut back to here.
        best: the best score so far of the metric that is kept by; None before the first.
    """

    def __init__(self, parts: Parts, step: SteeredStep) -> None:
        self.parts, self.step = parts, step
        self.spent = Spending()
        self.step0: dict[str, Score] = {}
        self.digest = ""
        self.records = 0
        self.best: float | None = None

    def saw(self, batch: str) -> None:
        """Adds a batch's digest to the run's."""
        self.digest = hashlib.sha256((self.digest + batch).encode()).hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """Everything, as references: copy it or write it before the next step.

        All processes ask for it together, and any one's is enough to go on from, on any number of
        them.
        """
        parts = self.parts
        return {
            "model": trained_state(parts.learner.model),
            "learner": parts.learner.state_dict(),
            "designer": parts.designer.state_dict(),
            "feedback": parts.feedback.state_dict(),
            "stream": parts.stream.state_dict(),
            "step": self.step.state_dict(),
            "spent": self.spent.state_dict(),
            "step0": {name: vars(score) for name, score in self.step0.items()},
            "digest": self.digest,
            "records": self.records,
            "best": self.best,
            "random": distributed.all_gather_object(random_state()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where :meth:`state_dict` was taken; the steps that follow are the same, bit for
        bit.
        """
        parts = self.parts
        here = parts.learner.model.state_dict()
        load_trained_state(
            parts.learner.model,
            {
                name: sharding.laid_out(held, here.get(name, held))
                for name, held in state["model"].items()
            },
        )
        parts.learner.load_state_dict(state["learner"])
        parts.designer.load_state_dict(state["designer"])
        parts.feedback.load_state_dict(state["feedback"])
        parts.stream.load_state_dict(state["stream"])
        self.step.load_state_dict(state["step"])
        self.spent.load_state_dict(state["spent"])
        self.step0 = {name: Score(**score) for name, score in state["step0"].items()}
        self.digest, self.records, self.best = state["digest"], state["records"], state["best"]
        if distributed.rank() < len(
            state["random"]
        ):  # a process that was not there before keeps its own seed
            set_random_state(state["random"][distributed.rank()])

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Goes back to an earlier state of this run, but on with the data that follow and with the
        log as it is.
        """
        stream, records = self.parts.stream.state_dict(), self.records
        self.load_state_dict(state)
        self.parts.stream.load_state_dict(stream)
        self.records = records


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators, of every accelerator too."""
    kind, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(numpy.asarray(keys, dtype=numpy.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores :func:`random_state`; the accelerators' as far as there are as many as
    there were.
    """
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype(numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for index, held in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(held, index)
