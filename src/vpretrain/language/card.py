"""The model card of a saved model: its base model, its steering, and its scores."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, try_to_load_from_cache

from vpretrain.config.arms import Control
from vpretrain.config.recipe import dump
from vpretrain.config.yaml_places import written
from vpretrain.language.data.rows import Row
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.networks import TransferableArm
from vpretrain.run.folder import environment
from vpretrain.run.train import Result

LICENSE_FIELDS = ("license", "license_name", "license_link")


def write_card(
    folder: Path,
    recipe: LanguageRecipe,
    result: Result,
    *,
    location: str | None,
    feedback: Sequence[Row],
) -> None:
    """Writes ``README.md`` in the hub's format: a YAML header, and Markdown in which all text from
    the data is escaped.

    Args:
        folder: folder of the saved model; an existing README.md is replaced.
        recipe: the run's recipe.
        result: the run's scores.
        location: folder or hub id of the base model; None for random weights.
        feedback: the feedback rows, of which the card gives only the number and a hash.
    """
    base = _card_of(location)
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["continued-pretraining", "vpretrain"],
        **{name: base[name] for name in LICENSE_FIELDS if isinstance(base.get(name), str)},
    }
    if location is not None and not Path(location).exists():
        header["base_model"] = location
    description = html.escape(recipe.description, quote=False)
    parts = [
        "# " + escaped(recipe.description),
        f"{_origin(recipe, location)}, {_training(recipe)}.",
        "## How it was trained",
        _bullets(_method(recipe, feedback)),
        "## Measured",
        _table(result),
        f"On the split {escaped(recipe.evaluate.split)}; ± is one standard error over rows, of "
        "each figure alone. One run: a comparison over seeds (`vpretrain compare`) says more.",
        "## Licence",
        _licence(header, location),
        "## Versions",
        _bullets(
            [f"{escaped(name)} {escaped(version or 'unknown')}" for name, version in _versions()]
        ),
        "## Recipe",
        fenced(dump(recipe.model_copy(update={"description": description}))),
    ]
    text = f"---\n{written(header)}---\n\n" + "\n\n".join(parts) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def escaped(text: str) -> str:
    """The text on one line, escaped for Markdown and HTML."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~\-])", r"\\\1", line)


def fenced(text: str) -> str:
    """A YAML code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"


def fingerprint(rows: Sequence[Row]) -> str:
    """SHA-256 of prompts and texts, in order, cut to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for row in rows:
        for text in (row.prompt, row.text):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()[:16]


def _origin(recipe: LanguageRecipe, location: str | None) -> str:
    section = recipe.learner
    if section.model is not None:
        return escaped(section.model)
    return (
        "Random weights" if location is None else "A model made from the stream (`learner.prepare`)"
    )


_SHAPED: Mapping[Control, str] = {
    "none": "the gradient of a feedback set",
    "random": "a random direction at every feedback batch",
    "fixed_direction": "one random direction",
    "reversed": "the gradient of a feedback set with the opposite sign",
    "shuffled": "the gradient of a feedback set with the labels of other items",
}
"""What steers under each control of the feedback."""


def _training(recipe: LanguageRecipe) -> str:
    """What the arm did to the base model."""
    arm, control = ARMS.named(recipe.arm), ARMS.control_of(recipe)
    if arm.trains_on == "feedback":
        return "trained on verified rows themselves, without V-pretraining"
    done = "continued on unlabeled text"
    if ARMS.section_of(recipe).uses_feedback:
        what = "V-pretraining" if control == "none" else "a control of V-pretraining"
        done += (
            f" whose next-token task was shaped by {_SHAPED[control]} ({what}, [arXiv "
            "2601.22108](https://arxiv.org/abs/2601.22108))"
        )
    else:
        done += ", without the gradient of a feedback set"
    return f"{done}, then trained on verified rows" if arm.after else done


def _method(recipe: LanguageRecipe, feedback: Sequence[Row]) -> list[str]:
    section, value, lora = recipe.learner, recipe.value, recipe.learner.lora
    arm, designer = ARMS.named(recipe.arm), ARMS.section_of(recipe)
    names = ", ".join(dict.fromkeys(escaped(row.source) for row in feedback))
    sources = "; ".join(
        f"{escaped(source.name)}, weight {source.weight:g}" for source in recipe.data.stream
    )
    trained = (
        "all parameters" if lora is None else f"LoRA adapters (r {lora.r}, alpha {lora.alpha:g})"
    )
    lines = []
    if designer.uses_feedback or designer.reads_rows or arm.trains_on == "feedback":
        digest = fingerprint(feedback)
        lines.append(f"Feedback: {names}, {len(feedback)} rows, SHA-256 of their text {digest}")
    if arm.trains_on == "stream":
        lines.append(f"Stream: {sources}")
    lines.append(f"Arm: {escaped(recipe.arm)}, {escaped(arm.description)}")
    frozen = isinstance(designer, TransferableArm) and designer.frozen
    if designer.uses_feedback and not frozen:
        lines.append(
            f"Value: alignment {escaped(recipe.alignment)}, {escaped(value.estimator)}, every "
            f"{value.meta_period} steps"
        )
    lines.append(
        f"Trained: {trained}, at a peak rate of {section.learning_rate:g}, seed {recipe.seed}"
    )
    if isinstance(designer, TransferableArm) and designer.init_from is not None:
        how = "as it was" if frozen else "and went on learning"
        lines.append(f"Designer: transferred from {escaped(str(designer.init_from))}, {how}")
    return lines


def _table(result: Result) -> str:
    spent = result.spent
    lines = [
        f"| metric | step 0 | step {spent.steps} ({spent.tokens:,} tokens) | better is | n |",
        "|---|---|---|---|---|",
    ]
    for name, end in result.final.items():
        start = result.step0.get(name)
        first = "not measured" if start is None else f"{start.value:.4f} ± {start.stderr:.4f}"
        better = "higher" if end.higher_is_better else "lower"
        lines.append(
            f"| {escaped(name)} | {first} | {end.value:.4f} ± {end.stderr:.4f} | {better} | "
            f"{end.n:,} |"
        )
    return "\n".join(lines)


def _licence(header: dict[str, Any], location: str | None) -> str:
    if "license" in header:
        return (
            f"{escaped(header['license'])}, as the base model's card says; the stream's licence "
            "may add to it."
        )
    whose = "the base model's and the stream's" if location is not None else "the stream's"
    return f"Not known: fill in `license` in the header of this file from {whose}."


def _versions() -> list[tuple[str, str | None]]:
    here = environment()
    return [*here["versions"].items(), ("python", here["python"])]


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _card_of(location: str | None) -> dict[str, Any]:
    """The header of the base model's card, from its folder or the local cache; empty if there is
    none."""
    if location is None:
        return {}
    path = Path(location) / "README.md"
    if not path.is_file():
        cached = None if Path(location).exists() else try_to_load_from_cache(location, "README.md")
        if not isinstance(cached, str):
            return {}
        path = Path(cached)
    try:
        return dict(ModelCard.load(path, ignore_metadata_errors=True).data.to_dict())
    except Exception:  # a broken card of the base model must not fail a finished run
        return {}
