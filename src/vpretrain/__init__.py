"""vpretrain: continued pretraining that a small set of verified examples steers (V-pretraining, arXiv 2601.22108)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpretrain.appraisal import Appraiser
    from vpretrain.contracts import Designer, Feedback, Learner, Modality, Parts, Score, Task
    from vpretrain.directional import ESTIMATORS
    from vpretrain.errors import Fault, UserError
    from vpretrain.step import Guard, SteeredStep
    from vpretrain.value import Alignment

__version__ = "0.1.0"

__all__ = [
    "ESTIMATORS",
    "Alignment",
    "Appraiser",
    "Designer",
    "Fault",
    "Feedback",
    "Guard",
    "Learner",
    "Modality",
    "Parts",
    "Score",
    "SteeredStep",
    "Task",
    "UserError",
]

_IN = {
    "appraisal": ("Appraiser",),
    "contracts": ("Designer", "Feedback", "Learner", "Modality", "Parts", "Score", "Task"),
    "directional": ("ESTIMATORS",),
    "errors": ("Fault", "UserError"),
    "step": ("Guard", "SteeredStep"),
    "value": ("Alignment",),
}


def __getattr__(name: str) -> Any:
    """Public names on first use, so that the command line can say its help without torch."""
    for module, names in _IN.items():
        if name in names:
            return getattr(import_module(f"vpretrain.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
