"""``vpretrain init`` for vision: a first recipe from a backbone and folders of pictures."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from vpretrain.models.loading import named
from vpretrain.system.errors import UserError, user_error
from vpretrain.vision.backbone import Backbone
from vpretrain.vision.data.decoding import BadFile, label_numbers
from vpretrain.vision.data.images import IGNORE, IMAGENET_MEAN, IMAGENET_STD
from vpretrain.vision.data.readers import LABEL_SUFFIXES, image_files
from vpretrain.vision.dino.loss import fitting_prototypes
from vpretrain.vision.loading import image_processor, load_model

BATCH = 16
FEWEST = 8
"""Fewest labelled pictures in the feedback set: heads train on one half, ``g_down`` is computed on
two batches of the other."""


_IMAGES = ("images", "image", "imgs", "img", "photos", "JPEGImages", "rgb")
_LABELS = ("labels", "masks", "label", "mask", "annotations", "segmentation", "SegmentationClass")
_MOST_COLOURS = 64


@dataclass(frozen=True)
class _Labelled:
    """Pictures with label maps: both folders, the suffix of the maps' names, and the maps."""

    images: str
    labels: str
    suffix: str
    maps: list[Path]


@dataclass(frozen=True)
class _Plan:
    """Contents of a recipe.

    ``code``: the recipe keys of the label code. ``steering``: the number of labelled pictures in
    the feedback set. ``sides``: of global views, local views and pictures, in pixels.
    ``streamed``: the recipe keys of the stream, ``pictures`` the number of its pictures."""

    model: str
    stream: str
    streamed: list[str]
    feedback: _Labelled
    evaluation: _Labelled | None
    code: dict[str, str]
    steering: int
    sides: tuple[int, int, int]
    pictures: int


def recipe_of(
    model: str, stream: str, feedback: str, evaluation: str | None, *, out: Path
) -> tuple[str, int]:
    """Return the text of a commented recipe, and the number of pictures in the feedback set.

    Args:
        model: folder or hub id of a ViT.
        stream: folder of unlabelled pictures.
        feedback: folder with ``images`` and ``labels`` or ``masks`` in subfolders, or side by side.
            Maps have the names of their images, or these with a suffix such as ``_mask``, and hold
            a class number or a colour at each pixel.
        evaluation: folder of the evaluation pictures in the same layout; None: a quarter of the
            feedback pictures is held out.
        out: file that the recipe will be written to.

    Raises:
        UserError: a folder or the model cannot be read, or there are too few labelled pictures.
    """
    steers = _labelled(feedback, "--feedback")
    steering = len(steers.maps) if evaluation else len(steers.maps) * 3 // 4
    if steering < FEWEST:
        message = (
            "these labelled pictures are too few to teach heads with some, steer with some "
            "and measure on the others"
        )
        least = f"{FEWEST} or more beside --evaluation, {-(-FEWEST * 4 // 3)} or more without"
        raise user_error(
            "--feedback", message, value=f"{len(steers.maps)} pictures", accepted=least
        )
    measured = _labelled(evaluation, "--evaluation") if evaluation else None
    backbone = Backbone(load_model(named(model), dtype=torch.float32, attention="sdpa"))
    patch, side = backbone.patch_size, getattr(backbone.model.config, "image_size", 224)
    # Positions are interpolated; at DINOv2's 518 pixels a view would have five times the tokens.
    side = min(side if isinstance(side, int) else min(side), 224)
    view, local, image = (
        max(1, round(fraction * side / patch)) * patch for fraction in (1, 96 / 224, 256 / 224)
    )
    code = _label_keys(steers.maps + (measured.maps if measured else []))
    streamed, pictures = _streamed(stream, steers, code)
    sides = view, local, image
    plan = _Plan(model, stream, streamed, steers, measured, code, steering, sides, pictures)
    return _head(plan, out) + _data(plan) + _training(plan), steering


def _head(plan: _Plan, out: Path) -> str:
    labels = Path(plan.feedback.labels)
    steers = labels.parent.name or labels.name  # `beside`: pictures and maps in one folder
    description = f"{Path(plan.stream).name} steered by {steers}"
    return f"""\
# vpretrain compare {out} --arms plain,view_weights,reversed_feedback
#
# Written by `vpretrain init`. What is wrong with it, and one run of it:
#   vpretrain check {out}
#   vpretrain train {out}
# Every key with its value is in `recipe.yaml` in the folder of a run.
modality: vision
description: {_text(description)}
arm: view_weights  # views by their value to the labels; others: `vpretrain arms vision`
budget: {{steps: 500}}  # of the learner; or tokens (pictures), seconds, flops
"""


def _data(plan: _Plan) -> str:
    steering, meta, batch = plan.steering, plan.steering // 2, min(BATCH, plan.pictures)
    steers = _set(plan.feedback, plan.code, "" if plan.evaluation else f"count: {steering}")
    held_out = _set(plan.feedback, plan.code, f"skip: {steering}")
    if plan.evaluation:
        held_out = _set(plan.evaluation, plan.code)
    return f"""\
data:
  image_size: {plan.sides[2]}  # pixels of a side; crops are cut from it
  batch_size: {batch}  # pictures at a time; `learner.accumulate` adds batches up
  stream:  # what the learner trains on; several sources are mixed by their `weight`
    - name: {_text(Path(plan.stream).name)}
      pictures:
{_indented(plan.streamed, 8)}
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
    crops = [f"global_size: {view}", f"local_size: {local}", *_normalisation(plan.model)]
    return f"""\
learner:
  model: {_text(plan.model)}
  learning_rate: 1e-5
  crops: {{{", ".join(crops)}}}  # pixels
  {_head_keys(plan)}
  head_warmup_steps: {_warmup_steps(plan.pictures)}
  # dtype: bfloat16  # on a GPU
designer: {{kind: view_weights, tilt: 1.0}}
value: {{meta_period: 8}}
evaluate:
  split: test
  probes: [segmentation]
  probe: {{batch_size: {min(BATCH, plan.steering)}}}
checkpoint: {{seconds: 600}}  # a killed run resumes when the same command is given again
"""


def _head_keys(plan: _Plan) -> str:
    """Recipe lines of the head: a fresh one, or the one that was saved with the weights."""
    path = Path(named(plan.model)) / "dino.safetensors"
    if not path.is_file():
        comment = (
            f"# Fit for {plan.pictures} pictures; a fresh head is trained before the learner moves"
        )
        return f"{comment}.\n  head: {{prototypes: {fitting_prototypes(plan.pictures)}}}"
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    biases = sorted(name for name in shapes if re.fullmatch(r"head\.mlp\.\d+\.bias", name))
    *hidden, bottleneck = (shapes[name][0] for name in biases)
    keys = f"hidden: {hidden}, bottleneck: {bottleneck}, prototypes: {shapes['head.prototypes'][0]}"
    return f"# The head that came with the model.\n  head: {{{keys}}}"


def _normalisation(model: str) -> list[str]:
    """Recipe keys of the backbone's normalisation, if known and not the default (ImageNet's)."""
    processor = image_processor(named(model))
    keys = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    given = {key: processor.get(f"image_{key}") or usual for key, usual in keys.items()}
    return [
        f"{key}: {list(given[key])}" for key, usual in keys.items() if tuple(given[key]) != usual
    ]


def _warmup_steps(pictures: int) -> int:
    """Steps of ten passes over the pictures, between 20 and 500."""
    return min(500, max(20, -(-10 * pictures // BATCH)))


def _labelled(folder: str, flag: str) -> _Labelled:
    """Detect the layout of a folder of labelled pictures; ``check`` reports missing maps later."""
    root = Path(folder).expanduser()
    images, labels = (
        next((name for name in names if (root / name).is_dir()), "") for names in (_IMAGES, _LABELS)
    )
    if bool(images) == bool(labels) and root.is_dir():
        apart = [root / labels] if images != labels else []
        stems = [path.stem for path in _files(root / images, apart)]
        maps = [path for path in _files(root / labels) if path.suffix.lower() in LABEL_SUFFIXES]
        suffix = _suffix(stems, [path.stem for path in maps])
        if images != labels or suffix:
            maps = [path for path in maps if path.stem.endswith(suffix)]
            return _Labelled(str(Path(folder) / images), str(Path(folder) / labels), suffix, maps)
    message = "labelled pictures are a folder of `images` and, of the same names, `labels` or "
    message += "`masks`; or masks with a suffix beside them"
    accepted = "FOLDER/images/NAME.jpg and FOLDER/labels/NAME.png; or FOLDER/NAME.jpg and "
    accepted += "FOLDER/NAME_mask.png"
    raise user_error(flag, message, value=folder, accepted=accepted)


def _streamed(stream: str, labelled: _Labelled, code: dict[str, str]) -> tuple[list[str], int]:
    """Recipe keys of the stream and its number of pictures; label maps in its folder are none."""
    folder, labels = (Path(each).expanduser().resolve() for each in (stream, labelled.labels))
    keys, apart, suffix = ["kind: folder", f"images: {_text(stream)}"], [], ""
    if labels.is_relative_to(folder) and labelled.images == labelled.labels:
        suffix = labelled.suffix
        keys.append(f"label_suffix: {_text(suffix)}")
    elif labels.is_relative_to(folder):
        apart = [labels]
        keys.append(f"labels: {_text(labelled.labels)}  # are no pictures of it")
        keys += [f"{key}: {value}" for key, value in code.items()]
    return keys, len(image_files(Path(stream).expanduser(), apart, suffix)[0])


def _files(folder: Path, apart: Sequence[Path] = ()) -> list[Path]:
    try:
        return image_files(folder, apart)[0]
    except UserError:
        return []


def _suffix(images: list[str], maps: list[str]) -> str:
    """Most frequent suffix of a map's name after an image's name; empty if the names are equal."""
    known = set(images)
    if not known.isdisjoint(maps) and known != set(maps):
        maps = [name for name in maps if name not in known] or maps
    ends = Counter(
        name[at:]
        for name in maps
        for at in range(1, len(name))
        if name[:at] in known and not name[at].isalnum()
    )
    return ends.most_common(1)[0][0] if ends and max(ends.values()) > 1 else ""


def _label_keys(maps: list[Path]) -> dict[str, str]:
    """Recipe keys of the label code found in the maps; ``check`` reports unreadable maps later."""
    written: set[int] = set()
    painted: set[int] = set()
    for path in maps:
        try:
            written.update(np.unique(label_numbers(path)).tolist())
        except BadFile:
            with suppress(BadFile):
                painted.update(np.unique(label_numbers(path, colours=True)).tolist())
    if painted:
        return _colour_keys(painted)
    classes = sorted(written - {IGNORE})
    if len(written) < 2:
        message = "every pixel of the label maps has the same number: one class cannot be learned"
        raise user_error("--feedback", message, value=str(classes), accepted="two classes or more")
    if len(classes) == 1:  # a binary mask as written by image editors
        return {"classes": "2", "label_values": f"[{classes[0]}, {IGNORE}]"}
    if len(classes) <= classes[-1] // 2:  # such as 0 and 128: most numbers between are unused
        return {"classes": str(len(classes)), "label_values": str(classes)}
    return {"classes": str(1 + min(classes[-1], IGNORE - 1))}


def _colour_keys(painted: set[int]) -> dict[str, str]:
    if not 2 <= len(painted) <= _MOST_COLOURS:
        message = "classes are painted in a few colours: save the maps without loss or smoothing"
        accepted = f"2 to {_MOST_COLOURS} colours"
        raise user_error("--feedback", message, value=f"{len(painted)} colours", accepted=accepted)
    colours = [[n >> 16, n >> 8 & 255, n & 255] for n in sorted(painted)]
    return {"label_colours": str(colours)}


def _label_comment(code: dict[str, str]) -> str:
    if "label_colours" in code:
        return "\n    # A class a colour, in this order; `other_labels: void` allows others."
    if str(IGNORE) in code.get("label_values", ""):
        return f"""
    # They hold two numbers, so that {IGNORE} is taken for a class. If it means "no label" there is
    # one class, and nothing to learn."""
    return f"\n    # {IGNORE} means no label; `void: N` says that N, which is no class, does too."


def _set(labelled: _Labelled, code: dict[str, str], part: str = "") -> list[str]:
    keys = [f"images: {_text(labelled.images)}", f"labels: {_text(labelled.labels)}"]
    keys += [f"label_suffix: {_text(labelled.suffix)}"] * bool(labelled.suffix)
    keys += [f"{key}: {value}" for key, value in code.items()]
    return ["kind: folder", *keys, *([part] * bool(part))]


def _item(lines: list[str]) -> str:
    return "      - " + _indented(lines, 8).lstrip()


def _indented(lines: list[str], spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in lines)


def _text(value: str) -> str:
    """Quote a string so that YAML reads it back unchanged."""
    return json.dumps(value, ensure_ascii=False)
