"""vpretrain: continued pretraining that a small set of verified examples steers (V-pretraining,
arXiv 2601.22108).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpretrain.method.directional import ESTIMATORS
    from vpretrain.method.roles import Designer, Feedback, Learner, Modality, Parts, Score, Task
    from vpretrain.method.step import Guard, SteeredStep
    from vpretrain.method.value import Alignment
    from vpretrain.method.value_estimator import ValueEstimator
    from vpretrain.system.errors import Fault, UserError

__version__ = "0.1.0"

__all__ = [
    "ESTIMATORS",
    "Alignment",
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
    "ValueEstimator",
]

_IN = {
    "method.value_estimator": ("ValueEstimator",),
    "method.roles": ("Designer", "Feedback", "Learner", "Modality", "Parts", "Score", "Task"),
    "method.directional": ("ESTIMATORS",),
    "system.errors": ("Fault", "UserError"),
    "method.step": ("Guard", "SteeredStep"),
    "method.value": ("Alignment",),
}


def __getattr__(name: str) -> Any:
    """Public names on first use, so that the command line can say its help without torch."""
    for module, names in _IN.items():
        if name in names:
            return getattr(import_module(f"vpretrain.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
