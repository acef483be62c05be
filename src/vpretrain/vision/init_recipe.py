"""``init`` for pictures: a first recipe from a backbone, a folder of pictures, and a folder of some
with label maps.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vpretrain.models.loading import named
from vpretrain.system.errors import user_error
from vpretrain.vision.data.images import IGNORE
from vpretrain.vision.loading import load_model

BATCH = 16
FEWEST = 8
"""Labelled pictures that steer: heads learn from one half, ``g_down`` is taken on two batches of
the other.
"""


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
    classes = 1 + max(_highest(path) for path in maps + measured)
    steers = _set(feedback, classes, "" if evaluation else f", count: {steering}")
    held_out = (
        _set(evaluation, classes, "")
        if evaluation
        else _set(feedback, classes, f", skip: {steering}")
    )
    meta = steering // 2
    config = load_model(named(model), dtype=torch.float32, attention="sdpa").config
    patch, side = config.patch_size, getattr(config, "image_size", 224)
    view, local, image = (
        max(1, round(fraction * side / patch)) * patch for fraction in (1, 96 / 224, 256 / 224)
    )
    return f"""\
# vpretrain compare {out} --arms plain,ascent,fixed_random_direction
#
# Written by `vpretrain init`. `vpretrain check {out}` says what is wrong with it, `vpretrain train
# {out}` makes one run. Every key with its value stands in `recipe.yaml` in the folder of a run;
# docs/vision.md says what can be asked for.
modality: vision
description: {_text(f"{Path(stream).name} steered by {Path(feedback).name}")}
arm: ascent  # learned masks on DINO's views; others: docs/vision.md
budget: {{steps: 500}}  # learner steps; or tokens (pictures), seconds, flops: the first used up ends the run
data:
  image_size: {image}  # pixels of a side; crops are cut from it
  batch_size: {BATCH}  # pictures at a time; `learner.accumulate` adds batches up
  stream:  # what the learner trains on; several sources are mixed by their `weight`
    - {{name: {_text(Path(stream).name)}, pictures: {{kind: folder, images: {_text(stream)}}}}}
  feedback:  # what steers; heads learn from `train`, gradients are taken on `meta`, and the backbone never trains on either
    sets:
      # `classes` was counted in the label maps; 255 means no label, `void: N` says that N does too
      - {{train: {steering - meta}, meta: {meta}, pictures: {steers}}}
    tasks: {{segmentation: 1}}
    batch_size: {min(BATCH, meta // 2)}
    head: {{batch_size: {min(BATCH, steering - meta)}}}
  evaluation:  # probes learn from `train` on frozen features and are scored on `test`, of which nothing may steer
    train: [{steers}]
    test: [{held_out}]
learner:
  model: {_text(model)}
  learning_rate: 1e-5
  crops: {{global_size: {view}, local_size: {local}}}  # pixels
  # dtype: bfloat16  # on a GPU
value: {{meta_period: 4}}
evaluate: {{split: test, probes: [segmentation], probe: {{batch_size: {min(BATCH, steering)}}}}}
checkpoint: {{seconds: 600}}  # a killed run goes on from there when the same command is given again
"""


def _maps(folder: str, flag: str) -> list[Path]:
    """The label maps of a folder, as many as it has pictures (``check`` says which is missing)."""
    maps = sorted((Path(folder).expanduser() / "labels").glob("*.png"))
    if not maps or not (Path(folder).expanduser() / "images").is_dir():
        message = (
            "labelled pictures are read from a folder that holds `images` and, of the same "
            "names, `labels`"
        )
        raise user_error(
            flag,
            message,
            value=folder,
            accepted="FOLDER/images/NAME.jpg and FOLDER/labels/NAME.png",
        )
    return maps


def _highest(path: Path) -> int:
    """The highest class number of a label map; 0 of what is none (``check`` says what is wrong with
    it).
    """
    try:
        with Image.open(path) as image:
            written = np.asarray(image)
    except OSError:
        return 0
    numbers = written[written != IGNORE]
    return min(int(numbers.max(initial=0)), IGNORE - 1)


def _set(folder: str, classes: int, part: str) -> str:
    images, labels = (_text(str(Path(folder) / name)) for name in ("images", "labels"))
    return f"{{kind: folder, images: {images}, labels: {labels}, classes: {classes}{part}}}"


def _text(value: str) -> str:
    """A string as YAML reads it back, whatever is in it."""
    return json.dumps(value, ensure_ascii=False)
