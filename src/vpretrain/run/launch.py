"""``train``: one run and its folder. Repeating the command resumes the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vpretrain.config import changes
from vpretrain.config.recipe import Recipe
from vpretrain.run.build import new_step, seed_run
from vpretrain.run.checkpoint import CheckpointManager
from vpretrain.run.finished_run import DESIGNER, designer_state
from vpretrain.run.flops import Cost, rehearse
from vpretrain.run.folder import (
    Change,
    RunFolder,
    accepted_changes,
    changed_data,
    drawing,
    of_evaluation,
)
from vpretrain.run.manifest import MODEL as MODEL_MANIFEST
from vpretrain.run.manifest import Damaged, verify, write_manifest
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import AnyParts, Modality
from vpretrain.run.resources import disk_shortage, smaller
from vpretrain.run.run import OnRecord, Record, Run
from vpretrain.run.tracking import missing
from vpretrain.run.train import Result, train
from vpretrain.system import distributed, sharding
from vpretrain.system.errors import Fault, Problem, UserError, user_error
from vpretrain.system.files import read_json, remove, write_json
from vpretrain.system.lock import writing
from vpretrain.system.memory import out_of_memory
from vpretrain.system.signals import Interruption

FINISHED = (
    "this run is finished; nothing was done, and the data were not read: to train on changed data "
    "name another folder"
)
"""What is said of a run that has nothing left to do."""


def train_one(
    recipe: Recipe,
    folder: Path,
    on_record: Callable[[Record, float], None],
    *,
    accept_changes: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains once, or resumes the run in the folder.

    The folder is created only after data, model and arm were validated.

    Under ``torchrun`` its processes train together (:mod:`vpretrain.system.distributed`); only the
    first writes the folder and prints.

    Args:
        recipe: every value of the run.
        folder: gets ``recipe.yaml``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/``,
            ``model/`` with its card, ``designer/`` and ``result.json``.
        on_record: called with every step's record and the fraction of the budget that is used.
        accept_changes: resume although recipe or data differ from those that the folder was begun
            with; the result lists them as ``changes: [{what, before, now}]``.
        notify: called with a sentence when a run is resumed or already finished.

    Returns:
        ``{run_dir, arm, unit, steps, tokens_or_images, seconds, step0: {metric: value}, final:
        {metric: value}}``, and ``changes`` if there are any.

    Raises:
        UserError: data or model are invalid, the disk is too small, or the folder holds a run of
            another recipe or of other data.
        Fault, Stopped: see :func:`vpretrain.run.train.train`; Fault also if memory runs out.
    """
    with distributed.process_group():
        changed, finished = distributed.from_first_rank(
            lambda: (changed_keys(folder, recipe), finished_result(folder, notify))
        )
        if problems := [*(changed if not accept_changes else ()), *missing(recipe.track)]:
            raise UserError(*problems)  # before anything is read
        if finished is not None and not changed:
            notify(FINISHED)
            result: dict[str, Any] = finished
            return result | {"run_dir": str(folder)}  # which may have been moved
        seed_run(recipe)
        modality = MODALITIES[recipe.modality]()
        materials = distributed.in_turn(lambda: modality.load(recipe))
        launch = Launch(recipe, folder, modality, materials, on_record, notify)
        try:
            result = launch.train(changed, accept_changes=accept_changes)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise Fault(f"memory ran out: {smaller(recipe)}") from error
            raise
        distributed.barrier()  # if one process left early, torchrun would restart all of them
        return result


@dataclass(frozen=True)
class Launch:
    """A validated run that is about to begin.

    Args:
        recipe: every value of the run.
        folder: where results are written.
        modality: of the recipe.
        materials: what the modality loaded.
        on_record: see :func:`train_one`.
        notify: see :func:`train_one`.
    """

    recipe: Recipe
    folder: Path
    modality: Modality[Any, Any]
    materials: Any
    on_record: Callable[[Record, float], None]
    notify: Callable[[str], None]

    def train(self, changed: Sequence[Problem], *, accept_changes: bool) -> dict[str, Any]:
        """Trains, writes the folder, and returns the result.

        Args:
            changed: recipe keys that differ from those that the folder was begun with.
            accept_changes: resume although keys or data differ.
        """
        checkpoints = CheckpointManager.of(self.folder / "checkpoints", self.recipe.checkpoint)
        parts = self.modality.build(self.recipe, self.materials)
        cost = self.cost(parts, checkpoints)
        if self.recipe.learner.shard:  # counting has sharded the blocks, which works only once
            parts = self.modality.build(self.recipe, self.materials)
        with ExitStack() as lock:
            distributed.from_first_rank(lambda: lock.enter_context(writing(self.folder)))
            step, state = checkpoints.newest() or (0, None)
            finished = (self.folder / "result.json").is_file()
            if distributed.broadcast_object(finished and state is None and not changed):
                damage = (
                    "its model or result is not as it was written, and every checkpoint is damaged"
                )
                raise _nothing_to_write_from(self.folder, damage)
            # Only the first process writes them; hashing reads all of the data.
            hashes = self.modality.data_hashes(self.materials) if distributed.rank() == 0 else {}
            changes: list[Change] = []
            step0 = None
            if state is not None:
                self.notify(f"going on after step {step}")
                problems = [*changed, *changed_data(self.folder, hashes)]
                problems = distributed.broadcast_object(problems)
                changes = accepted_changes(self.folder, problems, accept=accept_changes)
                if any(map(of_evaluation, problems)):
                    self.notify("the evaluation has changed: step 0 is measured by it")
                    step0 = parts.evaluate()  # still of the untouched checkpoint
            run = Run(
                self.recipe,
                parts,
                step0=step0,
                cost=cost,
                checkpoints=checkpoints,
                resume=state,
                keep_history=False,
                prefetch=torch.cuda.is_available(),
            )
            del state  # frees it: the run loads it
            run.go_on()  # a checkpoint that is refused leaves the folder as it was
            if step0 is not None:  # before the folder's recipe no longer shows that it changed
                checkpoints.save(step, run.state.state_dict())
            with self.records(run, hashes, changes) as log, Interruption() as stop:
                run.on_record, run.stop = log, stop
                try:
                    result = train(run)
                finally:
                    checkpoints.wait()
            summary = self.save(parts, result, changes)
        if not distributed.broadcast_object(bool(checkpoints.steps())):
            raise Fault(
                "model and result are there, but no checkpoint could be kept: "
                f"{checkpoints.failure}; make room, or a run that is cut off begins again"
            )
        return summary

    def cost(self, parts: AnyParts, checkpoints: CheckpointManager) -> Cost:
        """Returns the FLOPs of each kind of step, summed over all processes.

        Raises:
            UserError: the disk is too small for what the run will write.
        """
        recipe = self.recipe
        rehearsal = rehearse(new_step(recipe, parts), parts, recipe.learner.accumulate)
        if not checkpoints.steps() and (
            problems := disk_shortage(
                parts.learner.model,
                recipe.checkpoint,
                self.folder,
                checkpoint_bytes=rehearsal.checkpoint_bytes,
            )
        ):
            raise UserError(*problems)
        return rehearsal.cost.each(distributed.summed)

    @contextmanager
    def records(
        self, run: Run, hashes: dict[str, str], changes: Sequence[Change]
    ) -> Iterator[OnRecord]:
        """Yields the function that takes the run's records; only the first process writes to the
        folder."""
        folders: list[RunFolder] = []
        new = partial(
            RunFolder,
            self.folder,
            self.recipe,
            records=run.state.records,
            data_hashes=hashes,
            changes=changes,
        )
        distributed.from_first_rank(lambda: folders.append(new()))
        if not folders:
            yield lambda record, fraction: None
            return
        out = folders[0]
        run.state.records = out.kept  # else the next resume would expect too many
        (self.folder / "result.json").unlink(missing_ok=True)

        def log(record: Record, fraction: float) -> bool:
            written = out.log(record)
            self.on_record(record, fraction)
            return written

        try:
            yield log
        finally:
            out.close()

    def save(self, parts: AnyParts, result: Result, changes: Sequence[Change]) -> dict[str, Any]:
        """Writes model, card, designer and ``result.json``; returns the contents of the latter."""
        folder = self.folder

        def save_model() -> None:
            _make_room(folder / "model")
            parts.save(folder / "model")
            self.modality.card(self.recipe, self.materials, result, folder / "model")

        with sharding.whole(parts.learner.model):
            distributed.from_first_rank(save_model)
        designer = parts.designer.state_dict()  # on all processes: it may be a collective call
        summary = {
            "run_dir": str(folder),
            "arm": result.arm,
            "unit": self.modality.unit,
            "steps": result.spent.steps,
            "tokens_or_images": result.spent.tokens,
            "seconds": result.spent.seconds,
            "step0": {name: score.value for name, score in result.step0.items()},
            "final": {name: score.value for name, score in result.final.items()},
        } | ({"changes": list(changes)} if changes else {})

        def save_results() -> None:
            _make_room((folder / DESIGNER).parent)
            (folder / DESIGNER).parent.mkdir(exist_ok=True)
            torch.save(designer, folder / DESIGNER)  # read back with weights_only
            write_manifest(folder / "model", folder / MODEL_MANIFEST)
            write_json(folder / "result.json", summary)
            with drawing():
                self.modality.draw(self.recipe, self.materials, parts, folder)

        distributed.from_first_rank(save_results)
        return summary


def _make_room(place: Path) -> None:
    """Removes files and folders that are in the way of writing the folder ``place``.

    These are a file in its place, and folders in the place of its files.

    Other files that a person put there stay.
    """
    if not place.is_dir():
        remove(place)
        return
    for entry in place.glob("*.*"):
        if entry.is_dir():
            remove(entry)


def finished_result(folder: Path, notify: Callable[[str], None]) -> dict[str, Any] | None:
    """Returns the result of a finished run whose model is intact.

    None if work is left, such as writing model and designer again from the last checkpoint.

    Raises:
        UserError: the result or the model is damaged, and there is no checkpoint.
    """
    path, manifest = folder / "result.json", folder / MODEL_MANIFEST
    if not path.is_file():
        return None
    there = CheckpointManager(folder / "checkpoints").steps()
    try:
        result = read_json(path)
        if not _is_result(result):
            raise Damaged("result.json holds no result")
        if os.path.lexists(manifest):
            verify(folder / "model", manifest)
        elif not (folder / "model").is_dir():
            raise Damaged("model is gone")
        if there and not _designer_is_whole(folder):  # else the result stands without it
            raise Damaged("designer/state.pt is gone or damaged")
    except (OSError, ValueError):
        damage = "result.json is not whole"
    except Damaged as error:
        damage = str(error)
    else:
        return result
    if not there:
        raise _nothing_to_write_from(folder, f"{damage}, and there is no checkpoint")
    notify(f"{damage}; it is written again from the last checkpoint")
    return None


def _designer_is_whole(folder: Path) -> bool:
    try:
        designer_state(folder)
    except UserError:
        return False
    return True


def _is_result(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("arm"), str):
        return False
    step0, final = value.get("step0"), value.get("final")
    if not isinstance(step0, dict) or not isinstance(final, dict) or step0.keys() - final.keys():
        return False
    figures = [*step0.values(), *final.values(), value.get("steps"), value.get("seconds")]
    return all(isinstance(figure, (int, float)) for figure in figures)


def _nothing_to_write_from(folder: Path, damage: str) -> UserError:
    message = (
        f"this run had finished, but {damage}. Restore the file, or delete result.json to train "
        "again."
    )
    return user_error("--out", message, value=str(folder))


def changed_keys(folder: Path, recipe: Recipe) -> list[Problem]:
    """Returns the keys in which the recipe differs from the folder's.

    Empty if there is nothing to resume.
    """
    if not ((folder / "result.json").is_file() or any((folder / "checkpoints").glob("step-*"))):
        return []
    fix = (
        "give it back, name another folder with --out, or go on under the new recipe with "
        "--accept-changes"
    )
    return changes.changes(folder, recipe, fix)
