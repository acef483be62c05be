"""``train``: one run and the folder it leaves; the same command again goes on from where
it ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vpretrain.config import changes
from vpretrain.config.recipe import Recipe
from vpretrain.run.build import new_step, seed_run
from vpretrain.run.checkpoint import CheckpointManager
from vpretrain.run.flops import count
from vpretrain.run.folder import RunFolder
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.resources import disk_shortage, smaller
from vpretrain.run.run import Record, Run
from vpretrain.run.train import train
from vpretrain.system import distributed, sharding
from vpretrain.system.errors import Fault, Problem, UserError
from vpretrain.system.files import write_json
from vpretrain.system.memory import out_of_memory
from vpretrain.system.signals import Interruption


def train_one(
    recipe: Recipe,
    folder: Path,
    on_record: Callable[[Record, float], None],
    *,
    accept_changes: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains once, or goes on with what the folder holds; it appears only after data, model and arm
    were found in order.

    Under ``torchrun`` its processes train together (:mod:`vpretrain.system.distributed`); the first
    writes the folder and speaks.

    Args:
        recipe: every value of the run.
        folder: gets ``recipe.yaml``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/``,
            ``model/`` with its card, ``designer/`` and ``result.json``.
        on_record: is given every step's record and the share of the budget that is used.
        accept_changes: go on although the recipe is not the one that the folder was begun with.
        notify: is told, in a sentence, when a run goes on or is found finished.

    Returns:
        ``{run_dir, arm, steps, tokens_or_images, seconds, step0: {metric: value}, final: {metric:
        value}}``.

    Raises:
        UserError: data or model are not in order, the disk is too small, or the folder holds a run
            of another recipe.
        Fault, Stopped: see :func:`vpretrain.run.train.run`.
    """
    with distributed.process_group():
        return _train_one(recipe, folder, on_record, accept_changes=accept_changes, notify=notify)


def _train_one(
    recipe: Recipe,
    folder: Path,
    on_record: Callable[[Record, float], None],
    *,
    accept_changes: bool,
    notify: Callable[[str], None],
) -> dict[str, Any]:
    first = distributed.rank() == 0
    changed, finished = distributed.broadcast_object(
        (changed_keys(folder, recipe), (folder / "result.json").is_file())
    )
    if changed and not accept_changes:
        raise UserError(*changed)
    if finished and not changed:
        notify("this run is finished; nothing was done")
        found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return found
    section = recipe.checkpoint
    checkpoints = CheckpointManager(
        folder / "checkpoints",
        every=section.every,
        seconds=section.seconds,
        keep_last=section.keep_last,
        asynchronous=section.asynchronous,
    )
    seed_run(recipe)
    modality = MODALITIES[recipe.modality]()
    materials = distributed.in_turn(lambda: modality.load(recipe))
    try:
        parts = modality.build(recipe, materials)
        if not checkpoints.steps() and (
            problems := disk_shortage(parts.learner.model, section, folder)
        ):
            raise UserError(*problems)
        flops = count(new_step(recipe, parts), parts, recipe.learner.accumulate)
        cost = {meta: distributed.summed(each) for meta, each in flops.items()}  # of all processes
        if recipe.learner.shard:  # blocks are shared out once, and counting did it
            parts = modality.build(recipe, materials)
        step, state = checkpoints.newest() or (0, None)
        if state is not None:
            notify(f"going on after step {step}")
        out = None
        if first:
            hashes = modality.data_hashes(materials)
            out = RunFolder(
                folder, recipe, records=state["records"] if state else 0, data_hashes=hashes
            )
            (folder / "result.json").unlink(missing_ok=True)

        def log(record: Record, fraction: float) -> None:
            if out is not None:
                out.log(record)
                on_record(record, fraction)

        try:
            with Interruption() as stop:
                result = train(
                    Run(
                        recipe,
                        parts,
                        cost=cost,
                        on_record=log,
                        checkpoints=checkpoints,
                        resume=state,
                        stop=stop,
                        keep_history=False,
                        prefetch=torch.cuda.is_available(),
                    )
                )
        finally:
            if out is not None:
                out.close()
            checkpoints.wait()
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise Fault(f"memory ran out: {smaller(recipe)}") from error
        raise
    with sharding.whole(parts.learner.model):
        if first:
            with distributed.alone():
                parts.save(folder / "model")
                modality.card(recipe, materials, result, folder / "model")
    designer = (
        parts.designer.state_dict()
    )  # what it remembers of its batches is asked of all processes
    if first:
        (folder / "designer").mkdir(exist_ok=True)
        torch.save(designer, folder / "designer" / "state.pt")  # read back with weights_only
    found = {
        "run_dir": str(folder),
        "arm": result.arm,
        "unit": modality.unit,
        "steps": result.spent.steps,
        "tokens_or_images": result.spent.tokens,
        "seconds": result.spent.seconds,
        "step0": {name: score.value for name, score in result.step0.items()},
        "final": {name: score.value for name, score in result.final.items()},
    }
    if first:
        write_json(folder / "result.json", found)
    distributed.barrier()  # who leaves early would be missed, and all would be restarted
    return found


def changed_keys(folder: Path, recipe: Recipe) -> list[Problem]:
    """The keys in which a recipe is not the one that the folder was begun with; none where nothing
    could be gone on with.
    """
    if not ((folder / "result.json").is_file() or any((folder / "checkpoints").glob("step-*"))):
        return []
    fix = (
        "give it back, name another folder with --out, or go on under the new recipe with "
        "--accept-changes"
    )
    return changes.changes(folder, recipe, fix)
