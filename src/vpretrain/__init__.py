"""vpretrain: continued pretraining that a small set of verified examples steers (V-pretraining,
arXiv 2601.22108).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpretrain.method.directional import ESTIMATORS
    from vpretrain.method.guards import Guard
    from vpretrain.method.meta_step import MetaStep
    from vpretrain.method.roles import Designer, Feedback, Learner, Stream, Task
    from vpretrain.method.step import SteeredStep
    from vpretrain.method.value import Alignment
    from vpretrain.method.value_estimator import ValueEstimator
    from vpretrain.run.parts import Modality, Parts
    from vpretrain.run.scores import Score
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
    "MetaStep",
    "Modality",
    "Parts",
    "Score",
    "SteeredStep",
    "Stream",
    "Task",
    "UserError",
    "ValueEstimator",
]

_IN = {
    "method.directional": ("ESTIMATORS",),
    "method.guards": ("Guard",),
    "method.meta_step": ("MetaStep",),
    "method.roles": ("Designer", "Feedback", "Learner", "Stream", "Task"),
    "method.step": ("SteeredStep",),
    "method.value": ("Alignment",),
    "method.value_estimator": ("ValueEstimator",),
    "run.parts": ("Modality", "Parts"),
    "run.scores": ("Score",),
    "system.errors": ("Fault", "UserError"),
}


def __getattr__(name: str) -> Any:
    """Public names on first use, so that the command line can say its help without torch."""
    for module, names in _IN.items():
        if name in names:
            return getattr(import_module(f"vpretrain.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
