"""``sweep``: a search over recipe keys with a fixed budget per trial, with Optuna on a SQLite file.

The study is in ``sweep.db`` of the results folder: the same command resumes it. Trials are chosen
by TPE, seeded by the recipe's seed and the trial's number, so that with one process an interrupted
search finds the same as an uninterrupted one. Where every key has a list of values, and there are
enough trials, each combination of values is tried once.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vpretrain.config.changes import changes
from vpretrain.config.recipe import Recipe, dump
from vpretrain.config.sweep import Alternatives, Range
from vpretrain.config.yaml_places import written
from vpretrain.run.flops import cost_in_budget
from vpretrain.run.folder import (
    Change,
    accepted_changes,
    changed_data,
    refuse_other_scores,
    write_environment,
)
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.resources import smaller
from vpretrain.run.run import Record, Run
from vpretrain.run.scores import STEP0_FIX, check_finite
from vpretrain.run.train import Result, train
from vpretrain.studies.compare import Progress
from vpretrain.studies.sweep_plan import Plan
from vpretrain.system.errors import Fault, Stopped, UserError, brief, user_error
from vpretrain.system.files import read_json, write_json
from vpretrain.system.lock import writing
from vpretrain.system.memory import out_of_memory
from vpretrain.system.processes import in_processes
from vpretrain.system.signals import Interruption
from vpretrain.system.timing import Pace

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    message = f"this needs Optuna ({error}); install the extra"
    raise user_error("sweep", message, accepted="pip install 'vpretrain[sweep]'") from None


def sweep(
    plan: Plan,
    *,
    trials: int,
    out: Path,
    jobs: int = 1,
    accept_changes: bool = False,
    progress: Progress = lambda done, total, what, underway: None,
) -> dict[str, Any]:
    """Runs trials up to the given number, and writes the results of the search.

    These are ``sweep.json``, ``best.yaml`` and, for several objectives, ``front/``.

    For two objectives ``front.png`` shows every trial, the Pareto front and step 0 (the paper's
    Figure 3d).

    Args:
        plan: recipe and search space.
        trials: total number, including those finished in ``out``; pruned and failed ones count.
            Combinations of listed values that are fewer than this are tried once each.
        out: folder of the study.
        jobs: number of trials at a time, each in its own process.
        accept_changes: continue although data differ from those of ``out``; the result lists the
            differences as ``changes: [{what, before, now}]``.
        progress: see :data:`vpretrain.studies.compare.Progress`.

    Returns:
        ``{best: {number, values, parameters, recipe}, front: [...], trials, pruned, failed,
        step0}``.

    Raises:
        UserError: an objective is not measured, ``out`` holds another search or one on other data,
            or another process is searching there.
        Fault: no trial was completed.
    """
    with writing(out):  # else another process's running trials would be taken for abandoned ones
        step0, accepted = _open_study(plan, out, accept_changes)
        study = _study(out)
        trials = _enqueue(study, plan, trials)
        done = len(_ended_trials(study))
        progress(done, trials, "step 0", 0.0)

        def tell(call: tuple[Any, ...], message: tuple[float, str]) -> None:
            underway[call[0]], line = message
            progress(done, trials, line, sum(underway.values()))

        underway: dict[int, float] = {}
        places = [(place,) for place in range(trials - done)]
        for place, line in in_processes(partial(Trials, plan, out), places, jobs, tell):
            done += 1
            underway[place] = 0.0
            progress(done, trials, line, sum(underway.values()))
        return _write_results(plan, out, study, step0, accepted)


def _enqueue(study: optuna.Study, plan: Plan, trials: int) -> int:
    """Puts into the queue trials whose process is gone, and all combinations of listed values if
    there are enough trials; returns the number of trials."""
    for stale in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.enqueue_trial(stale.system_attrs.get("fixed_params", stale.params))
        study.tell(stale.number, state=TrialState.FAIL)
    combinations = plan.combinations
    if not 0 < len(combinations) <= trials:
        return trials
    for values in combinations:
        stored = {key: json.dumps(value) for key, value in values.items()}
        study.enqueue_trial(stored, skip_if_exists=True)
    return len(combinations)


class Trials:
    """Runs one trial of the study in ``out`` per call."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out

    def __call__(self, place: int, *, tell: Callable[[Any], None]) -> tuple[int, str]:
        """Runs a trial; returns ``place``, and a short description of the outcome."""
        return place, _run_trial(self.plan, self.out, tell)


def _run_trial(plan: Plan, out: Path, tell: Callable[[Any], None]) -> str:
    study = _study(out)
    trial = study.ask()
    given_up = sum(
        t.state == TrialState.FAIL and not _failure_reason(t)
        for t in study.get_trials(deepcopy=False)
    )
    study.sampler = optuna.samplers.TPESampler(
        seed=(1_000_003 * plan.recipe.seed + trial.number - given_up) % 2**32
    )
    values = {key: _suggest(trial, key, space) for key, space in plan.sweep.keys.items()}
    try:
        result = _train(plan.at(values), plan, trial, tell)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        return f"trial {trial.number}: pruned"
    except (Stopped, BrokenPipeError):
        raise  # a signal, or the parent is gone: the next command runs this trial again
    except Exception as error:
        # Recorded as failed, or every later command would run it again.
        reason = str(error) or type(error).__name__
        if out_of_memory(error):
            reason = f"memory ran out: {smaller(plan.recipe)}"
        trial.set_user_attr("failed", reason)
        study.tell(trial, state=TrialState.FAIL)
        # Incompatible values, divergence or too little memory: continue with other trials.
        if not (isinstance(error, (UserError, Fault)) or out_of_memory(error)):
            raise
        return f"trial {trial.number}: failed: {reason.splitlines()[0]}"
    scores = {metric: result.final[metric].value for metric in plan.sweep.objectives}
    study.tell(trial, [*scores.values()])
    return f"trial {trial.number}: {listed(scores)}"


def _train(recipe: Recipe, plan: Plan, trial: optuna.Trial, tell: Callable[[Any], None]) -> Result:
    """Runs a trial.

    Raises:
        TrialPruned: the trial is pruned.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    modality, metric = MODALITIES[recipe.modality](), plan.sweep.objectives[0]
    pace = Pace(1.0)

    def on_record(record: Record, fraction: float) -> None:
        if pace.due() and "tokens_per_second" in record:
            rate = f"{record['tokens_per_second']:,.0f} {modality.unit}/s"
            tell((fraction, f"trial {trial.number}: step {record['step']:,}, {rate}"))
        if plan.sweep.prune and metric in record:
            trial.report(record[metric], record["step"])
            if trial.should_prune():
                raise optuna.TrialPruned

    gc.collect()  # a reference cycle may keep an earlier trial's model alive
    parts = modality.build(recipe, modality.load(recipe))
    with Interruption() as stop:
        run = Run(
            recipe,
            parts,
            step0={},
            cost=cost_in_budget(recipe, parts),
            on_record=on_record,
            stop=stop,
            keep_history=False,
        )
        return train(run)


def listed(scores: Mapping[str, float]) -> str:
    """Scores by name in one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())


def _suggest(trial: optuna.Trial, key: str, space: Range | Alternatives) -> Any:
    if isinstance(space, Range):
        options: Any = {"log": space.log} if space.step is None else {"step": space.step}
        low, high, whole = space.low, space.high, isinstance(space.step or 1, int)
        if whole and isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(key, low, high, **options)
        return trial.suggest_float(key, low, high, **options)
    # As JSON, because Optuna stores only numbers, text and booleans.
    return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in space]))


def _storage(out: Path) -> str:
    return f"sqlite:///{(out / 'sweep.db').resolve()}"


def _study(out: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.load_study(study_name="sweep", storage=_storage(out))
    except Exception as error:  # SQLite, SQLAlchemy and Optuna each raise their own
        message = (
            f"this search cannot be read ({type(error).__name__}: {brief(error)}); put the "
            "file back, or name another folder to begin again"
        )
        raise user_error(str(out / "sweep.db"), message) from error
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    return study


_FIX = "give it back, or name another folder with --out"


def _ended_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns trials that ended, without those whose process died."""
    ended = study.get_trials(
        deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    )
    return [trial for trial in ended if trial.state != TrialState.FAIL or _failure_reason(trial)]


def _failure_reason(trial: FrozenTrial) -> str:
    """Returns the reason of a failure; empty for a trial whose process died."""
    return str(trial.user_attrs.get("failed", ""))


def _open_study(plan: Plan, out: Path, accept: bool) -> tuple[dict[str, float], list[Change]]:
    """Creates the study, or checks that the existing one is of the same search.

    Returns the scores of the untouched checkpoint, and the accepted changes.
    """
    path = out / "recipe.yaml"
    section = {"sweep": plan.sweep.model_dump(mode="json", exclude_none=True)}
    if changed := changes(out, plan.recipe, _FIX, beside=section):
        raise UserError(*changed)  # its trials are of another search
    modality = MODALITIES[plan.recipe.modality]()
    materials = modality.load(plan.recipe)
    hashes = modality.data_hashes(materials)
    changed = changed_data(out, hashes)
    accepted = accepted_changes(out, changed, accept=accept)
    scores_path = out / "step0.json"
    refuse_other_scores(scores_path, changed)
    if not scores_path.is_file():
        scores = modality.build(plan.recipe, materials).evaluate()
        check_finite(scores, "before the first step", STEP0_FIX)
        for metric in plan.sweep.objectives:
            if metric not in scores:
                message = "this is not measured"
                raise user_error(
                    "sweep.objectives", message, value=metric, accepted=", ".join(scores)
                )
        up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [
            up if scores[name].higher_is_better else down for name in plan.sweep.objectives
        ]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        optuna.create_study(
            study_name="sweep", storage=_storage(out), directions=directions, load_if_exists=True
        )
        path.write_text(dump(plan.recipe) + written(section), encoding="utf-8")
        write_json(scores_path, {name: score.value for name, score in scores.items()})
    write_environment(out, hashes, accepted)
    return _step0(scores_path, plan.sweep.objectives), accepted


def _step0(path: Path, objectives: Sequence[str]) -> dict[str, float]:
    try:
        scores = read_json(path)
        return {name: float(scores[name]) for name in objectives}
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"this file is not whole ({error}); remove it, and the same command writes it"
        raise user_error(str(path), message) from None


def _write_results(
    plan: Plan, out: Path, study: optuna.Study, step0: dict[str, float], accepted: list[Change]
) -> dict[str, Any]:
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        failed = [reason for trial in _ended_trials(study) if (reason := _failure_reason(trial))]
        raise Fault("no trial came to an end" + (f"; the last one: {failed[-1]}" if failed else ""))
    objectives, states = plan.sweep.objectives, [trial.state for trial in _ended_trials(study)]
    sign = 1 if study.directions[0] == optuna.study.StudyDirection.MINIMIZE else -1
    front = sorted(study.best_trials, key=lambda trial: (sign * trial.values[0], trial.number))
    best = _entry(plan, front[0], out / "best.yaml")
    table: dict[str, Any] = {
        "best": best,
        "front": [],
        "trials": len(states),
        "pruned": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "step0": {name: step0[name] for name in objectives},
    }
    if len(objectives) > 1:
        (out / "front").mkdir(exist_ok=True)
        for old in (out / "front").glob("*.yaml"):
            old.unlink()
        places = [(trial, out / "front" / f"{trial.number}.yaml") for trial in front]
        table["front"] = [_entry(plan, trial, place) for trial, place in places]
    if len(objectives) == 2:
        _draw(objectives, study, step0, out / "front.png")
    table |= {"changes": accepted} if accepted else {}
    write_json(out / "sweep.json", table)
    return table


def _entry(plan: Plan, trial: FrozenTrial, path: Path) -> dict[str, Any]:
    """Writes a trial's recipe, with the budget of the plan's recipe.

    Returns its entry of ``sweep.json``.
    """
    values = {
        key: json.loads(value) if isinstance(value, str) else value
        for key, value in trial.params.items()
    }
    scores = dict(zip(plan.sweep.objectives, trial.values, strict=True))
    trained = f"# Trial {trial.number} of a sweep of {plan.source}: {listed(scores)}."
    head = f"# vpretrain train {path}\n#\n{trained}\n"
    path.write_text(head + dump(plan.at(values, own_budget=True)), encoding="utf-8")
    return {"number": trial.number, "values": scores, "parameters": values, "recipe": str(path)}


def _draw(
    objectives: Sequence[str], study: optuna.Study, step0: Mapping[str, float], path: Path
) -> None:
    """Draws both objectives as a scatter plot, with the points of the front joined."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    every = [
        trial.values for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ]
    front = sorted(trial.values for trial in study.best_trials)
    axes.scatter(*zip(*every, strict=True), color="0.7", label="trials")
    axes.plot(*zip(*front, strict=True), "o-", color="C0", label="Pareto front")
    axes.plot(*(step0[name] for name in objectives), "x", color="black", label="step 0")
    axes.set_xlabel(objectives[0])
    axes.set_ylabel(objectives[1])
    axes.legend()
    FigureCanvasAgg(figure).print_figure(path, dpi=120, metadata={"Software": None})
