"""Files of a bare clone, read without a work tree."""

from __future__ import annotations

import subprocess
from pathlib import Path


def listed(repository: Path, folder: str) -> list[tuple[str, str]]:
    """Object name and path of every file below a folder."""
    command = ["git", "-C", str(repository), "ls-tree", "-r", "HEAD", folder]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.split("\t") for line in said.splitlines()]
    return [(about.split()[2], path) for about, path in lines]


def contents(repository: Path, objects: list[str]) -> list[bytes]:
    """The files behind object names."""
    command = ["git", "-C", str(repository), "cat-file", "--batch"]
    asked = "\n".join(objects).encode()
    said = subprocess.run(command, check=True, capture_output=True, input=asked).stdout
    result, at = [], 0
    for _ in objects:
        end = said.index(b"\n", at)
        size = int(said[at:end].split()[2])
        result.append(said[end + 1 : end + 1 + size])
        at = end + size + 2
    return result
