"""Folders that are broken: of runs and of comparisons, of models and adapters, and runs whose data
were changed since they began.
"""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.reliability.broken_recipes import NUMBERS, VALUES, leaves, parent
from tests.reliability.broken_rows import GOOD
from tests.reliability.runs import language_recipe
from vpretrain.language import Language
from vpretrain.run.launch import train_one
from vpretrain.studies.compare import compare

TEXTS = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b"null",
    b"NaN",
    b'{"final": {}}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"\xff\xfe\0",
    b"\0" * 1000,
    b"x" * 2_000_000,
    b"\x80\x04]\x94.",
    b"<<: *x",
]
ROWS = "data/stream.jsonl"
SHORT = [
    "arm=token_weights",
    "budget.steps=2",
    "checkpoint.every=1",
    "checkpoint.seconds=0",
    "checkpoint.keep_last=9",
    "evaluate.answer=null",
    "value.settle_steps=0",
    "value.meta_period=1",
    "data.evaluation.test.rows=8",
    "data.batch_size=2",
    "data.feedback.batch_size=4",
    "data.window_tokens=48",
    "data.on_bad_row=skip",
    "threads=1",
]
KEEP = tempfile.TemporaryDirectory()
"""Of what the cases are copies of; gone with the process."""


def recipe_on(folder, *overrides):
    """Of a short run whose stream is in files of ``folder``."""
    rows = {"kind": "jsonl", "path": ROWS, "prompt": "problem", "solution": "solution"}
    source = [{"name": "rows", "rows": rows}]
    keys = [f"data.root={folder}", f"data.stream={json.dumps(source)}"]
    return language_recipe(*SHORT, *keys, *overrides)


@functools.cache
def base(kind):
    """A folder that is whole, of ``run``, ``compare``, ``model`` or ``adapter``."""
    folder = Path(KEEP.name) / kind
    (folder / "data").mkdir(parents=True)
    (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in GOOD["stream"]))
    recipe = recipe_on(folder)
    if kind == "run":
        train_one(recipe, folder / "out", lambda record, fraction: None)
    elif kind == "compare":
        arms = ["onehot", "token_weights"]
        compare(recipe, arms=arms, seeds=1, match="steps", out=folder / "out")
    else:
        whole = base("model") / "out" if kind == "adapter" else None
        lora = [
            "learner.config=null",
            f"learner.model={whole}",
            "learner.lora={r: 2, merge: false}",
        ]
        recipe = recipe_on(folder, *(lora if whole else []))
        Language().build(recipe, Language().load(recipe)).save(folder / "out")
    return folder


def copied(kind, folder):
    """A copy of that folder in ``folder``."""
    place = folder / kind
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base(kind), place, symlinks=True)
    for recipe in place.glob("out/recipe.yaml"):  # the data of the copy are its own
        recipe.write_text(recipe.read_text().replace(str(base(kind)), str(place)))
    return place


FRACTIONS = st.floats(0, 1, exclude_max=True, allow_nan=False)
DAMAGES = st.tuples(
    FRACTIONS,
    st.sampled_from(
        ["remove", "cut", "flip", "zeros", "text", "folder", "loop", "append", "parent"]
        + ["key"] * 6
        + ["weight"] * 3
    ),
    FRACTIONS,
    st.one_of(st.sampled_from(TEXTS), st.binary(max_size=30)),
    VALUES,
)


def damage(folder, how):
    """Does one thing to one file below a folder."""
    which, what, place, text, value = how
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if what == "key":
        files = [path for path in files if path.suffix in (".json", ".jsonl")] or files
    if what == "weight":
        files = [path for path in files if path.suffix == ".safetensors"] or files
    if not files:
        return
    path = files[int(which * len(files))]
    if what == "key" and path.suffix in (".json", ".jsonl"):
        _damage_key(path, place, value)
        return
    if what == "weight" and path.suffix == ".safetensors":
        _damage_weight(path, place)
        return
    content = path.read_bytes()
    at = int(place * len(content))
    if what in ("remove", "folder", "loop"):
        path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "parent":
        shutil.rmtree(path.parent)
    elif what != "remove":
        flipped = content[:at] + bytes([content[at] ^ 4] if content else b"") + content[at + 1 :]
        done = {"cut": content[:at], "flip": flipped, "zeros": bytes(len(content))}
        path.write_bytes(done.get(what, content + text if what == "append" else text))


def _damage_key(path, place, value):
    """Another value for one key; of a file of lines in one of them."""
    lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
    at = int(place * len(lines))
    try:
        tree = json.loads(lines[at]) if lines else {}
    except (ValueError, RecursionError):  # it is damaged already
        return
    keys = [*leaves(tree)]
    if not keys:
        return
    key = keys[int(place * 983 * len(keys)) % len(keys)]
    parent(tree, key)[key[-1]] = value
    lines[at] = json.dumps(tree).encode("utf-8", "surrogatepass")
    path.write_bytes(b"\n".join(lines))


def _damage_weight(path, place):
    """Another number, type, shape or name for one weight, or none."""
    try:
        weights = load_file(path)
    except Exception:  # it is damaged already
        return
    names = sorted(weights)
    if not names:
        return
    name = names[int(place * len(names))]
    weight, number = weights.pop(name), NUMBERS[int(place * 997) % len(NUMBERS)]
    change = int(place * 991) % 5
    if change == 0 and weight.is_floating_point() and weight.numel():
        weight = weight.double()
        weight.view(-1)[0] = float(number)
    elif change == 1:
        weight = weight.to(torch.int64)
    elif change == 2:
        weight = weight.reshape(-1)[:-1].clone()
    elif change == 3:
        name = f"{name}.x"
    if change != 4:
        weights[name] = weight
    save_file(weights, path, {"format": "pt"})


@st.composite
def broken_runs(draw):
    """Which folder, what is done to it, and the command that meets it."""
    kind = draw(st.sampled_from(["run", "run", "compare"]))
    verbs = {
        "run": ["train", "report", "explain", "start", "resume"],
        "compare": ["compare", "report"],
    }
    return kind, draw(st.lists(DAMAGES, min_size=1, max_size=3)), draw(st.sampled_from(verbs[kind]))


@st.composite
def broken_models(draw):
    """Which folder, and what is done to it."""
    kind = draw(st.sampled_from(["model", "model", "adapter"]))
    return kind, draw(st.lists(DAMAGES, min_size=1, max_size=2))


@st.composite
def changed_data(draw):
    """What is done to the data of a run that is half done, and whether changes are accepted."""
    return draw(st.lists(DAMAGES, min_size=1, max_size=2)), draw(st.booleans())
