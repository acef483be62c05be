"""YAML in, with the place of every key; YAML out, such that it reads back the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

import yaml

from vpretrain.config.problems import Key, Marks, dotted
from vpretrain.system.errors import Problem, user_error


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: ``5e-5`` is a number; ``no``, ``010`` and ``1:30``
    are text.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        number = super().construct_yaml_float(node)
        # So that ``budget.tokens=1e6`` is the whole number it looks like; a number's key takes it
        # too.
        return int(number) if "." not in node.value and number.is_integer() else number


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or :class:`_Loader` would read as something else."""


_TAG = "tag:yaml.org,2002:"
_MOST_NODES = 100_000  # a few lines of nested anchors stand for more than any memory holds
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_FLOAT = r"[-+]?((\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.inf)|\.nan"  # noqa: E501
for _name, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", "~|null|Null|NULL|", [*"~nN", ""]),
    ("int", "[-+]?(0|[1-9][0-9_]*)", [*"-+0123456789"]),
    ("float", _FLOAT, [*"-+.0123456789"]),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
_Dumper.add_implicit_resolver(_TAG + "float", re.compile(rf"(?:{_FLOAT})\Z"), [*"-+.0123456789"])
_Loader.add_constructor(_TAG + "float", _Loader.construct_yaml_float)


def parse(text: str, at: Callable[[int], str]) -> tuple[Any, Marks, list[Problem]]:
    """The value, where each key stands, and the keys given twice; ``at(line)`` is how a place is
    shown.

    Raises:
        UserError: the text is not YAML.
    """
    marks: Marks = {}
    problems: list[Problem] = []

    visited = 0

    def refuse(node: yaml.Node, why: str) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, why, node.start_mark)

    def visit(node: yaml.Node, key: Key, above: tuple[int, ...]) -> None:
        nonlocal visited
        visited += 1
        if id(node) in above:
            refuse(node, "an anchor contains itself")
        if visited > _MOST_NODES:
            refuse(node, f"with anchors written out, this is more than {_MOST_NODES} values")
        if isinstance(node, yaml.ScalarNode) and _HALF_PAIR.search(node.value):
            refuse(node, "this text holds half of a surrogate pair, which is no character")
        above = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                marks[(*key, index)] = at(child.start_mark.line + 1)
                visit(child, (*key, index), above)
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for name, child in node.value:
                if not isinstance(name, yaml.ScalarNode) or name.tag == _TAG + "merge":
                    continue
                if _HALF_PAIR.search(name.value):
                    refuse(name, "this key holds half of a surrogate pair, which is no character")
                name.tag = (
                    _TAG + "str"
                )  # every key is text, whatever YAML would make of it as a value
                inner, line = (*key, name.value), name.start_mark.line + 1
                if name.value in first:
                    message = (
                        f"this key was given on line {first[name.value]} already; keep one "
                        "of the two"
                    )
                    problems.append(Problem(f"{at(line)} {dotted(inner)}", "", "", message))
                first[name.value] = line
                marks[inner] = at(line)
                visit(child, inner, above)

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, marks, problems
        visit(node, (), ())
        # By way of JSON, so that an anchor's uses no longer share one object: an override changes
        # one place.
        return json.loads(json.dumps(loader.construct_document(node), default=str)), marks, problems
    # The others are what PyYAML lets through: a scalar that is not of the tag it was given, and too
    # deep a nesting.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        mark, lines = getattr(error, "problem_mark", None), text.splitlines() or [""]
        line = min(mark.line, len(lines) - 1) if mark else 0
        shown = lines[line].strip() if mark else ""
        said = [getattr(error, part, None) for part in ("context", "problem")]
        reason = ", ".join(filter(None, said)) or str(error)
        message = (
            f"this is not valid YAML: {reason}; indent with spaces, and quote text that "
            "holds : # or @"
        )
        raise user_error(at(line + 1), message, value=shown) from None


def written(value: Any) -> str:
    """YAML of a value that :func:`parse` reads back to an equal one."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
