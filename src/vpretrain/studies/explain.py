"""``explain``: a finished run opened again, and a page of the value of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpretrain.run.modalities import MODALITIES
from vpretrain.run.saved import read_run
from vpretrain.system.files import writable_file


def explain(folder: Path, *, documents: int, out: Path | None = None) -> dict[str, Any]:
    """What the run's data is worth, as one HTML page.

    Args:
        folder: that ``vpretrain train`` wrote.
        documents: how many documents of the stream are looked at, at least 1.
        out: the HTML file, replaced if it is there; None for ``explain.html`` in the run folder.

    Returns:
        What the modality's explainer returns, with ``page`` in it; for language
        ``{page, regret, value: {onehot, designer, bound, ...}, sources: {name: mean value},
        documents, ...}``.

    Raises:
        UserError: the folder is no finished run, its modality has no explanation, or ``out`` can be
            no file.
    """
    recipe = read_run(folder)
    page = out or folder / "explain.html"
    writable_file(page, "an HTML file")
    modality = MODALITIES[recipe.modality]()
    return modality.explain(recipe, folder, documents=documents, out=page)
