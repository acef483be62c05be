"""The studies of docs/results.md: what is compared, from which starts, with which seeds."""

import sys

from studies.study import STUDIES, Start, Study
from vpretrain.config.kinds import discover

__all__ = ["STUDIES", "Start", "Study"]

discover(sys.modules[__name__])  # what each file declares
