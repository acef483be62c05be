"""Verdicts of a comparison over seeds and over held-out items.

Each arm is compared with the baseline, and each control with the steered arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpretrain.config.arms import Arm
from vpretrain.run.paired_tests import paired_items
from vpretrain.studies.run_files import entry_path, read_items
from vpretrain.studies.statistics import paired_table
from vpretrain.system.errors import user_error


def judged(
    runs: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, Any]],
    arms: Mapping[str, Arm],
    out: Path,
) -> dict[str, Any]:
    """Returns ``summary``, ``paired`` and ``control_pairs`` of ``compare.json``.

    ``control_pairs: {steered: {control: {metric: {...}}}}`` has the figures of ``paired`` for each
    control against the steered arm, the first after the baseline; ``worse`` means that the steered
    arm is ahead of the control. It is empty if that arm is itself a control, or if there are no
    controls.

    Args:
        runs: entries of ``compare.json``; the first is of the baseline.
        metrics: ``{name: {higher_is_better: bool}}``.
        arms: their definitions, by name.
        out: folder of the comparison, with the items of its runs.

    Raises:
        UserError: two runs were scored on different numbers of items.
    """
    baseline, *others = dict.fromkeys(run["arm"] for run in runs)
    seeds = sorted({run["seed"] for run in runs})
    summary, paired = paired_table(runs, metrics, baseline)
    add_items(paired, out, baseline, seeds)
    beside = [arm for arm in others if arms[arm].role == "control"]
    pairs: dict[str, Any] = {}
    if beside and arms[others[0]].role == "treatment":
        steered = others[0]
        chosen = [run for run in runs if run["arm"] in (steered, *beside)]
        _, pairs[steered] = paired_table(chosen, metrics, steered)
        add_items(pairs[steered], out, steered, seeds)
    return {"summary": summary, "paired": paired, "control_pairs": pairs}


def add_items(paired: dict[str, Any], out: Path, baseline: str, seeds: Sequence[int]) -> None:
    """Adds each difference's interval over held-out items, if all runs have the items.

    A difference whose interval includes zero becomes ``undecided``.
    """

    def items(arm: str) -> list[dict[str, list[float]]]:
        paths = [entry_path(out, arm, seed).with_suffix(".items.json") for seed in seeds]
        return [read_items(path) for path in paths if path.is_file()]

    of_baseline = items(baseline)
    for arm, metrics in paired.items():
        of_arm = items(arm)
        if not len(of_arm) == len(of_baseline) == len(seeds):
            continue
        for metric, figures in metrics.items():
            if not all(metric in run for run in (*of_arm, *of_baseline)):
                continue  # some were scored otherwise, and the change was accepted
            pair = [[run[metric] for run in runs] for runs in (of_arm, of_baseline)]
            counts = {len(run) for runs in pair for run in runs}
            if len(counts) > 1:
                message = f"runs of {arm} and {baseline} were scored on different numbers of items"
                accepted = "one number: remove the runs that differ, and give the command again"
                raise user_error(
                    str(out / "runs"), message, value=sorted(counts), accepted=accepted
                )
            between = paired_items(*pair)
            figures["items"] = {"ci95": between.ci95, "p": between.p}
            if between.ci95[0] <= 0 <= between.ci95[1]:
                figures["verdict"] = "undecided"
