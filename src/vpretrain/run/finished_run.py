"""Reads the folder of a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vpretrain.config.recipe import Recipe, load
from vpretrain.method.roles import State
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.models.finite import refuse_unusable
from vpretrain.run.build import new_step
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.parts import AnyParts
from vpretrain.run.pretrain import Pretraining, pretrain
from vpretrain.system.distributed import tensors_in
from vpretrain.system.errors import brief, user_error

MOMENT_STEPS = 16
"""Minimum number of steps at learning rate 0 that fill AdamW's moments, which a run folder does not
keep.
"""


DESIGNER = "designer/state.pt"


def holds_model(folder: Path) -> bool:
    """Returns whether a run folder holds a model, or the adapter of one."""
    names = ("config.json", "adapter_config.json")
    return any((folder / "model" / name).is_file() for name in names)


def read_run(folder: Path) -> Recipe:
    """Returns the recipe of a finished run.

    Raises:
        UserError: the folder holds no finished run, or the recipe cannot be read.
    """
    accepted = "a folder that `vpretrain train` wrote and finished"
    path = folder / "recipe.yaml"
    if (folder / "compare.json").is_file():
        message = "this is a comparison, which keeps no models; train the arm you want to look at"
        raise user_error("RUN", message, value=str(folder), accepted=accepted)
    if not path.is_file():
        message = "this is no run folder: there is no recipe.yaml in it"
        if not folder.exists():
            message = "there is no such folder"
        raise user_error("RUN", message, value=str(folder), accepted=accepted)
    missing = [] if (folder / DESIGNER).is_file() else [DESIGNER]
    if not holds_model(folder):
        missing.insert(0, "model/config.json")
    if missing:
        message = (
            f"{' and '.join(missing)} not there: the run did not finish; run the same train "
            "command again"
        )
        raise user_error("RUN", message, value=str(folder), accepted=accepted)
    return load(path, schemas=SCHEMAS)


def designer_state(folder: Path) -> State:
    """Returns the saved state of a run's designer.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / DESIGNER
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # pickle, zip and torch each raise their own, and advise to trust the file
        message = "the designer's state is damaged; the same train command writes it again"
        raise user_error(str(path), message, accepted="the file that the run wrote") from None
    refuse_unusable((("a tensor", tensor) for tensor in tensors_in(state)), path, str(path))
    return state


def restore_designer(parts: AnyParts, folder: Path) -> None:
    """Loads the designer's state at the end of the run into ``parts``.

    Raises:
        UserError: the state cannot be read, or does not fit this designer.
    """
    state = designer_state(folder)
    try:
        parts.designer.load_state_dict(state)
    except Exception as error:  # each designer finds another thing missing
        message = f"the designer's state does not go with the recipe ({brief(error)}); train again"
        raise user_error(
            str(folder / DESIGNER), message, accepted="the file that the run wrote"
        ) from None


def last_record(folder: Path) -> dict[str, Any]:
    """Returns the last readable record of ``metrics.jsonl``; empty if there is none."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            return record
    return {}


def with_feedback(
    recipe: Recipe, parts: AnyParts, stream: Iterator[Any]
) -> ValueEstimator[Any, Any, Any]:
    """Returns a value estimator with fresh feedback gradients.

    Its direction is the one that training would use now.

    AdamW's moments are filled by steps at learning rate 0, which move neither learner nor designer.

    Args:
        recipe: of the run.
        parts: built from it; in evaluation mode, so that dropout adds no noise.
        stream: gives the batches for the moments (used only if the alignment reads P).
    """
    step = new_step(recipe, parts)
    meta = step.meta
    if meta.value_estimator.alignment.preconditioned:
        how = Pretraining(
            parts.learner,
            parts.designer.baseline_task,
            step.optimizer,
            recipe.learner.clip_norm,
            "learner.learning_rate",
        )
        steps = max(MOMENT_STEPS, recipe.value.settle_steps)
        for _ in pretrain(how, stream, [(0.0, 0.0)] * steps):
            pass
    downstream = parts.feedback.gradients(parts.learner)
    meta.value_estimator.update(downstream, meta.preconditioner(), recipe.learner.learning_rate)
    return meta.value_estimator
