"""vpretrain: continued pretraining that a small set of verified examples steers (V-pretraining, arXiv 2601.22108)."""

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
