"""``init``: a first recipe of one's own, from a model and three places that rows come from.

That of pictures is in :mod:`vpretrain.vision.init_recipe`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import torch

from vpretrain.language.data.raw_rows import lines
from vpretrain.run.resources import available_memory_bytes
from vpretrain.system.errors import UserError, user_error
from vpretrain.system.tables import ENDINGS, kind_by_name, parsed

ROWS_A_STEP = 16
"""Rows of the stream in a learner step, as batches of ``batch_size`` that are accumulated."""
WINDOW_TOKENS = 512
CANDIDATES = 64
_TEXT = ("text", "content", "body")
_FILES_LOOKED_AT = 10_000
_PAIRS = (
    ("question", "answer"),
    ("problem", "solution"),
    ("prompt", "completion"),
    ("prompt", "solution"),
    ("instruction", "output"),
    ("query", "response"),
    ("prompt", "chosen"),
    ("input", "output"),
)


@dataclass(frozen=True)
class Place:
    """Where rows come from.

    Args:
        flag: of the command, for messages.
        path: a file, a pattern, a folder, or the id of a data set on the hub.
        columns: one of raw text, or those of prompt and solution; none: they follow from the
            first row.
        part: keys that say which of the rows are taken.
    """

    flag: str
    path: str
    columns: tuple[str, ...] = ()
    part: tuple[tuple[str, int], ...] = ()

    def files(self) -> list[Path]:
        """The local files that it names; none of a data set on the hub.

        Raises:
            UserError: there are none, and it can be no id either.
        """
        path = Path(self.path).expanduser()
        if path.is_dir():
            taken, _ = self._of_folder(path)
            if not taken:
                accepted = "a folder with files that end in " + ", ".join(ENDINGS)
                message = "this folder holds no rows"
                raise user_error(self.flag, message, value=self.path, accepted=accepted)
            return taken
        if path.is_file():
            return [path]
        folder, pattern = (path.parent, path.name) if path.is_absolute() else (Path(), self.path)
        files = sorted(folder.glob(pattern))
        if not files and (kind_by_name(path) or path.is_absolute() or len(path.parts) != 2):
            raise user_error(
                self.flag,
                "there is no such file",
                value=self.path,
                accepted="a file, a pattern such as 'notes/*.txt', a folder, or the id of a data "
                "set on the hub",
            )
        return files

    def left_out(self) -> str:
        """The files of a folder that are not read, counted by how they end; empty for none."""
        path = Path(self.path).expanduser()
        others = self._of_folder(path)[1] if path.is_dir() else []
        counts = Counter(file.suffix or "no ending" for file in others).most_common()
        return ", ".join(f"{count} x {ending}" for ending, count in counts)

    @staticmethod
    def _of_folder(folder: Path) -> tuple[list[Path], list[Path]]:
        """The files in and below it of the kind that most are of, and the others."""
        if (folder / "state.json").is_file():  # of `save_to_disk`
            return sorted(folder.glob("*.arrow")), []
        files = [
            file
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not any(p[0] == "." for p in file.relative_to(folder).parts)
        ]
        kinds = Counter(kind for file in files if (kind := kind_by_name(file)))
        most = kinds.most_common(1)[0][0] if kinds else None
        taken = [file for file in files if most and kind_by_name(file) == most]
        return taken, [file for file in files if file not in set(taken)]

    def section(self, *, solutions: bool) -> dict[str, Any]:
        """The recipe's section of rows.

        Args:
            solutions: whether prompts with solutions are wanted, and not raw text.

        Raises:
            UserError: no file, one of another kind, or columns of unknown names.
        """
        files = self.files()
        kind = kind_by_name(files[0]) if files else "hub"
        if kind is None or (kind == "text" and solutions):
            accepted = "JSON Lines, CSV, parquet or Arrow" + (
                "" if solutions else ", or text (.txt)"
            )
            message = "rows are not read from files of this kind"
            raise user_error(self.flag, message, value=self.path, accepted=accepted)
        path = self.path
        if (folder := Path(path).expanduser()).is_dir() and not (folder / "state.json").is_file():
            ends = sorted({_ending(file) for file in files})
            names = "*" + (ends[0] if len(ends) == 1 else f".{{{','.join(e[1:] for e in ends)}}}")
            path = str(Path(path) / ("**" if {f.parent for f in files} != {folder} else "") / names)
        if kind == "text":
            return {"kind": kind, "path": path}
        by_name = self._named(files, solutions)
        return {"kind": kind, "path": path, **by_name, **dict(self.part)}

    def _named(self, files: Sequence[Path], solutions: bool) -> dict[str, str]:
        """The keys that name the columns: those of the flag, or of the first row."""
        if self.columns:
            names = ("text",) if len(self.columns) == 1 else ("prompt", "solution")
            return dict(zip(names, self.columns, strict=True))
        row = first_row(files[0]) if files else {}
        known = [pair for pair in _PAIRS if set(pair) <= set(row)]
        pairs = [dict(zip(("prompt", "solution"), pair, strict=True)) for pair in known]
        texts = [{"text": name} for name in _TEXT if isinstance(row.get(name), str)]
        options = pairs if solutions else texts + pairs
        if "messages" in row:
            options.append({"format": "chat"})
        if "input_ids" in row and (not solutions or "labels" in row):
            labels = {"labels": "labels"} if "labels" in row else {}
            options.append({"tokens": "input_ids", **labels})
        if not options:
            wanted = "PROMPT,SOLUTION" if solutions else "TEXT or PROMPT,SOLUTION"
            raise user_error(
                f"{self.flag}-columns",
                f"no columns of {self.path} have names that are known here; name them",
                value=", ".join(row),
                accepted=f"{wanted}, as in {self.flag}-columns question,answer",
            )
        # Data sets of preferences have lists of messages in these columns.
        turns = isinstance(row.get(options[0].get("solution", "")), list)
        return options[0] | ({"format": "chat"} if turns else {})


def _ending(file: Path) -> str:
    packed = file.suffix in (".gz", ".zst")
    return Path(file.stem).suffix + file.suffix if packed else file.suffix


def holds_pictures(place: str) -> bool:
    """Whether it is a folder of images, in it or below, and of nothing that rows of text are read
    from."""
    of_files = (names for _, _, names in os.walk(Path(place).expanduser()))
    names = list(islice(chain.from_iterable(of_files), _FILES_LOOKED_AT))
    kinds = {(guess_type(name)[0] or "").partition("/")[0] for name in names}
    return "image" in kinds and not any(kind_by_name(Path(name)) for name in names)


def first_row(path: Path) -> dict[str, Any]:
    """The first row of a table; empty where it is not read as one (``check`` says what is wrong
    with it)."""
    try:
        _, line = next(lines(path), (0, b""))
    except UserError:
        return {}
    row = parsed(line, str(path))
    return row if isinstance(row, dict) else {}


def count_rows(files: Sequence[Path]) -> int:
    """Rows of local tables; ``UserError`` if one cannot be read."""
    return sum(1 for path in files for _ in lines(path))


def halved(feedback: Place) -> tuple[Place, Place]:
    """Feedback and held-out rows from one place: of every four rows the last is held out.

    Raises:
        UserError: the rows cannot be counted, or are too few.
    """
    files = feedback.files()
    if not files:
        message = "rows that success is measured on are needed beside the feedback; name them"
        raise user_error(
            "--evaluation", message, accepted="a file of rows that are not in the feedback"
        )
    rows = count_rows(files)
    steering = rows * 3 // 4
    if rows - steering < 2 or steering < 4:
        message = "these rows are too few to steer with some and measure on the others"
        raise user_error(
            feedback.flag, message, value=f"{rows} rows of {feedback.path}", accepted="8 or more"
        )
    return replace(feedback, part=(("rows", steering),)), replace(
        feedback, part=(("skip_rows", steering),)
    )


@dataclass(frozen=True)
class Fit:
    """What a learner step is made of, so that it fits into memory.

    Args:
        batch_size: rows at a time.
        accumulate: how often, for one step.
        checkpointing: whether blocks run again in the backward pass, and keep nothing for it.
        description: the estimate, in words.
    """

    batch_size: int
    accumulate: int
    checkpointing: bool
    description: str


def fit(model: Any, window: int, available: int | None) -> Fit:
    """The largest batch, a power of two up to :data:`ROWS_A_STEP`, that fits beside weights,
    gradients and AdamW's moments.

    Estimated in float32: 16 bytes a parameter; and for every token of a row
    ``4 (12 width + 4 inner)`` bytes a block and ``12`` bytes a word of the vocabulary (logits,
    their softmax, its gradient), or, with activation checkpointing, ``4 width`` a block and one
    block whole. Half of what is left is used: feedback, designer and fragments take theirs.

    Args:
        model: on the meta device; only sizes are read.
        window: tokens of a row.
        available: bytes; None where the machine does not say, which leaves the largest batch.
    """
    config = model.config
    width, depth, inner, vocabulary = (
        int(getattr(config, name, None) or default)
        for name, default in (
            ("hidden_size", 768),
            ("num_hidden_layers", 12),
            ("intermediate_size", 0),
            ("vocab_size", 0),
        )
    )
    fixed = 16 * sum(p.numel() for p in model.parameters())
    block = 4 * (12 * width + 4 * (inner or 4 * width))
    head = 12 * vocabulary
    kept, again = window * (depth * block + head), window * (depth * 4 * width + block + head)
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.3g} M parameters"
    if available is None:
        return Fit(
            ROWS_A_STEP, 1, False, f"{size}; this machine does not say how much memory it has"
        )
    left = (available - fixed) / 2
    checkpointing = left < kept
    row = again if checkpointing else kept
    fits = ROWS_A_STEP
    while fits > 1 and left < fits * row:
        fits //= 2
    description = (
        f"{size} take about {_mib(fixed)} and a row {_mib(row)}, of {_mib(available)} that are free"
    )
    return Fit(fits, ROWS_A_STEP // fits, checkpointing and left < fits * kept, description)


def memory_bytes() -> int | None:
    """What the learner could use: of the accelerator where there is one."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_memory_bytes()


RECIPE = """\
# vpretrain compare {out} --arms onehot,token_weights,fixed_random_direction
#
# Written by `vpretrain init`. `vpretrain check {out}` says what is wrong with it, `vpretrain train
# {out}` makes one run. Every key with its value stands in `recipe.yaml` in the folder of a run;
# docs/guide.md says what matters most.
modality: language
description: {description}
arm: token_weights  # tokens weighted by their value to the feedback; others: docs/choosing.md
budget: {{steps: 500}}  # learner steps; or tokens, seconds, flops: the first used up ends the run
data:
  window_tokens: {window}  # length of a row of the stream; documents are packed into it
  batch_size: {fit.batch_size}  # {fit.description}
  stream:  # what the learner trains on; several sources are mixed by their `weight`
    - {{name: {source}, rows: {stream}}}
  feedback:  # steers by its gradient, every value.meta_period steps; never trained on
    rows: {feedback}
    batch_size: {feedback_rows}
    batches: 2  # their agreement says how far the feedback can be trusted
  evaluation:  # what success is measured on; no row of it may be in the stream or the feedback
    test: {evaluation}
learner:
  model: {model}
  learning_rate: 1.5e-5
  accumulate: {fit.accumulate}  # batches in a step, which is one of {step}
  aligned_blocks: 2  # S: the last blocks, in which gradients are compared
  # dtype: bfloat16  # on a GPU
  # lora: {{r: 8, alpha: 16}}  # adapters alone train
designer:
  kind: token_weights
  tilt: 0.4  # weight per deviation of a token's value; up to 1.5 on a stream full of errors
designers:  # keys of other arms, for `compare --arms`
  closed_form: {{candidates: {candidates}}}
  ascent: {{candidates: {candidates}}}
  field: {{candidates: {candidates}}}
value:
  alignment: optimizer_aware
  estimator: central_difference
  meta_period: 8
  memory: 0.9
  settle_steps: 16
evaluate: {{split: test, every: 0}}  # `answer: 'REGEX'` scores generated solutions too
checkpoint: {{seconds: 600}}  # a killed run goes on from there when the same command is given again
"""
"""What :func:`recipe_of` fills in."""


def recipe_of(
    model: str,
    stream: Place,
    feedback: Place,
    evaluation: Place,
    *,
    out: Path,
    shapes: Callable[[str], Any],
    available: int | None,
) -> str:
    """The text of a commented recipe.

    Args:
        model: a folder, a hub id, or a packaged checkpoint.
        stream: unlabeled rows.
        feedback: verified rows.
        evaluation: verified rows that are measured on.
        out: the file that it will be.
        shapes: the model of a name, on the meta device.
        available: bytes of memory.

    Raises:
        UserError: a place or the model cannot be read.
    """
    places = {
        "stream": _flow(stream.section(solutions=False)),
        "feedback": _flow(feedback.section(solutions=True)),
        "evaluation": _flow(evaluation.section(solutions=True)),
    }
    skeleton = shapes(model)
    config = skeleton.config
    window = min(WINDOW_TOKENS, getattr(config, "max_position_embeddings", None) or WINDOW_TOKENS)
    sizes = fit(skeleton, window, available)
    rows = dict(feedback.part).get("rows") or (
        count_rows(files) if (files := feedback.files()) else 64
    )
    step = f"{sizes.batch_size * sizes.accumulate} rows of {window} tokens"
    if sizes.checkpointing:
        step += "\n  activation_checkpointing: true  # less memory, more time"
    return RECIPE.format(
        out=out,
        description=_text(f"{Path(stream.path).stem} steered by {Path(feedback.path).stem}"),
        window=window,
        fit=sizes,
        source=_text(_name(stream.path)),
        **places,
        feedback_rows=max(1, min(32, rows // 2)),
        model=_text(model),
        step=step,
        candidates=min(CANDIDATES, int(config.vocab_size)),
    )


def _name(path: str) -> str:
    return Path(path).stem.strip("*.") or Path(path).parent.name or "stream"


def _text(value: str) -> str:
    """A string as YAML reads it back, whatever is in it."""
    return json.dumps(value, ensure_ascii=False)


def _flow(section: Mapping[str, Any]) -> str:
    pairs = (
        f"{key}: {_text(value) if isinstance(value, str) else value}"
        for key, value in section.items()
    )
    return "{" + ", ".join(pairs) + "}"


def _mib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
