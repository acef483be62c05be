"""What the learners of pictures have in common beyond the role of a learner."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from vpretrain.method.roles import ContextT, Learner, TaskT
from vpretrain.vision.backbone import Backbone
from vpretrain.vision.data.stream import ImageBatch


class PictureLearner(Learner[ImageBatch, ContextT, TaskT]):
    """A backbone, and what trains or stands beside it and is not released with backbones.

    Attributes:
        kind: ``learner.kind`` in a recipe; its own state is in ``KIND.safetensors``.
        fresh_key: the recipe's section of :attr:`fresh`.
        backbone: what heads and probes read.
    """

    kind: ClassVar[str]
    fresh_key: ClassVar[str]
    backbone: Backbone

    @property
    @abstractmethod
    def fresh(self) -> nn.Module:
        """The head or predictor: warmed up where a backbone comes without it."""

    @abstractmethod
    def baseline_task(self, context: ContextT) -> TaskT:
        """The task of a context without steering."""

    @abstractmethod
    def own_state(self) -> dict[str, Tensor]:
        """All that is not in the backbone's folder, by name; the tensors themselves."""

    def restored(self) -> None:
        """To be called once the tensors of :meth:`own_state` have been written to."""


AnyPictureLearner = PictureLearner[Any, Any]
"""One of them, where it does not matter which."""
