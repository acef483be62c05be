"""Saved results in, one self-contained HTML page out. Nothing in here knows a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vpretrain.report.drawing import write_plots
from vpretrain.report.figures import figures
from vpretrain.report.folders import read
from vpretrain.report.page import page
from vpretrain.system.errors import user_error
from vpretrain.system.files import write_text

__all__ = ["write_report"]


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Writes the page, and beside it its plots as SVG and PNG, to ``plots/`` (``NAME-plots/`` for a
    page of another name than ``report.html``).

    The same results give the same page, byte for byte.

    Args:
        folders: that ``compare`` or ``train`` wrote, finished or not; all of one recipe. Each
            comparison is a section, and run folders share one.
        out: the HTML file; replaced if it is there.

    Returns:
        ``out``.

    Raises:
        UserError: results are missing, damaged or of different recipes (nothing is written then),
            or ``out`` can be no file.
    """
    if out.is_dir():
        raise user_error(
            "--out", "this is a folder; name a file in it", value=str(out), accepted="an HTML file"
        )
    if blocked := [str(place) for place in out.parents if place.exists() and not place.is_dir()]:
        raise user_error(
            "--out", f"{blocked[0]} is a file; name a place in a folder", value=str(out)
        )
    sections = read(folders)
    found = [
        figures(section, f"{number}-" if len(sections) > 1 else "")
        for number, section in enumerate(sections, 1)
    ]
    text = page(sections, found)
    write_text(out, text)
    write_plots(
        [each for group in found for kind in group.values() for each in kind],
        sections,
        out.parent / ("plots" if out.stem == "report" else f"{out.stem}-plots"),
    )
    return out
