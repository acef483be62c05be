"""Checkpoints: everything that a run needs to continue bit for bit, written atomically.

A checkpoint is a folder ``step-0000120``: ``*.safetensors`` with every tensor (written by
``torch.distributed.checkpoint``), ``state.json`` with everything else, and ``manifest.json`` with
the size and the SHA-256 of each file. It is written under another name, flushed to disk and then
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
    tidy,
    write_json,
)

log = logging.getLogger(__name__)

_HEADER_BYTES = 150  # of safetensors, a tensor, beside its name
_NO_STATE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
_STEP = re.compile(r"step-(\d{7,})")


def save(state: State, folder: Path) -> None:
    """Writes a state to a folder, atomically.

    If tensors are sharded, all processes must call it together, and each writes its own shards;
    otherwise a single process calls it.

    Args:
        state: see :data:`State`; the keys of its dictionaries are strings or integers.
        folder: its parent is created; an existing folder is replaced once the new one is complete.

    Raises:
        OSError: it cannot be written (a full disk); no partial folder is left.
    """
    tensors = Tensors()
    rest = encoded(state, "", tensors)
    scratch = scratch_beside(folder)
    together = sharded(tensors)
    first = distributed.from_first_rank if together else lambda make: make()

    def begin() -> None:
        remove(scratch)
        scratch.mkdir(parents=True)
        (scratch / "state.json").write_text(json.dumps(rest), encoding="utf-8")

    def end() -> None:
        write_manifest(scratch)
        put_in_place(scratch, folder, flush=True)

    try:
        first(begin)
        # The first process writes all tensors that are not sharded.
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
    """Returns approximately the number of bytes that :func:`save` writes."""
    tensors = Tensors()
    rest = encoded(state, "", tensors)
    contents = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    headers = sum(_HEADER_BYTES + len(name) for name in tensors)
    return contents + headers + len(json.dumps(rest))


def sharded(state: State) -> bool:
    """Returns whether a state has sharded tensors, so that :func:`save` is a collective call."""
    return any(isinstance(tensor, DTensor) for tensor in distributed.tensors_in(state))


def load(folder: Path) -> State:
    """Returns the state that :func:`save` wrote, with tensors on the CPU.

    Raises:
        Damaged: a file is missing or differs from what was written, or the files hold no state.
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
    """The checkpoints of one run: writes them, removes old ones, and finds the newest complete one.

    Of several processes only the first writes (or each its own shards), and all read, so the folder
    must be on a disk that all of them see.

    Args:
        folder: ``checkpoints/`` of the run; created on first use.
        every: steps between two checkpoints; 0: by time alone.
        seconds: seconds between two checkpoints; 0: by steps alone.
        keep_last: number of checkpoints to keep, at least 1.
        asynchronous: whether another thread writes a copy of the state while the run continues.

    Attributes:
        failure: the system's message for the latest checkpoint that could not be written; empty if
            there is none.
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
        """Returns a manager with the settings of a recipe."""
        return cls(
            folder,
            every=section.every,
            seconds=section.seconds,
            keep_last=section.keep_last,
            asynchronous=section.asynchronous,
        )

    def steps(self) -> list[int]:
        """Returns the steps of the existing checkpoints, oldest first, complete or not."""
        names = [_STEP.fullmatch(path.name) for path in self.folder.glob("step-*")]
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint."""
        return self.folder / f"step-{step:07d}"

    def due(self, step: int) -> bool:
        """Returns whether a checkpoint should be written after this step."""
        by_steps = self.every > 0 and step % self.every == 0
        return by_steps or (self.seconds > 0 and time.monotonic() - self._saved >= self.seconds)

    def save(self, step: int, state: State) -> None:
        """Writes a checkpoint; a disk error is logged, and the run continues."""
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
        """Saves the learner as the model folder ``best``, with its ``scores.json``, if its score is
        the best so far.

        A disk error is logged, and the run continues with the earlier best model.

        Returns:
            The best score, including this one; None if none was saved yet.

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
        """Waits until the checkpoint that is being written is complete."""
        if self._waiting is not None:
            self._waiting.result()
            self._waiting = None

    def newest(self) -> tuple[int, State] | None:
        """Returns step and state of the newest complete checkpoint; None if there is none.

        Damaged ones are logged and renamed to ``damaged-step-*``, and incomplete ones of a killed
        process are removed.

        Raises:
            UserError: this process cannot read the checkpoint that the first one has read.
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
                "checkpoint that the first one has read "
                f"({error}): the run folder has to be on a disk that all machines see"
            )
            raise user_error("--out", message, value=str(self.path(step))) from None

    def _newest(self) -> tuple[int, State] | None:
        self.wait()
        tidy(self.folder)
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
    """Returns the score of ``checkpoint.keep_best``; raises UserError if it is not measured."""
    if metric not in scores:
        message = "the evaluation does not measure this"
        raise user_error("checkpoint.keep_best", message, value=metric, accepted=", ".join(scores))
    return scores[metric]


def _disk_error(error: BaseException) -> str | None:
    """Returns the message of a disk error, also one wrapped by torch; None for other errors."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return error.strerror or str(error) if isinstance(error, OSError) else None


@contextmanager
def _one_process() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process", category=UserWarning)
        yield
