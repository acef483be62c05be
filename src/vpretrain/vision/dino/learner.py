"""The DINO learner: a student that matches an EMA teacher's targets from other views.

Shapes: G global and L local views, V = G + L in all, B images, P prototypes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from vpretrain.config.section import Section
from vpretrain.method import vectors
from vpretrain.method.roles import Objective
from vpretrain.system.errors import user_error
from vpretrain.vision.backbone import Backbone, EncoderSuffix, Entry
from vpretrain.vision.data.crops import Crops
from vpretrain.vision.data.stream import ImageBatch
from vpretrain.vision.dino.loss import (
    DinoHead,
    RunningCenter,
    balanced_targets,
    dino_loss,
    teacher_targets,
)
from vpretrain.vision.fields import Fraction, Momentum
from vpretrain.vision.role import PictureLearner
from vpretrain.vision.steering.views import BaselineViews, ViewTask, blur


class DinoSettings(Section):
    """Settings of DINO's loss and teacher; the defaults are the paper's.

    With ``teacher_views="plain"`` the teacher sees the views before the blur, and the student has
    to predict what the blur removed. In both cases the targets are detached, so that the gradient
    of the value with respect to a mask comes from the student alone, as in the paper. Local views
    carry no gradient to a mask: ``dot`` and ``optimizer_aware`` need them only for the level of the
    value, ``cosine`` and ``lower_bound`` for the whole ``g_pre``."""

    student_temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.04
    center_momentum: Momentum = 0.9
    """EMA momentum of the centre."""
    centering: Literal["mean", "sinkhorn"] = "mean"
    """How collapse is prevented: ``mean`` subtracts the running mean of the teacher's scores
    (DINO), ``sinkhorn`` balances each batch's targets over prototypes (Sinkhorn-Knopp; DINOv2 and
    DINOv3). With ``accumulate`` the mean follows a step's last batch, and each batch is balanced
    separately."""
    teacher_momentum: Fraction = 0.996
    """EMA momentum of the teacher (I-JEPA: target encoder) at the start; rises to 1."""
    teacher_views: Literal["learned", "plain"] = "learned"
    """Global views that the teacher sees: ``learned`` as in the paper (eq. 50), or ``plain``."""
    local_views_in_value: bool = True
    """Whether the value of masks includes pairs with local views. Without them a meta step costs
    less, and nonlinear alignments (cosine, lower bound) see a different g_pre."""


class Student(nn.Module):
    """All trained modules: the backbone, and the head on its pooled feature."""

    def __init__(self, backbone: nn.Module, head: DinoHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


class Teacher:
    """The exponential moving average of the student, without gradients and in evaluation mode.

    The average is kept in float32 or wider; in bfloat16, 0.004 of a small difference would be
    rounded away."""

    def __init__(self, student: Student, autocast: torch.dtype | None = None) -> None:
        self.model = copy.deepcopy(student).requires_grad_(False).eval()
        self.backbone = Backbone(self.model.backbone, autocast=autocast)
        self.average = {name: vectors.wide(p.data) for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def logits(self, views: Tensor) -> Tensor:
        """Return detached scores ``[G, B, P]`` of ``[G, B, 3, H, W]`` views."""
        pooled = self.backbone.features(views.flatten(0, 1)).pooled
        return self.model.head(pooled).unflatten(0, views.shape[:2])

    @torch.no_grad()
    def follow(self, student: Student, momentum: float) -> None:
        """``teacher <- momentum * teacher + (1 - momentum) * student``.

        Parameters that are equal stay bit-identical."""
        present = dict(self.model.named_parameters())
        for name, parameter in student.named_parameters():
            average = self.average[name].lerp_(parameter.to(self.average[name].dtype), 1 - momentum)
            if present[name].dtype != average.dtype:  # otherwise they share memory
                present[name].copy_(average)

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Load a saved :attr:`average`."""
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(self.average[name].copy_(average[name]))


@dataclass(eq=False)
class Context:
    """Plain views of a batch and what is computed from them; valid until the learner's next step.

    Everything beyond the views is computed on first use.

    Args:
        batch: the batch from the stream.
        global_views: plain global views, ``[G, B, 3, H, W]``.
        local_views: local views, ``[L, B, 3, h, w]``; None: there are none.
        learner: the learner that made the context.
        blurs: cache of :meth:`blurred`, by sigma.
    """

    batch: ImageBatch
    global_views: Tensor
    local_views: Tensor | None
    learner: DinoLearner = field(repr=False)
    blurs: dict[float, Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def teacher_logits(self) -> Tensor:
        """The teacher's scores of the plain global views, ``[G, B, P]``."""
        return self.learner.teacher.logits(self.global_views)

    @cached_property
    def teacher_targets(self) -> Tensor:
        """Targets from the plain global views, ``[G, B, P]``, rows sum to 1, detached.

        They are the anchor of learned targets."""
        return self.learner.targets(self.teacher_logits)

    @cached_property
    def student_logits(self) -> Tensor:
        """The student's scores of the plain views, ``[V, B, P]``, with the graph for one loss.

        Also sets :attr:`global_entry` and :attr:`local_entry` from this pass."""
        with self.learner.suffix.entering() as entries:
            scores = self.learner._student_logits(self.global_views, self.local_views)
        if entries:
            self.global_entry = entries[0]
            self.local_entry = entries[1] if len(entries) > 1 else None
        return scores

    @cached_property
    def global_entry(self) -> Entry:
        """The suffix's input for the plain global views, ``[G * B, T, D]``, detached."""
        return self._enter(self.global_views)

    @cached_property
    def local_entry(self) -> Entry | None:
        return None if self.local_views is None else self._enter(self.local_views)

    def blurred(self, sigma: float) -> Tensor:
        """Return the plain global views blurred by a Gaussian of ``sigma`` pixels; cached."""
        if sigma not in self.blurs:
            self.blurs[sigma] = blur(self.global_views, sigma)
        return self.blurs[sigma]

    @torch.no_grad()
    def _enter(self, views: Tensor) -> Entry:
        return self.learner.suffix.enter(views.flatten(0, 1))


class DinoLearner(PictureLearner[Context, ViewTask]):
    """DINO's student and teacher; :meth:`after_step` updates the teacher and its centre.

    Args:
        backbone: the student's backbone. S is a subset of its parameters; the head is never in S,
            because no feedback loss passes through it.
        head: the student's head.
        aligned: S, see :func:`vpretrain.vision.backbone.aligned_parameters`.
        crops: makes the views of a batch, seeded by the batch and not by torch's generator.
        settings: temperatures, momenta and the teacher's views.

    Attributes:
        center: ``[P]`` float32 or wider, running mean of the teacher's scores over all processes.
    """

    kind = "dino"
    fresh_key = "learner.head"
    model: Student

    def __init__(
        self,
        backbone: Backbone,
        head: DinoHead,
        aligned: dict[str, nn.Parameter],
        crops: Callable[[ImageBatch], Crops],
        settings: DinoSettings,
    ) -> None:
        self.model, self.backbone = Student(backbone.model, head), backbone
        self.aligned, self.crops = aligned, crops
        self.settings = settings
        self.suffix = EncoderSuffix(backbone, aligned)
        self.teacher = Teacher(self.model, backbone.autocast)
        self.center = torch.zeros_like(vectors.wide(head.prototypes.detach()[:, 0]))
        self.running_center = RunningCenter(self.center, settings.center_momentum)

    @property
    def fresh(self) -> DinoHead:
        return self.model.head

    def baseline_task(self, context: Context) -> ViewTask:
        return BaselineViews()

    def own_state(self) -> dict[str, Tensor]:
        head = {f"head.{name}": p for name, p in self.model.head.named_parameters()}
        teacher = {f"teacher.{name}": average for name, average in self.teacher.average.items()}
        return head | teacher | {"center": self.center}

    def restored(self) -> None:
        self.teacher.load(self.teacher.average)  # copies the average to the model, in any dtype

    def forward(self, batch: ImageBatch) -> Context:
        """Cut the views of a batch; student and teacher run once the task is known.

        Raises:
            UserError: there are fewer than two views or no global view, or patches do not tile the
                views.
        """
        crops = self.crops(batch)
        if not crops.global_views or len(crops.global_views) + len(crops.local_views) < 2:
            raise user_error(
                "learner.crops",
                "there is no pair of views to compare",
                value=f"{len(crops.global_views)} global, {len(crops.local_views)} local",
                accepted="one global view or more, and two views in all",
            )
        device = self.backbone.device
        views = torch.stack(list(crops.global_views)).to(device)
        local = torch.stack(list(crops.local_views)).to(device) if crops.local_views else None
        for some in (views, local):
            if some is not None:
                self.backbone.grid(some)
        return Context(batch, views, local, self)

    def loss(self, context: Context, task: ViewTask) -> Tensor:
        """Return DINO's loss over all pairs of different views (eq. 47, 50), float32 or wider.

        Gradients flow to the student and to the task's controls, never to the teacher."""
        views = task.views(context.global_views)
        scores = self._teacher_logits(context, views)
        self.running_center.observe(scores)
        known = views is context.global_views and "student_logits" in vars(context)
        student = (
            vars(context).pop("student_logits")  # its graph can be used only once
            if known
            else self._student_logits(views, context.local_views)
        )
        targets = task.targets(self._teacher_targets(context, scores))
        return dino_loss(student, targets, temperature=self.settings.student_temperature)

    def objective(self, context: Context, task: ViewTask) -> Objective:
        """Return the loss as a function of S and the inputs that depend on controls, no dropout.

        Those inputs are the hidden states of learned global views at the first aligned block
        (``[G * B, T, D]``) and learned targets, in this order; each only if it depends on a control
        that requires a gradient.

        The teacher's targets and centre are constant. With ``local_views_in_value`` off, a task
        without learned targets is valued on pairs of global views only, each weighted as in the
        whole loss. The gradient with respect to a mask is then unchanged; the value lacks the pairs
        with local views, which cancel in ``gain`` if the teacher sees plain views."""
        views = task.views(context.global_views)
        scores = self._teacher_logits(context, views)
        targets = task.targets(self._teacher_targets(context, scores))
        steers_views, steers_targets = views.requires_grad, targets.requires_grad
        plain = views is context.global_views
        entry = None if plain else self.suffix.enter(views.flatten(0, 1))
        with_local = steers_targets or self.settings.local_views_in_value
        count = len(views) + (0 if context.local_views is None else len(context.local_views))
        pairs = len(views) * (count - 1)

        def loss(parameters: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
            own = context.global_entry if entry is None else entry
            hidden = inputs[0] if steers_views else own.hidden
            mass = inputs[-1] if steers_targets else targets
            local = context.local_entry if with_local else None
            entries = [Entry(hidden, own.rest), *([] if local is None else [local])]
            student = torch.cat([self._suffix_logits(each, parameters) for each in entries])
            student = student.unflatten(0, (-1, mass.shape[1]))
            temperature = self.settings.student_temperature
            return dino_loss(student, mass, temperature=temperature, pairs=pairs)

        def here(inputs: tuple[Tensor, ...]) -> Tensor:
            student, (mass,) = context.student_logits.detach(), inputs
            temperature = self.settings.student_temperature
            return dino_loss(student, mass, temperature=temperature, pairs=pairs)

        inputs = (
            *((entry.hidden,) if steers_views and entry is not None else ()),
            *((targets,) if steers_targets else ()),
        )
        known = steers_targets and not steers_views and self._passes_as_valued()
        return Objective(inputs, loss, here if known else None)

    def _passes_as_valued(self) -> bool:
        """Whether the student's training pass equals the value's pass up to rounding.

        False with narrow dtypes, autocast or a random forward pass."""
        narrow = any(vectors.wide(p).dtype != p.dtype for p in self.backbone.model.parameters())
        return not (narrow or self.backbone.autocast or self.backbone.draws)

    def targets(self, logits: Tensor) -> Tensor:
        """Return targets from the teacher's scores: ``[G, B, P]``, rows sum to 1, detached."""
        if self.settings.centering == "sinkhorn":
            return balanced_targets(logits, temperature=self.settings.teacher_temperature)
        return teacher_targets(logits, self.center, temperature=self.settings.teacher_temperature)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Update teacher and centre; ``progress`` in [0, 1] sets the teacher's momentum."""
        self.teacher.follow(self.model, teacher_momentum(self.settings.teacher_momentum, progress))
        self.running_center.move()

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.average, "center": self.center}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load(state["teacher"])
        self.center.copy_(state["center"])

    def _teacher_logits(self, context: Context, views: Tensor) -> Tensor:
        if views is context.global_views or self.settings.teacher_views == "plain":
            return context.teacher_logits
        return self.teacher.logits(views.detach())

    def _teacher_targets(self, context: Context, scores: Tensor) -> Tensor:
        return context.teacher_targets if scores is context.teacher_logits else self.targets(scores)

    def _student_logits(self, *views: Tensor | None) -> Tensor:
        """Return the student's scores ``[V, B, P]`` of all views, with their graph."""
        scores = []
        for some in (each for each in views if each is not None):
            pooled = self.backbone.features(some.flatten(0, 1)).pooled
            scores.append(self.model.head(pooled).unflatten(0, some.shape[:2]))
        return torch.cat(scores)

    def _suffix_logits(self, entry: Entry, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the scores ``[N, P]`` of the views in ``entry`` as a function of S."""
        tokens = self.suffix.features(entry, parameters)
        pooled = self.backbone.pooled(tokens)
        head = {name: p.detach().to(pooled.dtype) for name, p in self.model.head.named_parameters()}
        return torch.func.functional_call(self.model.head, head, (pooled,))


def teacher_momentum(start: float, fraction: float) -> float:
    """Return the momentum at a fraction of the run: a half cosine from ``start`` to 1."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * fraction)) / 2
