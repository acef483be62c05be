"""The studies of docs/results.md: what is compared, from which starts, with which seeds."""

from studies import dev, images, paper_designer, real_text, selection, word_problems  # noqa: F401
from studies.study import STUDIES, Start, Study

__all__ = ["STUDIES", "Start", "Study"]
