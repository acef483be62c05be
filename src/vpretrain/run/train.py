"""One run, read from top to bottom: the visible loop over Algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass, field

from vpretrain.run.budget import Spending
from vpretrain.run.run import Record, Run
from vpretrain.run.scores import Score
from vpretrain.system.errors import NonFinite


@dataclass
class Result:
    """What a run came to.

    Args:
        arm: of the recipe.
        seed: of the recipe.
        spent: steps, tokens (images) and seconds of training; evaluation is not charged.
        step0: scores of the untouched checkpoint, same protocol.
        final: scores at the end.
        stream_digest: over all batches drawn: equal in arms that saw as many of the same stream.
        batches: how many these are: the steps, and what was left out or taken again after it.
        draws: batches that were drawn for one that was trained on; 1 where nothing chooses.
        drawn: tokens (images) that were drawn.
        history: one record a step (and a skipped batch), since the start or since the run was
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
        UserError: ``checkpoint.keep_best`` names what is not measured.
        Fault: losses, gradients or values that are not finite, more of them in a row than
            ``faults.max_skips`` (and, where there is a checkpoint, once more after going back
            there); or a final score that is not finite.
        Stopped: a signal asked for it; the checkpoint is written.
    """
    run.start()  # resume; or evaluate step 0 and let the optimizer's moments settle
    while not run.agree_on_end():
        drawn = run.next_batch()
        try:
            batch, metrics = run.take(drawn)  # a selector trains on a part of what is drawn
        except NonFinite as fault:
            run.recover(drawn, fault)  # skip, rewind once, then raise
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
