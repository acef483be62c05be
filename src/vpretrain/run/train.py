"""One run, readable from top to bottom: the loop over Algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass, field

from vpretrain.run.budget import Spending
from vpretrain.run.run import Record, Run
from vpretrain.run.scores import Score
from vpretrain.system.errors import NonFinite


@dataclass
class Result:
    """The result of a run.

    Args:
        arm: of the recipe.
        seed: of the recipe.
        spent: steps, tokens (images) and seconds of training; evaluation is not charged.
        step0: scores of the untouched checkpoint, with the same protocol.
        final: scores at the end.
        stream_digest: hash over all batches drawn; equal for arms that drew equally many from the
            same stream.
        batches: number of those batches: the steps, and those skipped or repeated after a rewind.
        draws: batches drawn per batch trained on; 1 without a selector.
        drawn: tokens (images) drawn.
        history: one record per step (and per skipped batch) since the start, or since the run was
            resumed.
    """

    arm: str
    seed: int
    spent: Spending
    step0: dict[str, Score]
    final: dict[str, Score]
    stream_digest: str
    batches: int = 0
    draws: int = 1
    drawn: int = 0
    history: list[Record] = field(repr=False, default_factory=list)


def train(run: Run) -> Result:
    """Trains until the budget is used up.

    Raises:
        UserError: ``checkpoint.keep_best`` names a metric that is not measured.
        Fault: more than ``faults.max_skips`` losses, gradients or values in a row are not finite
            (and, if there is a checkpoint, again after returning to it once); or a final score is
            not finite.
        Stopped: a signal asked for it; the checkpoint is written.
    """
    run.start()  # resume; or evaluate step 0 and let the optimizer's moments settle
    while not run.agree_on_end():
        drawn = run.next_batch()
        try:
            batch, metrics = run.take(drawn)  # with a selector, batch is a part of drawn
        except NonFinite as fault:
            run.recover(drawn, fault)  # skip, rewind once, then raise
            run.state.drawn += drawn.tokens
            run.state.add_digest(drawn.digest())
            continue
        run.advance(batch, drawn)
        run.record(drawn, metrics | run.evaluate_if_due())
        run.checkpoint_if_due()  # raises Stopped after a signal
    final = run.finish()
    state, recipe = run.state, run.recipe
    return Result(
        recipe.arm,
        recipe.seed,
        state.spent,
        state.step0,
        final,
        state.digest,
        state.batches,
        run.parts.designer.draws,
        state.drawn,
        run.history,
    )
