"""Small things that stand for much, and lines that are longer than any row: each is refused within
a second or two, or read in bounded memory.
"""

import gzip
import json
import shutil
import struct

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tests.reliability.broken_folders import ROWS, copied, recipe_on
from vpretrain.config import recipe as recipes
from vpretrain.language import Language
from vpretrain.language.data import raw_rows
from vpretrain.report.folders import read
from vpretrain.run.launch import train_one
from vpretrain.run.modalities import SCHEMAS
from vpretrain.studies.compare import compare
from vpretrain.system.errors import UserError

MEBIBYTE = 2**20
COUNTS = st.sampled_from([1_001, 10**6, 10**9, 2**31, 2**63, 10**30])
DEPTHS = st.sampled_from([3, 12, 300, 5_000])
MEBIBYTES = st.sampled_from([1, 17, 100])
KEYS = [
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "head_dim",
    "decoder_layers",
    "num_experts",
    "num_blocks",
    "depths",
]


def yaml_text(kind, depth):
    """A recipe of few bytes or of many values."""
    if kind == "merges":
        lines = [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, depth)]
        return "\n".join(["a0: &a0 {k: 1}", *lines])
    if kind == "aliases":
        lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
        return "\n".join(["a0: &a0 [1]", *lines])
    if kind == "chain":
        lines = [f"a{n}: &a{n} {{<<: *a{n - 1}, k{n}: 1}}" for n in range(1, depth)]
        return "\n".join(["a0: &a0 {k: 1}", *lines])
    if kind == "values":
        return "x: [" + "1, " * 1000 * depth + "]"
    return "x: " + "[" * depth + "]" * depth


def line(kind, mebibytes):
    """A row of so many MiB."""
    size = mebibytes * MEBIBYTE
    if kind == "deep":
        return b"[" * size
    if kind == "keys":
        some = b"".join(b'"%d":1,' % n for n in range(10_000))
        return b"{" + some * (size // len(some)) + b'"x":1}'
    if kind == "numbers":
        return b"[" + b"1," * (size // 2) + b"1]"
    if kind == "digits":
        return b'{"problem": ' + b"1" * size + b"}"
    return b'{"problem": "' + b"x" * size + b'", "solution": "1"}'


@st.composite
def bombs(draw):
    """A name and its parameters, for :func:`meet`."""
    return draw(
        st.one_of(
            st.tuples(
                st.just("yaml"),
                st.sampled_from(["merges", "aliases", "chain", "values", "deep"]),
                DEPTHS,
            ),
            st.tuples(st.just("config"), st.sampled_from(KEYS), COUNTS),
            st.tuples(st.just("adapters"), st.integers(1, 3), st.booleans()),
            st.tuples(st.just("seeds"), COUNTS, st.just(None)),
            st.tuples(
                st.just("recipe"),
                st.sampled_from(["threads", "data.batch_size", "data.feedback.batches", "seed"]),
                COUNTS,
            ),
            st.tuples(
                st.sampled_from(["rows", "run", "report"]),
                st.sampled_from(["text", "deep", "keys", "numbers", "digits"]),
                MEBIBYTES,
            ),
            st.tuples(
                st.sampled_from(["x.jsonl", "x.jsonl.gz", "x.json", "x.csv", "x.txt", "x.parquet"]),
                st.sampled_from(["text", "deep", "keys", "numbers", "digits"]),
                MEBIBYTES,
            ),
            st.tuples(st.just("header"), COUNTS, st.just(None)),
        )
    )


def meet(folder, case):
    """What reads the thing, as a call without arguments."""
    name, what, count = case
    if name.startswith("x."):
        return _file(folder / name, line(what, count))
    return _OTHERS[name](folder, what, count)


def _file(path, row):
    content = b"[" + row + b"]" if path.suffix == ".json" else row
    if path.suffix == ".csv":
        content = b'a,b\n"' + row.replace(b'"', b"") + b'",1\n'
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": [row.decode()] * 3}), path)
    else:
        path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return lambda: sum(1 for _ in raw_rows.lines(path))


def _yaml(folder, kind, depth):
    (folder / "bomb.yaml").write_text(yaml_text(kind, depth))
    return lambda: recipes.load("bomb.yaml", schemas=SCHEMAS)


def _config(folder, key, count):
    path = copied("model", folder) / "out" / "config.json"
    value = [count] if key == "depths" else count
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    keys = ["learner.config=null", f"learner.model={path.parent}"]
    return lambda: _checked(recipe_on(folder / "model", *keys))


def _header(folder, size, _):
    path = copied("model", folder) / "out" / "model.safetensors"
    path.write_bytes(struct.pack("<Q", min(size, 2**64 - 1)) + path.read_bytes()[8:])
    keys = ["learner.config=null", f"learner.model={path.parent}"]
    return lambda: _checked(recipe_on(folder / "model", *keys))


def _adapters(folder, length, with_model):
    place = copied("adapter", folder)
    places = [place / f"a{number}" for number in range(length)]
    for number, each in enumerate(places):
        shutil.copytree(place / "out", each)
        config = json.loads((each / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(places[(number + 1) % length])
        (each / "adapter_config.json").write_text(json.dumps(config))
    keys = ["learner.config=null", f"learner.model={places[0]}"]
    return lambda: _checked(recipe_on(place, *keys))


def _seeds(folder, count, _):
    recipe = recipe_on(copied("model", folder))
    arms = ["onehot"]
    count = max(count, 10**6)
    return lambda: compare(recipe, arms=arms, seeds=count, match="steps", out=folder / "many")


def _recipe(folder, key, count):
    place = copied("model", folder)
    return lambda: _checked(recipe_on(place, f"{key}={count}"))


def _rows(folder, kind, mebibytes):
    place = copied("model", folder)
    with (place / ROWS).open("ab") as file:
        file.write(line(kind, mebibytes) + b"\n")
    return lambda: Language().load(recipe_on(place))


def _run(folder, kind, mebibytes):
    """A record of a run that is gone on with."""
    out = copied("run", folder) / "out"
    (out / "result.json").write_bytes(line(kind, mebibytes))
    content = (out / "metrics.jsonl").read_bytes()
    (out / "metrics.jsonl").write_bytes(line(kind, mebibytes) + b"\n" + content)
    return lambda: train_one(recipe_on(out.parent), out, lambda record, fraction: None)


def _report(folder, kind, mebibytes):
    out = copied("run", folder) / "out"
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(line(kind, mebibytes) + b"\n{}\n")
    return lambda: read([out])


def _checked(recipe):
    if problems := Language().check(recipe).problems:
        raise UserError(*problems)


_OTHERS = {
    "yaml": _yaml,
    "config": _config,
    "header": _header,
    "adapters": _adapters,
    "seeds": _seeds,
    "recipe": _recipe,
    "rows": _rows,
    "run": _run,
    "report": _report,
}
