"""Reads YAML with the place of every key, and writes YAML that reads back the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

import yaml

from vpretrain.config.problems import Key, Marks, dotted
from vpretrain.system.errors import Problem, UserError, user_error


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: ``5e-5`` is a number; ``no``, ``010`` and ``1:30``
    are text.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}
    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Limits the number of values: reading a few MB of them would take minutes."""
        self.composed += 1
        if self.composed > _MOST_NODES:
            message = f"this is more than {_MOST_NODES} values"
            raise yaml.composer.ComposerError(None, None, message, self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        number = super().construct_yaml_float(node)
        # ``budget.tokens=1e6`` is meant as an integer; keys for floats accept integers too.
        return int(number) if "." not in node.value and number.is_integer() else number


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or :class:`_Loader` would read as something other than text."""


_TAG = "tag:yaml.org,2002:"
# A few lines of nested anchors can expand beyond any memory.
_MOST_NODES, _MOST_CHARACTERS = 20_000, 10_000_000
MOST_LETTERS = 2**24
"""The largest recipe file, in characters."""
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


class _Places:
    """Collects the place of each key of a document, and duplicate keys.

    Every node is visited, an anchored one once per use.
    """

    def __init__(self, at: Callable[[int], str]) -> None:
        self.at = at
        self.marks: Marks = {}
        self.problems: list[Problem] = []
        self.nodes = self.characters = 0

    def visit(self, node: yaml.Node, key: Key = (), above: tuple[int, ...] = ()) -> None:
        """Records the keys of a node.

        Raises:
            yaml.YAMLError: the content is not allowed.
        """
        self._count(node)
        if id(node) in above:
            _refuse(node, "an anchor contains itself")
        above = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                self.marks[(*key, index)] = self.at(child.start_mark.line + 1)
                self.visit(child, (*key, index), above)
        elif isinstance(node, yaml.MappingNode):
            merged = [child for name, child in node.value if name.tag == _TAG + "merge"]
            for child in merged:  # before the mapping's own keys, which take precedence
                self.visit(child, key, above)
            self._visit_keys(node, key, above)

    def _visit_keys(self, node: yaml.MappingNode, key: Key, above: tuple[int, ...]) -> None:
        first: dict[str, int] = {}
        for name, child in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.tag == _TAG + "merge":
                continue
            if _HALF_PAIR.search(name.value):
                _refuse(name, "this key holds half of a surrogate pair, which is no character")
            name.tag = _TAG + "str"  # every key is text, even if YAML would read it as a number
            inner, line = (*key, name.value), name.start_mark.line + 1
            if name.value in first:
                message = (
                    f"this key was given on line {first[name.value]} already; keep one of the two"
                )
                self.problems.append(Problem(f"{self.at(line)} {dotted(inner)}", "", "", message))
            first[name.value] = line
            self.marks[inner] = self.at(line)
            self.visit(child, inner, above)

    def _count(self, node: yaml.Node) -> None:
        self.nodes += 1
        if self.nodes > _MOST_NODES:
            _refuse(node, f"with anchors written out, this is more than {_MOST_NODES} values")
        if isinstance(node, yaml.ScalarNode):
            self.characters += len(node.value)
            if self.characters > _MOST_CHARACTERS:
                _refuse(node, f"with anchors written out, this is over {_MOST_CHARACTERS} letters")
            if _HALF_PAIR.search(node.value):
                _refuse(node, "this text holds half of a surrogate pair, which is no character")


def _refuse(node: yaml.Node, why: str) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, why, node.start_mark)


def parse(text: str, at: Callable[[int], str]) -> tuple[Any, Marks, list[Problem]]:
    """Returns the value, the place of each key, and problems for duplicate keys.

    ``at(line)`` formats a place.

    Raises:
        UserError: the text is not YAML.
    """
    places = _Places(at)
    if len(text) > MOST_LETTERS:
        message = "this is too long for a recipe; keep data in files that the recipe names"
        raise user_error(at(1), message, accepted=f"up to {MOST_LETTERS:,} letters")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None
        if node is not None:
            places.visit(node)
            # Through JSON, so that uses of an anchor do not share an object that an override of
            # one of them would change.
            value = json.loads(json.dumps(loader.construct_document(node), default=str))
        return value, places.marks, places.problems
    # PyYAML lets the others escape, for a scalar that does not match its tag and for deep nesting.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise _not_yaml(error, text, at) from None


def ending_comment(text: str) -> str:
    """Returns the comment that ends a YAML text; empty if there is none."""
    without_text = yaml.StreamEndToken, yaml.BlockEndToken
    tokens = (token for token in yaml.scan(text) if not isinstance(token, without_text))
    return text[max(token.end_mark.index for token in tokens) :].strip()


def _not_yaml(error: Exception, text: str, at: Callable[[int], str]) -> UserError:
    mark, lines = getattr(error, "problem_mark", None), text.splitlines() or [""]
    line = min(mark.line, len(lines) - 1) if mark else 0
    parts = [getattr(error, part, None) for part in ("context", "problem")]
    reason = ", ".join(filter(None, parts)) or str(error)
    message = (
        f"this is not valid YAML: {reason}; indent with spaces, and quote text that holds : # @ or "
        "begins with *"
    )
    return user_error(at(line + 1), message, value=lines[line].strip() if mark else "")


def written(value: Any) -> str:
    """Returns YAML of a value that :func:`parse` reads back to an equal one."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
