"""A small DINO learner whose views are noise, tasks for it, and values by double backward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpretrain.method import vectors
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.roles import Gradient
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.vision.backbone import Backbone, aligned_parameters
from vpretrain.vision.dino.learner import Context, DinoLearner, DinoSettings
from vpretrain.vision.dino.loss import DinoHead
from vpretrain.vision.loading import new_model
from vpretrain.vision.steering.views import LearnedTargets, LearnedViews, blur

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.2,
}
KINDS: dict[str, dict[str, Any]] = {
    "dinov3_vit": {**TINY, "num_register_tokens": 2, "intermediate_size": 64},
    "dinov2": {**TINY, "mlp_ratio": 2},
}
PLAIN_TEACHER = DinoSettings(teacher_views="plain")


@dataclass
class Views:
    """A stand-in for augmentation: noise, seeded by the batch."""

    global_views: list[Tensor]
    local_views: list[Tensor]


def crop(seed: int, count: int = 6, dtype: torch.dtype = torch.float64) -> Views:
    draw = torch.Generator().manual_seed(seed)

    def noise(side: int) -> Tensor:
        return torch.randn(3, 3, side, side, generator=draw, dtype=torch.float64).to(dtype)

    return Views([noise(32) for _ in range(2)], [noise(16) for _ in range(count - 2)])


def narrow_crop(seed: int) -> Views:
    return crop(seed, dtype=torch.float32)


def learner(
    kind: str = "dinov3_vit",
    settings: DinoSettings = PLAIN_TEACHER,
    dtype: torch.dtype = torch.float64,
    blocks: Any = 1,
    crops: Callable[[int], Views] = crop,
    **config: Any,
) -> DinoLearner:
    torch.manual_seed(0)
    model = new_model(
        {"model_type": kind, **KINDS[kind], **config}, dtype=dtype, attention="sdpa"
    ).eval()
    backbone = Backbone(model)
    head = DinoHead(32, hidden=(24,), bottleneck=8, prototypes=20).to(
        torch.promote_types(dtype, torch.float32)
    )
    with torch.no_grad():
        for (
            parameter
        ) in head.parameters():  # larger than they start, so that nothing is nearly linear
            parameter.add_(
                0.3 * torch.randn(parameter.shape, dtype=torch.float64).to(parameter.dtype)
            )
    made = DinoLearner(
        backbone, head, aligned_parameters(backbone, blocks=blocks, patterns=[]), crops, settings
    )
    with torch.no_grad():  # a teacher apart from the student, as after some steps
        for average, parameter in zip(
            made.teacher.average.values(), made.teacher.model.parameters(), strict=True
        ):
            average.add_(0.05 * torch.randn_like(average))
            parameter.copy_(average)
        made.center.normal_(0, 0.05)
    return made


def direction(of: DinoLearner) -> Gradient:
    draw = torch.Generator().manual_seed(5)
    return {
        n: torch.randn(p.shape, generator=draw, dtype=torch.float64).to(vectors.wide(p.detach()))
        for n, p in of.aligned.items()
    }


def masked(context: Context, seed: int = 3) -> LearnedViews:
    views = context.global_views
    mask = torch.rand(
        2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return LearnedViews(mask.to(views.dtype), blur(views, 2.0))


def soft(context: Context) -> LearnedTargets:
    draw = torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return LearnedTargets((draw * 0.1).to(context.teacher_targets.dtype))


def value_estimator(of: DinoLearner, estimator: str, alignment: Any = "dot") -> ValueEstimator:
    made = ValueEstimator(of, Alignment(alignment), ESTIMATORS[estimator])
    made.update([direction(of)], None, 0.1)
    return made


def naive(of: DinoLearner, context: Context, task: Any) -> tuple[Tensor, Tensor]:
    """``V`` and ``dV/d controls`` by differentiating twice through the whole graph, with none of
    the project's cuts.
    """
    control = task.controls()[0].detach().requires_grad_()
    u = direction(of)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = of.loss(context, task.with_controls((control,)))
        gradients = torch.autograd.grad(loss, list(of.aligned.values()), create_graph=True)
        value = torch.stack(
            [(u[n] * g).sum() for n, g in zip(of.aligned, gradients, strict=True)]
        ).sum()
        return value.detach(), torch.autograd.grad(value, control)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(
        torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)
    )
