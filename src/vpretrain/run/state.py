"""The mutable state of a run in one object: the contents of a checkpoint."""

from __future__ import annotations

import hashlib
from typing import Any

from vpretrain.method.roles import State
from vpretrain.method.step import SteeredStep
from vpretrain.models.trainable_state import load_trained_state, trained_state
from vpretrain.run.budget import Spending
from vpretrain.run.parts import AnyParts
from vpretrain.run.scores import Score
from vpretrain.system import distributed, sharding
from vpretrain.system.random_streams import random_state, set_random_state


class RunState:
    """A run between two steps.

    Args:
        parts: freshly built; :meth:`load_state_dict` restores learner, designer, feedback and
            streams.
        step: Algorithm 1 for these parts.

    Attributes:
        spent: resources used so far.
        prepared: the part of them used before the first step, by settling and by the arm.
        drawn: tokens (images) drawn from the stream; with a selector, more than were trained on.
        step0: scores of the untouched checkpoint.
        digest: hash over all batches drawn for training, in order, skipped ones included.
        batches: number of those batches.
        records: number of records in the log, so that it can be cut back to this point.
        best: best score so far of the ``keep_best`` metric; None before the first.
        best_metric: that metric, which may change when a run is resumed.
        rewound: whether the run has returned to one of its earlier checkpoints.
    """

    def __init__(self, parts: AnyParts, step: SteeredStep[Any, Any, Any]) -> None:
        self.parts, self.step = parts, step
        self.spent, self.prepared = Spending(), Spending()
        self.drawn = 0
        self.step0: dict[str, Score] = {}
        self.digest, self.batches = "", 0
        self.records = 0
        self.best: float | None = None
        self.best_metric: str | None = None
        self.rewound = False

    def add_digest(self, batch: str) -> None:
        """Adds a batch's digest to the run's."""
        self.batches += 1
        self.digest = hashlib.sha256((self.digest + batch).encode()).hexdigest()[:16]

    def state_dict(self) -> State:
        """Returns the whole state by reference: copy or write it before the next step.

        All processes must call it together. The result of any one of them suffices to resume, on
        any number of processes.
        """
        parts, meta = self.parts, self.parts.meta_batches
        return {
            "model": trained_state(parts.learner.model),
            "learner": parts.learner.state_dict(),
            "designer": parts.designer.state_dict(),
            "feedback": parts.feedback.state_dict(),
            "stream": parts.stream.state_dict(),
            "meta_batches": None if meta is None else meta.state_dict(),
            "step": self.step.state_dict(),
            "spent": self.spent.state_dict(),
            "prepared": self.prepared.state_dict(),
            "drawn": self.drawn,
            "step0": {name: vars(score) for name, score in self.step0.items()},
            "digest": self.digest,
            "batches": self.batches,
            "records": self.records,
            "best": self.best,
            "best_metric": self.best_metric,
            "rewound": self.rewound,
            "random": distributed.all_gather_object(random_state()),
        }

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`; the steps that follow are the same, bit for bit."""
        parts = self.parts
        here = parts.learner.model.state_dict()
        load_trained_state(
            parts.learner.model,
            {
                name: sharding.laid_out(tensor, here.get(name, tensor))
                for name, tensor in state["model"].items()
            },
        )
        parts.learner.load_state_dict(state["learner"])
        parts.designer.load_state_dict(state["designer"])
        parts.feedback.load_state_dict(state["feedback"])
        parts.stream.load_state_dict(state["stream"])
        if parts.meta_batches is not None:
            parts.meta_batches.load_state_dict(state["meta_batches"])
        self.step.load_state_dict(state["step"])
        self.spent.load_state_dict(state["spent"])
        self.rewound, self.batches, self.drawn = state["rewound"], state["batches"], state["drawn"]
        self.prepared = Spending(**state["prepared"])
        self.step0 = {name: Score(**score) for name, score in state["step0"].items()}
        self.digest, self.records, self.best = state["digest"], state["records"], state["best"]
        self.best_metric = state["best_metric"]
        if distributed.rank() < len(state["random"]):  # an additional process keeps its own seed
            set_random_state(state["random"][distributed.rank()])

    def rewind(self, state: State) -> None:
        """Returns to an earlier state of this run, but continues with the data that follow.

        Log and best model stay as they are; all seconds, FLOPs and drawn tokens remain counted.
        """
        stream, meta = self.parts.stream.state_dict(), self.parts.meta_batches
        meta_batches = None if meta is None else meta.state_dict()
        kept = self.records, self.digest, self.batches, self.best, self.best_metric
        seconds, flops, drawn = self.spent.seconds, self.spent.flops, self.drawn
        self.load_state_dict(state)
        self.parts.stream.load_state_dict(stream)
        if meta is not None and meta_batches is not None:
            meta.load_state_dict(meta_batches)
        self.records, self.digest, self.batches, self.best, self.best_metric = kept
        self.spent.seconds, self.spent.flops, self.rewound = seconds, flops, True
        self.drawn = drawn
