"""Checkpoints: all that a run needs to go on bit for bit, on disk whole or not at all.

A checkpoint is a folder ``step-0000120``: ``*.safetensors`` with every tensor (written by
``torch.distributed.checkpoint``), ``state.json`` with everything else, and ``manifest.json`` with
the size and the SHA-256 of both. It is written under another name, flushed to the disk and then
renamed. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from vpretrain.config.recipe import Checkpoint
from vpretrain.models.finite import unusable
from vpretrain.run.encoding import State, Tensors, copied, decoded, encoded
from vpretrain.run.manifest import Damaged, verify, write_manifest
from vpretrain.run.scores import Score
from vpretrain.system import distributed
from vpretrain.system.errors import user_error
from vpretrain.system.files import (
    put_in_place,
    remove,
    replacing,
    scratch_beside,
    write_json,
)

log = logging.getLogger(__name__)

_HEADER_BYTES = 150  # of safetensors, a tensor, beside its name
_NO_STATE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
_STEP = re.compile(r"step-(\d{7,})")


def save(state: State, folder: Path) -> None:
    """Writes a state; the folder appears whole or not at all.

    Where tensors are shards all processes come here together, and each writes its own; otherwise
    one does, alone.

    Args:
        state: see :data:`State`; the keys of its dictionaries are strings or whole numbers.
        folder: its parent is made; what was there before gives way once the new one is whole.

    Raises:
        OSError: the disk is full, say; nothing is left behind then.
    """
    tensors = Tensors()
    rest = encoded(state, "", tensors)
    scratch = scratch_beside(folder)
    together = sharded(tensors)
    first = distributed.on_first_rank if together else lambda make: make()

    def begin() -> None:
        remove(scratch)
        scratch.mkdir(parents=True)
        (scratch / "state.json").write_text(json.dumps(rest), encoding="utf-8")

    def end() -> None:
        write_manifest(scratch)
        put_in_place(scratch, folder, flush=True)

    try:
        first(begin)
        # Of what is no shard the first process writes all.
        written = {
            name: tensor
            for name, tensor in tensors.items()
            if isinstance(tensor, DTensor) or not (together and distributed.rank())
        }
        if tensors:
            writer = HuggingFaceStorageWriter(path=str(scratch), save_distributed=True)
            with _one_process():
                distributed_checkpoint.save(written, storage_writer=writer, no_dist=not together)
        first(end)
    except BaseException:
        remove(scratch)
        raise


def size(state: State) -> int:
    """About how many bytes :func:`save` writes: tensors, their names, and everything else."""
    tensors = Tensors()
    rest = encoded(state, "", tensors)
    contents = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    headers = sum(_HEADER_BYTES + len(name) for name in tensors)
    return contents + headers + len(json.dumps(rest))


def sharded(state: State) -> bool:
    """Whether a state holds shards of tensors: then :func:`save` is for all processes together."""
    return any(isinstance(tensor, DTensor) for tensor in distributed.tensors_in(state))


def load(folder: Path) -> State:
    """Reads back what :func:`save` was given, tensors on the CPU.

    Raises:
        Damaged: a file is missing, cut, or has another content than was written, or what was
            written is no state.
    """
    verify(folder)
    try:
        return _loaded(folder)
    except (*_NO_STATE, SafetensorError, CheckpointException) as error:
        raise Damaged(f"it holds no state: {type(error).__name__}") from error


def _loaded(folder: Path) -> State:
    rest = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors: dict[str, Tensor] = {}
    if any(folder.glob("*.safetensors")):
        reader = HuggingFaceStorageReader(path=str(folder))
        for name, metadata in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(metadata, TensorStorageMetadata)
            tensors[name] = torch.empty(metadata.size, dtype=metadata.properties.dtype)
        with _one_process():
            distributed_checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return decoded(rest, tensors)


class CheckpointManager:
    """The checkpoints of one run: writes, prunes, and finds the newest that is whole.

    Of several processes the first writes (each its own shards, where there are any), and all read:
    the folder is one that they share.

    Args:
        folder: ``checkpoints/`` of the run; made on first use.
        every: steps between two checkpoints; 0: by time alone.
        seconds: after which one is due; 0: by steps alone.
        keep_last: older ones than these many are removed, >= 1.
        asynchronous: whether files are written by another thread while the run goes on (the state
            is copied first).

    Attributes:
        failure: what the system said when a checkpoint could last not be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int = 0,
        seconds: float = 0.0,
        keep_last: int = 2,
        asynchronous: bool = False,
    ) -> None:
        self.folder, self.every, self.seconds, self.keep_last = folder, every, seconds, keep_last
        self._saved = time.monotonic()
        self._thread = ThreadPoolExecutor(1) if asynchronous else None
        self._waiting: Future[None] | None = None
        self.failure = ""

    @classmethod
    def of(cls, folder: Path, section: Checkpoint) -> CheckpointManager:
        """As a recipe has it."""
        return cls(
            folder,
            every=section.every,
            seconds=section.seconds,
            keep_last=section.keep_last,
            asynchronous=section.asynchronous,
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, oldest first; whether they are whole is not
        looked at.
        """
        names = [_STEP.fullmatch(path.name) for path in self.folder.glob("step-*")]
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:07d}"

    def due(self, step: int) -> bool:
        """Whether one should be written after this step."""
        by_steps = self.every > 0 and step % self.every == 0
        return by_steps or (self.seconds > 0 and time.monotonic() - self._saved >= self.seconds)

    def save(self, step: int, state: State) -> None:
        """Writes a checkpoint. Where the disk is full or refuses, the run goes on with the ones it
        has, and it is logged.
        """
        if distributed.rank() and not sharded(state):
            return
        self.wait()
        self._saved = time.monotonic()
        if self._thread is None:
            self._write(step, state)
        else:
            self._waiting = self._thread.submit(self._write, step, copied(state))

    def keep_best(
        self,
        metric: str,
        scores: Mapping[str, Score],
        best: float | None,
        save_model: Callable[[Path], None],
    ) -> float | None:
        """Keeps the learner as ``best``, a model folder with its ``scores.json``, if its score
        beats the best so far.

        Where the disk is full or refuses, the run goes on with the best it has, and it is logged.

        Returns:
            The best score, this one counted; None before the first that was kept.

        Raises:
            UserError: the metric is not measured.
        """
        score = measured(metric, scores)
        value = score.value
        if not math.isfinite(value):
            log.warning("%s is %s: no model is kept for it", metric, value)
            return best
        if best is not None and (value <= best if score.higher_is_better else value >= best):
            return best
        if distributed.rank():
            return value
        try:
            with replacing(self.folder / "best") as scratch:
                scratch.mkdir()
                save_model(scratch)
                write_json(scratch / "scores.json", {name: s.value for name, s in scores.items()})
        except (OSError, SafetensorError) as error:
            log.warning(
                "the best model so far, %s %.4g, was not kept: %s; the run goes on",
                metric,
                value,
                error,
            )
            return best
        return value

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        if self._waiting is not None:
            self._waiting.result()
            self._waiting = None

    def newest(self) -> tuple[int, State] | None:
        """The newest checkpoint that is whole; damaged ones are logged and set aside as
        ``damaged-step-*``, and what a killed save left behind is removed.

        Raises:
            UserError: what the first process found another one cannot read.
        """
        newest = self._newest() if distributed.rank() == 0 else None
        step = distributed.broadcast_object(None if newest is None else newest[0])
        if distributed.rank() == 0 or step is None:
            return newest
        try:
            return step, self._read(step)
        except Damaged as error:
            message = (
                f"process {distributed.rank()} on {socket.gethostname()} cannot read the "
                "checkpoint that the first one found "
                f"({error}): the run folder has to be on a disk that all machines see"
            )
            raise user_error("--out", message, value=str(self.path(step))) from None

    def _newest(self) -> tuple[int, State] | None:
        self.wait()
        for scratch in self.folder.glob(".*.partial"):
            remove(scratch)
        for step in reversed(self.steps()):
            try:
                return step, self._read(step)
            except Damaged as error:
                aside = self.folder / f"damaged-{self.path(step).name}"
                remove(aside)
                self.path(step).rename(aside)
                log.warning(
                    "checkpoint %s is damaged (%s); it was set aside as %s",
                    self.path(step),
                    error,
                    aside.name,
                )
        return None

    def _read(self, step: int) -> State:
        state = load(self.path(step))
        model = state.get("model", {}) if isinstance(state, dict) else {}
        if broken := unusable(model.items()):
            raise Damaged(f"a weight is not finite: {broken}")
        return state

    def _write(self, step: int, state: State) -> None:
        try:
            save(state, self.path(step))
        except (OSError, CheckpointException) as error:
            cause = _disk_error(error)
            if cause is None:
                raise
            if distributed.rank() == 0:
                log.warning(
                    "no checkpoint at step %d: %s; the run goes on, and older ones are kept",
                    step,
                    cause,
                )
            self.failure = cause
            return
        if distributed.rank():
            return
        for old in self.steps()[: -self.keep_last]:
            shutil.rmtree(self.path(old), ignore_errors=True)


def measured(metric: str, scores: Mapping[str, Score]) -> Score:
    """The score of ``checkpoint.keep_best``; raises UserError if it is not measured."""
    if metric not in scores:
        message = "the evaluation does not measure this"
        raise user_error("checkpoint.keep_best", message, value=metric, accepted=", ".join(scores))
    return scores[metric]


def _disk_error(error: BaseException) -> str | None:
    """What the system said of the disk, also where torch wrapped it; None where it is something
    else.
    """
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return error.strerror or str(error) if isinstance(error, OSError) else None


@contextmanager
def _one_process() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process", category=UserWarning)
        yield
