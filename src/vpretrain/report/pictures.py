"""Embeds the pictures of runs and comparisons in the page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from vpretrain.system.html import Markup, joined, tag


def pictures(folders: Sequence[Path]) -> Markup | None:
    """Returns the PNGs of every folder's ``pictures``, embedded in HTML; None if there are none."""
    paths = [path for folder in folders for path in sorted((folder / "pictures").glob("*.png"))]
    return joined(*map(_figure, paths)) if paths else None


def _figure(path: Path) -> Markup:
    source = f"data:image/png;base64,{b64encode(path.read_bytes()).decode('ascii')}"
    name = path.stem
    image = tag("img", src=source, alt=name, style="max-width:100%;height:auto")
    return tag("figure", tag("figcaption", tag("strong", name)), image)
