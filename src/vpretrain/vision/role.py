"""The base class of the vision learners."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from vpretrain.method.roles import ContextT, Learner, TaskT
from vpretrain.vision.backbone import Backbone
from vpretrain.vision.data.stream import ImageBatch


class PictureLearner(Learner[ImageBatch, ContextT, TaskT]):
    """A backbone with the modules of an SSL method that are not released with backbones.

    Attributes:
        kind: ``learner.kind`` in a recipe; :meth:`own_state` is saved in ``KIND.safetensors``.
        fresh_key: recipe section of :attr:`fresh`.
        backbone: the encoder that heads and probes read.
    """

    kind: ClassVar[str]
    fresh_key: ClassVar[str]
    backbone: Backbone

    @property
    @abstractmethod
    def fresh(self) -> nn.Module:
        """The head or predictor, warmed up if the backbone comes without it."""

    @abstractmethod
    def baseline_task(self, context: ContextT) -> TaskT:
        """Return the unsteered task of a context."""

    @abstractmethod
    def own_state(self) -> dict[str, Tensor]:
        """Return the tensors that are not in the backbone's folder, by name, without copying."""

    def restored(self) -> None:
        """Update derived state; called after the tensors of :meth:`own_state` were overwritten."""


AnyPictureLearner = PictureLearner[Any, Any]
"""Any vision learner."""
