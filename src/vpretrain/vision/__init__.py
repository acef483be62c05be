"""The vision modality: DINO and I-JEPA with learned views, learned targets and weights."""

from importlib.util import find_spec

from vpretrain.system.errors import user_error

for library in ("kornia", "torchmetrics", "sklearn"):
    if find_spec(library) is None:
        raise user_error(
            "modality",
            f"vision needs {library}, which is not installed; install the extra",
            value="vision",
            accepted="pip install 'vpretrain[vision]'",
        )

from vpretrain.vision.modality import Vision  # noqa: E402

__all__ = ["Vision"]
