"""The paper's probe (v2 C.1), along a run.

Every draw takes the step of the recipe's own arm, and a fresh held-out batch.

:mod:`vpretrain.studies.probe` measures how well a value can predict at best: one point, one
held-out set, one-hot targets. This probe measures how well it predicts under the conditions of a
run: the current designer, and a held-out loss as noisy as a single batch. The learner takes an SGD
step on ``g_pre`` of the designer's task, and ``eta <g_down, g_pre>`` is compared with the drop of
the held-out batch's loss. The run then continues bit for bit as without the probe.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpretrain.config.recipe import Recipe
from vpretrain.method import vectors
from vpretrain.method.roles import Task
from vpretrain.run.build import seed_run
from vpretrain.run.flops import cost_in_budget
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import AnyParts
from vpretrain.run.run import Run
from vpretrain.studies.correlation import pearson, scatter, slope
from vpretrain.studies.one_step import STEP_FRACTION, OneStep, loss_of
from vpretrain.system.errors import NonFinite, user_error
from vpretrain.system.files import write_json

STEPS = {"sgd_aligned": "SGD on S", "sgd_full": "SGD on all parameters"}
"""The parameters that move in the step, and in the prediction."""


@dataclass(frozen=True)
class Draw:
    """Predicted and realised drop of a held-out batch's loss, in nats, by step."""

    predicted: dict[str, float]
    realised: dict[str, float]
    held_out_loss: float
    batch: str


def probe_along(
    recipe: Recipe,
    *,
    points: int,
    draws: int,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Trains once, and probes at equal fractions of the budget, the last time at its end.

    Writes ``probe.json`` (the return value), ``points.json`` (every draw) and ``scatter.png``,
    ``scatter.svg`` to ``out``.

    Args:
        recipe: of the run.
        points: number of points to probe at, at least 1.
        draws: number of unlabeled and of held-out batches at each point, at least 4.
        out: created if missing.
        progress: called with the number of draws done and their total.

    Returns:
        ``{arm, points, draws, pearson: {sgd_aligned, sgd_full}, ci95, slope, along: [{step, tokens,
        steered, held_out_loss, sgd_rate, pearson, ci95, slope}], ...}``: the outer figures are over
        the draws of all points.

    Raises:
        UserError: the arm does not train on the stream, or selects data from it.
        Fault: a loss or gradient is not finite.
    """
    started = time.perf_counter()
    modality = MODALITIES[recipe.modality]()
    parts = modality.build(recipe, modality.load(recipe))
    _refuse_without_a_task(recipe, parts)
    batch = held_out_batches(parts)
    along: list[dict[str, Any]] = []
    every: list[Draw] = []
    for point in _points(recipe, parts, points):
        sample = []
        for index in range(draws):
            sample.append(point.draw(index, partial(batch, len(every) + index)))
            progress(len(every) + index + 1, points * draws)
        every += sample
        along.append(point.place() | _figures(sample))
    described = {
        "recipe": recipe.description,
        "modality": recipe.modality,
        "arm": recipe.arm,
        "seed": recipe.seed,
        "points": len(along),
        "draws": draws,
    }
    seconds = round(time.perf_counter() - started, 1)
    result = described | _figures(every) | {"along": along, "sgd_step_share": STEP_FRACTION}
    result |= {"seconds": seconds, "environment": environment()}
    _write(out, result, every)
    return result


def _refuse_without_a_task(recipe: Recipe, parts: AnyParts) -> None:
    if not parts.on_stream:
        raise user_error("arm", "this arm does not train on the stream", value=recipe.arm)
    if parts.designer.selector is not None:
        message = (
            "this arm chooses what is trained on, and a probe's step is on a batch as it was "
            "drawn: probe an arm that makes a task of the batch"
        )
        raise user_error("arm", message, value=recipe.arm)


def _write(out: Path, result: dict[str, Any], draws: list[Draw]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "probe.json", result)
    write_json(out / "points.json", [vars(draw) for draw in draws])
    panels = {title: _pair(draws, name) for name, title in STEPS.items()}
    scatter(panels, [*panels], {}, out)


def _points(recipe: Recipe, parts: AnyParts, points: int) -> Iterator[RunPoint]:
    """Yields the run at equal fractions of its budget, and resumes it in between."""
    cost = cost_in_budget(recipe, parts)
    seed_run(recipe)
    run = Run(recipe, parts, step0={}, cost=cost, keep_history=False)
    run.start()
    done = 0
    while not run.agree_on_end():
        drawn = run.next_batch()
        try:
            batch, _ = run.take(drawn)
        except NonFinite as fault:
            run.recover(drawn, fault)
            continue
        run.advance(batch, drawn)
        if (reached := _reached(run.progress, points)) > done:
            done = reached  # one long step may pass several
            point = RunPoint(run)
            yield point
            point.leave()


def _reached(progress: float, points: int) -> int:
    """Returns the number of points that a run has reached.

    By division, since ``0.58 * 50`` is below 29.
    """
    return sum(progress >= (point + 1) / points for point in range(points))


class RunPoint(OneStep):
    """A run between two steps.

    Args:
        run: a run in progress.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run.recipe, run.parts, run.step_once)
        self.run = run
        movable = (run.parts.stream, run.parts.designer, run.step_once.meta)
        self.before = [(part, copy.deepcopy(part.state_dict())) for part in movable]
        self.pilots()

    def leave(self) -> None:
        """Restores stream and designer to where the run left them; the learner never moved."""
        for part, state in self.before:
            part.load_state_dict(state)

    def place(self) -> dict[str, Any]:
        """Returns the position in the run."""
        spent, step = self.run.state.spent, self.step
        return {
            "step": spent.steps,
            "tokens": spent.tokens,
            "steered": step.meta.designer.uses_feedback and step.meta.steers(step.count),
            "sgd_rate": self.rate,
        }

    def task(self, context: Any) -> Task:
        """Returns the task that the run's next step would use; its values are compared with those
        of earlier draws at this point, too."""
        meta = self.step.meta
        task: Task = meta.task(context, meta.value_estimator.on_part(1.0), self.step.count)
        return task

    def draw(self, index: int, held_out: Callable[[], Iterator[Tensor]]) -> Draw:
        """Takes one step of each kind on the stream's next batch, and undoes it.

        Args:
            index: seeds dropout.
            held_out: the loss of the draw's held-out batch, in pieces.
        """
        with self.unchanged():
            batch, pre = self.next(index)
            down, loss = self.gradient(held_out()), loss_of(held_out())
            directions = {"sgd_aligned": self.on_aligned(pre), "sgd_full": pre}
            predicted, realised = {}, {}
            for name, gradient in directions.items():
                restricted = {key: down[key] for key in gradient}
                predicted[name] = float(self.rate * vectors.inner(restricted, gradient))
                with self.unchanged():
                    self.descend(gradient)
                    realised[name] = loss - loss_of(held_out())
        return Draw(predicted, realised, loss, batch.digest())


def held_out_batches(parts: AnyParts) -> Callable[[int], Iterator[Tensor]]:
    """Returns the loss of the n-th held-out batch, in pieces, as a function of n.

    Parts without held-out batches of their own use the pieces of ``held_out_loss`` in turn, of
    ``evaluate.batch_size`` rows each.
    """
    if parts.held_out_batch is not None:
        return parts.held_out_batch
    with torch.no_grad():
        count = sum(1 for _ in parts.held_out_loss())
    return lambda draw: islice(parts.held_out_loss(), draw % count, draw % count + 1)


def _pair(draws: list[Draw], name: str) -> tuple[list[float], list[float]]:
    return [draw.predicted[name] for draw in draws], [draw.realised[name] for draw in draws]


def _figures(draws: list[Draw]) -> dict[str, Any]:
    correlations = {name: pearson(*_pair(draws, name)) for name in STEPS}
    return {
        "pearson": {name: r for name, (r, _) in correlations.items()},
        "ci95": {name: interval for name, (_, interval) in correlations.items()},
        "slope": {name: slope(*_pair(draws, name)) for name in STEPS},
        "held_out_loss": sum(draw.held_out_loss for draw in draws) / len(draws),
    }
