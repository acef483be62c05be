"""Recipes that are broken in every way that a person or an editor breaks a file, and some that they
do not.
"""

import copy
import json
from pathlib import Path

import yaml
from hypothesis import strategies as st

from tests.reliability.runs import language_recipe, vision_recipe
from vpretrain.config import recipe as recipes

REPOSITORY = Path(__file__).parents[2]
TINY = {"tiny-language": language_recipe(), "tiny-vision": vision_recipe()}


def bases():
    """Trees of all recipes there are, by name; what they extend is named by its whole path."""
    result = {name: yaml.safe_load(recipes.dump(recipe)) for name, recipe in TINY.items()}
    files = [*recipes.packaged().values(), *sorted((REPOSITORY / "recipes").rglob("*.yaml"))]
    for path in files:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if (path.parent / str(tree.get("extends"))).is_file():
            tree["extends"] = str(path.parent / tree["extends"])
        result[path.stem] = tree
    return result


BASES = bases()
NUMBERS = [
    0,
    -1,
    1,
    2,
    7,
    0.5,
    -0.5,
    1e-300,
    1e308,
    2**31,
    2**63,
    10**30,
    -(10**30),
    float("nan"),
    float("inf"),
]
TEXTS = [
    "",
    " ",
    "x",
    "onehot",
    "no/such/name",
    "..",
    "/",
    "~",
    "~nobody-there",
    "loop",
    "dir",
    "pipe",
    "\0",
    "a\0b",
    "\ud800",
    "ä\u2028",
    "x" * 5000,
    "*",
    "**/[",
    "[",
    "(",
    "{x}",
    "{",
    "1e5",
    "null",
    "http://localhost:1/x",
    "../" * 40 + "etc/passwd",
    "/dev/zero",
    "/dev/null",
    "/proc/self/mem",
]
VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, [], {}, [None], {"": None}, {"kind": "nope"}, {"a": {"b": [1]}}, [[[]]]]
    ),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), st.integers(), max_size=3),
)
LAUGHS = "".join(
    f"l{i}: &l{i} [{', '.join([f'*l{i - 1}' if i else '1'] * 9)}]\n" for i in range(12)
)
SNIPPETS = [
    "\t",
    "\ttab: 1",
    "a: &a [*a]",
    "a: &a {b: *a}",
    "<<: *nowhere",
    "<<: 1",
    "<<: [1]",
    "x: !!python/object/apply:os.abort []",
    "x: !!python/name:os.system",
    "x: !!binary 'no base64'",
    "x: !!int ''",
    "x: !!float x",
    "x: !!timestamp x",
    "x: !!bool maybe",
    "x: !!set {a, b}",
    "x: !!omap [a: 1]",
    "x: !!pairs [1]",
    "? [a, b]\n: c",
    "? {a: 1}\n: c",
    "---",
    "...",
    "%YAML 9.9",
    "[" * 3000,
    "{a: " * 2000,
    "- " * 2000,
    "x: 2001-01-01",
    "x: 0b",
    "x: +_",
    "x: 1__0",
    "x: ._",
    "x: 1e999",
    "x: 1" + "0" * 5000,
    "~: 1",
    "1: 1",
    "true: 1",
    "x: |\n y",
    "'",
    '"',
    '"\\ud800": 1',
    'x: "\\0"',
    ": ",
    "@",
    "`",
    "!",
    "!x y",
    "*",
    "&",
    LAUGHS,
    "seed: 1",
    "budget: 1",
    "extends: loop",
    "extends: dir",
    "extends: .",
    "extends: [x]",
    "extends: tiny.yaml",
    "extends: demo-language",
    "data: {}",
]


def leaves(tree, at=()):
    """Every place in a tree, sections too."""
    pairs = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for name, item in pairs:
        yield (*at, name)
        yield from leaves(item, (*at, name))


def parent(tree, key):
    for part in key[:-1]:
        tree = tree[part]
    return tree


@st.composite
def broken_trees(draw):
    """A recipe with one to three of its values replaced, taken out, misspelt, or buried."""
    name = draw(st.sampled_from([*TINY, *TINY, *TINY, *BASES]))
    tree = json.loads(json.dumps(BASES[name]))
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from([*leaves(tree)] or [("x",)]))
        there = parent(tree, key)
        do = draw(st.sampled_from(["replace"] * 4 + ["scale"] * 5 + ["remove", "misspell", "bury"]))
        if do == "remove":
            del there[key[-1]]
        elif do == "misspell" and isinstance(there, dict):
            there[
                draw(st.sampled_from(["", "x", f"{key[-1]}s", str(key[-1])[1:], "\0", "a.b", "ä"]))
            ] = there.pop(key[-1])
        elif do == "bury":
            for depth in range(draw(st.sampled_from([1, 5, 80]))):
                there[key[-1]] = [there[key[-1]]] if depth % 2 else {"x": there[key[-1]]}
        elif do == "scale":
            numbers = [
                key for key in leaves(tree) if type(parent(tree, key)[key[-1]]) in (int, float)
            ]
            if numbers:
                key = draw(st.sampled_from(numbers))
                parent(tree, key)[key[-1]] *= draw(st.sampled_from([0, -1, 0.5, 2, 3, 1000, 10**9]))
        else:
            there[key[-1]] = copy.deepcopy(draw(VALUES))
        if not tree:
            break
    return name, tree


def broken_text(draw, text):
    """The bytes of a file with one thing done to them."""
    lines = text.splitlines(keepends=True) or [b""]
    line, place = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, max(0, len(text) - 1)))
    before, after = text[:place], text[place:]
    snippet = draw(st.sampled_from(SNIPPETS)).encode() + b"\n"
    return draw(
        st.sampled_from(
            [
                text.replace(b"\n", b"\r\n"),
                b"\xef\xbb\xbf" + text,
                text.decode("utf-8", "replace").encode("utf-16"),
                before,
                before + after[1:],
                before + b"\xff" + after,
                before + b"\0" + after,
                before + b"\t" + after,
                b"",
                text + lines[line],
                b"".join(lines[:line] + lines[line + 1 :]),
                text + draw(st.binary(max_size=20)),
                text + snippet,
                text + snippet,
                b"".join([*lines[:line], snippet, *lines[line:]]),
                b"".join([*lines[:line], snippet, *lines[line:]]),
            ]
        )
    )


@st.composite
def broken_recipes(draw):
    """What is named as the recipe, bytes of ``tiny.yaml``, overrides, and whether data and model
    are tiny.
    """
    name, tree = draw(broken_trees())
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=draw(st.booleans())).encode(
        "utf-8", "surrogatepass"
    )
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 1, 2]))):
        text = broken_text(draw, text)
    overrides = []
    for _ in range(draw(st.sampled_from([0, 0, 0, 1]))):
        key = ".".join(map(str, draw(st.sampled_from([*leaves(BASES[name])]))))
        value = draw(st.one_of(st.sampled_from(SNIPPETS), VALUES.map(str)))
        overrides.append(
            draw(
                st.sampled_from(
                    [f"{key}={value}", f"{key}.x={value}", f"{key}.9=1", key, "=", f".{key}=1"]
                )
            )
        )
    others = ["dir", "loop", "pipe", "", "x" * 5000, "a\0b", "/dev/zero", "~nobody-there"]
    return draw(st.sampled_from(["tiny.yaml"] * 30 + others)), text, overrides, name in TINY
