"""Finds the trainer checkpoint to resume, skipping incomplete ones (killed while writing).

Checkpoints of a plain Trainer are resumed too: its model, optimizer and schedule go on, and
steering begins there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from vpretrain.integrations.datasets import log
from vpretrain.run.checkpoint import Damaged, load
from vpretrain.system.errors import user_error
from vpretrain.system.files import read_json

STATE = "steering"
"""Folder inside a Trainer's checkpoint: designer, position in the feedback data, latest gradients,
and a list of the files written before it.
"""

_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


_WRITTEN_LATER = (f"{STATE}/", TRAINER_STATE_NAME, "rng_state")
"""Beginnings of the names of files that the Trainer writes after the list of files is made. An
earlier run in the same folder may have left others there.
"""


def is_plain(checkpoint: Path) -> bool:
    """Whether a Trainer without steering wrote this, with its optimizer."""
    return not (checkpoint / STATE).exists() and (checkpoint / OPTIMIZER_NAME).is_file()


def files_in(checkpoint: Path) -> dict[str, int]:
    """Returns sizes in bytes of the files that are complete before :data:`STATE`, by name."""
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    return {name: size for name, size in sizes.items() if not name.startswith(_WRITTEN_LATER)}


def resumable(folder: Path) -> str | bool:
    """Returns what a Trainer should resume from.

    The newest complete checkpoint in its ``output_dir``; newer incomplete ones are logged. True if
    there is no checkpoint at all. False if only unfinished ones exist, which is logged: training
    starts over.

    Raises:
        UserError: there are checkpoints, none is complete, and some are damaged rather than
            unfinished.
    """
    named = ((path, _NAME.fullmatch(path.name)) for path in folder.glob("*") if path.is_dir())
    steps = {int(match[1]): path for path, match in named if match}
    broken: dict[str, Damaged] = {}
    steered = [step for step in steps if (steps[step] / STATE).exists()]
    for step in sorted(steps, reverse=True):
        # After a steered checkpoint one without its state is damaged.
        may_be_plain = step < min(steered, default=step + 1)
        try:
            _check(steps[step], may_be_plain=may_be_plain)
        except Damaged as damage:
            broken[steps[step].name] = damage
            continue
        if broken:
            log.warning("not whole: %s; resuming from %s", _listed(broken), steps[step].name)
        return str(steps[step])
    if not broken:
        return True
    if all(isinstance(damage, _Unfinished) for damage in broken.values()):
        log.warning("not whole: %s; starting over", _listed(broken))
        return False
    message = f"no checkpoint here is whole: {_listed(broken)}; remove them to begin again"
    accepted = "a checkpoint that a SteeredTrainer wrote with save_only_model=False"
    raise user_error("resume_from_checkpoint", message, value=str(folder), accepted=accepted)


class _Unfinished(Damaged):
    """The last file of the checkpoint was never written."""


def _listed(broken: dict[str, Damaged]) -> str:
    return ", ".join(f"{name} ({damage})" for name, damage in broken.items())


def _check(checkpoint: Path, *, may_be_plain: bool) -> None:
    """Raises Damaged unless all files are there with the sizes that they were written with.

    A plain checkpoint does not tell their sizes; it counts as whole.
    """
    try:
        read_json(checkpoint / TRAINER_STATE_NAME)  # the Trainer writes it last
    except (OSError, ValueError):
        raise _Unfinished(f"{TRAINER_STATE_NAME} is not there or cut off") from None
    if may_be_plain and is_plain(checkpoint):
        return
    state: dict[str, Any] = load(checkpoint / STATE)
    there = files_in(checkpoint)
    for name, size in state["files"].items():
        if there.get(name) != size:
            raise Damaged(f"{name} is not as it was written")
