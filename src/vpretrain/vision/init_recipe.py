"""``init`` for pictures: a first recipe from a backbone, a folder of pictures, and a folder of some
with label maps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vpretrain.models.loading import named
from vpretrain.system.errors import user_error
from vpretrain.vision.data.decoding import BadFile, label_numbers
from vpretrain.vision.data.images import IGNORE
from vpretrain.vision.data.readers import image_files
from vpretrain.vision.dino.loss import fitting_prototypes
from vpretrain.vision.loading import load_model

BATCH = 16
FEWEST = 8
"""Labelled pictures that steer: heads learn from one half, ``g_down`` is taken on two batches of
the other."""


@dataclass(frozen=True)
class _Plan:
    """What a recipe is made of: folders, label code, the sides and how many pictures there are."""

    model: str
    stream: str
    feedback: str
    evaluation: str | None
    code: dict[str, str]
    steering: int
    sides: tuple[int, int, int]
    pictures: int


def recipe_of(model: str, stream: str, feedback: str, evaluation: str | None, *, out: Path) -> str:
    """The text of a commented recipe.

    Args:
        model: a folder or a hub id of a ViT.
        stream: folder of unlabelled pictures.
        feedback: folder that holds ``images`` and ``labels`` (``.png`` of the same names, a class
            number at each pixel).
        evaluation: likewise, of pictures that are measured on; None holds out a quarter of the
            feedback's.
        out: the file that it will be.

    Raises:
        UserError: a folder or the model cannot be read, or the labelled pictures are too few.
    """
    maps = _maps(feedback, "--feedback")
    steering = len(maps) if evaluation else len(maps) * 3 // 4
    if steering < FEWEST:
        message = (
            "these labelled pictures are too few to teach heads with some, steer with some "
            "and measure on the others"
        )
        least = f"{FEWEST} or more beside --evaluation, {-(-FEWEST * 4 // 3)} or more without"
        raise user_error("--feedback", message, value=f"{len(maps)} pictures", accepted=least)
    measured = _maps(evaluation, "--evaluation") if evaluation else []
    config = load_model(named(model), dtype=torch.float32, attention="sdpa").config
    patch, side = config.patch_size, getattr(config, "image_size", 224)
    view, local, image = (
        max(1, round(fraction * side / patch)) * patch for fraction in (1, 96 / 224, 256 / 224)
    )
    code, pictures = _label_keys(maps + measured), len(image_files(Path(stream).expanduser())[0])
    sides = view, local, image
    plan = _Plan(model, stream, feedback, evaluation, code, steering, sides, pictures)
    return _head(plan, out) + _data(plan) + _training(plan)


def _head(plan: _Plan, out: Path) -> str:
    description = f"{Path(plan.stream).name} steered by {Path(plan.feedback).name}"
    return f"""\
# vpretrain compare {out} --arms plain,ascent,fixed_random_direction
#
# Written by `vpretrain init`. What is wrong with it, and one run of it:
#   vpretrain check {out}
#   vpretrain train {out}
# Every key with its value is in `recipe.yaml` in the folder of a run; docs/vision.md says what else
# can be set.
modality: vision
description: {_text(description)}
arm: ascent  # learned masks on DINO's views; others: docs/vision.md
budget: {{steps: 500}}  # of the learner; or tokens (pictures), seconds, flops
"""


def _data(plan: _Plan) -> str:
    steering, meta = plan.steering, plan.steering // 2
    steers = _set(plan.feedback, plan.code, "" if plan.evaluation else f"count: {steering}")
    held_out = _set(plan.feedback, plan.code, f"skip: {steering}")
    if plan.evaluation:
        held_out = _set(plan.evaluation, plan.code)
    return f"""\
data:
  image_size: {plan.sides[2]}  # pixels of a side; crops are cut from it
  batch_size: {BATCH}  # pictures at a time; `learner.accumulate` adds batches up
  stream:  # what the learner trains on; several sources are mixed by their `weight`
    - name: {_text(Path(plan.stream).name)}
      pictures: {{kind: folder, images: {_text(plan.stream)}}}
  feedback:
    # What steers: heads learn from `train`, gradients are taken on `meta`. The learner trains on
    # neither. Classes were counted in the label maps.{_label_comment(plan.code)}
    sets:
      - train: {steering - meta}
        meta: {meta}
        pictures:
{_indented(steers, 10)}
    tasks: {{segmentation: 1}}
    batch_size: {min(BATCH, meta // 2)}
    head: {{batch_size: {min(BATCH, steering - meta)}}}
  evaluation:
    # Probes learn from `train` on frozen features and are scored on `test`, which never steers.
    train:
{_item(steers)}
    test:
{_item(held_out)}
"""


def _training(plan: _Plan) -> str:
    view, local, _ = plan.sides
    return f"""\
learner:
  model: {_text(plan.model)}
  learning_rate: 1e-5
  crops: {{global_size: {view}, local_size: {local}}}  # pixels
  # Fit for {plan.pictures} pictures; a fresh head is trained before the learner moves.
  head: {{prototypes: {fitting_prototypes(plan.pictures)}}}
  head_warmup_steps: {_warmup_steps(plan.pictures)}
  # dtype: bfloat16  # on a GPU
value: {{meta_period: 4}}
evaluate:
  split: test
  probes: [segmentation]
  probe: {{batch_size: {min(BATCH, plan.steering)}}}
checkpoint: {{seconds: 600}}  # a killed run resumes when the same command is given again
"""


def _warmup_steps(pictures: int) -> int:
    """Ten passes over the pictures, from 20 steps to 500."""
    return min(500, max(20, -(-10 * pictures // BATCH)))


def _maps(folder: str, flag: str) -> list[Path]:
    """The label maps of a folder, as many as it has pictures (``check`` says which is missing)."""
    maps = sorted((Path(folder).expanduser() / "labels").rglob("*.[pP][nN][gG]"))
    if not maps or not (Path(folder).expanduser() / "images").is_dir():
        message = "labelled pictures are a folder of `images` and, of the same names, `labels`"
        accepted = "FOLDER/images/NAME.jpg and FOLDER/labels/NAME.png"
        raise user_error(flag, message, value=folder, accepted=accepted)
    return maps


def _label_keys(maps: list[Path]) -> dict[str, str]:
    """The recipe's keys of what the numbers in label maps mean; `check` names maps that cannot be
    read."""
    written: set[int] = set()
    for path in maps:
        try:
            written.update(np.unique(label_numbers(path)).tolist())
        except BadFile:
            continue
    classes = sorted(written - {IGNORE})
    if len(written) < 2:
        message = "every pixel of the label maps has the same number: one class cannot be learned"
        raise user_error("--feedback", message, value=str(classes), accepted="two classes or more")
    if len(classes) == 1:  # a mask as image editors write it
        return {"classes": "2", "label_values": f"[{classes[0]}, {IGNORE}]"}
    return {"classes": str(1 + min(classes[-1], IGNORE - 1))}


def _label_comment(code: dict[str, str]) -> str:
    if "label_values" in code:
        return f"""
    # They hold two numbers, so that {IGNORE} is taken for a class. If it means "no label" there is
    # one class, and nothing to learn."""
    return f"\n    # {IGNORE} means no label; `void: N` says that N does too."


def _set(folder: str, code: dict[str, str], part: str = "") -> list[str]:
    images, labels = (_text(str(Path(folder) / name)) for name in ("images", "labels"))
    keys = [f"{key}: {value}" for key, value in code.items()]
    return ["kind: folder", f"images: {images}", f"labels: {labels}", *keys, *([part] * bool(part))]


def _item(lines: list[str]) -> str:
    return "      - " + _indented(lines, 8).lstrip()


def _indented(lines: list[str], spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in lines)


def _text(value: str) -> str:
    """A string as YAML reads it back, whatever is in it."""
    return json.dumps(value, ensure_ascii=False)
