"""Which wing of the package may import which: each knows those above it, none those below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vpretrain

ROOT = Path(vpretrain.__file__).parent
ORDER = (
    ("system",),
    ("method",),
    ("config",),
    ("models",),
    ("run",),
    ("language", "vision"),
    ("studies",),
    ("report", "integrations", "cli"),
)
HEIGHT = {wing: height for height, wings in enumerate(ORDER) for wing in wings}
MODALITIES = ("language", "vision")
CORE = ("system", "method", "config", "models", "run", "studies", "report")
"""These know no modality by name, neither as an import nor in a text that they compare with."""
KNOWN: set[str] = set()
"""Violations that are still there: it only ever shrinks."""


def wing_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.Module) -> Iterator[str]:
    """Modules of this package that are imported anywhere in a file, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def violations() -> Iterator[str]:
    for path in sorted(ROOT.rglob("*.py")):
        wing = wing_of(path)
        if wing not in HEIGHT:
            continue  # the package's own __init__: it offers names of all wings
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = path.relative_to(ROOT).as_posix()
        for module in imported(tree):
            first, *rest = module.split(".")
            other = rest[0] if first == "vpretrain" and rest else ""
            if other not in HEIGHT or other == wing:
                continue
            beside = {wing, other} == set(MODALITIES)
            if HEIGHT[other] > HEIGHT[wing] or beside:
                yield f"{place} imports {other}"
        if wing in CORE:
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and node.value in MODALITIES:
                    yield f"{place} names {node.value}"


def test_each_wing_knows_those_above_it_alone() -> None:
    result = set(violations())
    assert not result - KNOWN, "an import that goes down, or a modality that the core names"
    assert not KNOWN - result, "this violation is gone: take it out of KNOWN"


def test_every_folder_is_a_wing() -> None:
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert folders <= set(HEIGHT)


@pytest.mark.parametrize("wing", HEIGHT)
def test_every_wing_is_a_folder(wing: str) -> None:
    assert (ROOT / wing).is_dir()
