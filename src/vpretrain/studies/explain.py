"""``explain``: a finished run opened again, its feedback heard once, and a page of what its data is
worth.

What stands on the page is the modality's; here is what every one of them needs: the run folder read
back, AdamW's moments and the direction as they are while training, and one HTML file without script
or network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vpretrain.config.recipe import Recipe, load
from vpretrain.method.roles import Explain, Parts, detached
from vpretrain.method.value import adam_preconditioner
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.run.modalities import EXPLAINERS, MODALITIES, SCHEMAS
from vpretrain.run.train import new_step
from vpretrain.system.errors import user_error

MOMENT_STEPS = 16
"""Steps at learning rate 0 that fill AdamW's moments; a run folder does not keep them."""


def explain(folder: Path, *, documents: int, out: Path | None = None) -> dict[str, Any]:
    """What the run's data is worth, as one HTML page.

    Args:
        folder: that ``vpretrain train`` wrote.
        documents: how many documents of the stream are looked at, at least 1.
        out: the HTML file, replaced if it is there; None for ``explain.html`` in the run folder.

    Returns:
        What the modality's explainer returns, with ``page`` in it; for language
        ``{page, regret, value: {onehot, designer, bound, ...}, sources: {name: mean value},
        documents, ...}``.

    Raises:
        UserError: the folder is no finished run, its modality has no explanation, or ``out`` can be
            no file.
    """
    recipe = read_run(folder)
    page = out or folder / "explain.html"
    if page.is_dir():
        raise user_error(
            "--out", "this is a folder; name a file in it", value=str(page), accepted="an HTML file"
        )
    if blocked := [str(place) for place in page.parents if place.exists() and not place.is_dir()]:
        raise user_error(
            "--out", f"{blocked[0]} is a file; name a place in a folder", value=str(page)
        )
    return _explainer(recipe.modality)(recipe, folder, documents=documents, out=page)


def _explainer(modality: str) -> Explain:
    """This package's, or the method ``explain`` of a modality from outside.

    Raises:
        UserError: the modality has none.
    """
    if modality in EXPLAINERS:
        return EXPLAINERS[modality]()
    brought: Explain | None = getattr(MODALITIES[modality](), "explain", None)
    if brought is None:
        message = (
            "runs of this modality cannot be explained: it would have to bring a method "
            "`explain(recipe, folder, *, documents, "
            "out)`, which writes the page (vpretrain.method.roles.Explain)"
        )
        raise user_error(
            "RUN", message, value=modality, accepted="runs of " + ", ".join(EXPLAINERS)
        )
    return brought


def read_run(folder: Path) -> Recipe:
    """The recipe of a finished run.

    Raises:
        UserError: the folder holds none, or it cannot be read.
    """
    accepted = "a folder that `vpretrain train` wrote and finished"
    path = folder / "recipe.yaml"
    if not path.is_file():
        message = "this is no run folder: there is no recipe.yaml in it"
        if (folder / "compare.json").is_file():
            message = (
                "this is a comparison, which keeps no models; train the arm you want to look at"
            )
        elif not folder.exists():
            message = "there is no such folder"
        raise user_error("RUN", message, value=str(folder), accepted=accepted)
    missing = [] if (folder / "designer" / "state.pt").is_file() else ["designer/state.pt"]
    if not any(
        (folder / "model" / name).is_file() for name in ("config.json", "adapter_config.json")
    ):
        missing.insert(0, "model/config.json")
    if missing:
        message = (
            f"{' and '.join(missing)} not there: the run did not finish; run the same train "
            "command again"
        )
        raise user_error("RUN", message, value=str(folder), accepted=accepted)
    return load(path, schemas=SCHEMAS)


def restore_designer(parts: Parts, folder: Path) -> None:
    """The designer as it was when the run ended.

    Raises:
        UserError: the state cannot be read, or is not this designer's.
    """
    path = folder / "designer" / "state.pt"
    try:
        parts.designer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # pickle, zip and torch each raise their own
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        message = (
            f"the designer's state does not go with the recipe or is damaged ({said}); train again"
        )
        raise user_error(str(path), message, accepted="the file that the run wrote") from None


def listening(recipe: Recipe, parts: Parts, stream: Iterator[Any]) -> ValueEstimator:
    """An appraiser that has heard the feedback once, along the direction that training would take
    now.

    AdamW's moments are filled by plain steps at learning rate 0: neither learner nor designer
    moves.

    Args:
        recipe: of the run.
        parts: built from it; in evaluation mode, so that dropout does not blur what is seen.
        stream: gives the batches for the moments (used only where the alignment reads P).
    """
    step = new_step(recipe, parts)
    preconditioner = None
    if step.value_estimator.alignment.preconditioned:
        for group in step.optimizer.param_groups:
            group["lr"] = 0.0
        for _ in range(max(MOMENT_STEPS, recipe.value.burn_in_steps)):
            context = parts.learner.forward(next(stream))
            parts.learner.loss(context, detached(parts.designer.baseline_task(context))).backward()
            torch.nn.utils.clip_grad_norm_(step.parameters, step.clip_norm)
            step.optimizer.step()
            step.optimizer.zero_grad(set_to_none=True)
        floor = recipe.value.preconditioner_floor
        preconditioner = adam_preconditioner(step.optimizer, parts.learner.aligned, floor)
    downstream = parts.feedback.gradients(parts.learner)
    step.value_estimator.update(downstream, preconditioner, recipe.learner.learning_rate)
    return step.value_estimator


def last_record(folder: Path) -> dict[str, Any]:
    """The last whole line of ``metrics.jsonl``; empty where there is none."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            return record
    return {}
