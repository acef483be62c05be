"""DINO: its loss, the teacher, and the value of learned views and targets by every estimator."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vpretrain.method import vectors
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.estimators import estimator as estimator_named
from vpretrain.method.roles import Gradient, detached
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system.errors import UserError
from vpretrain.vision.backbone import Backbone, aligned_parameters
from vpretrain.vision.dino.learner import (
    Context,
    DinoLearner,
    DinoSettings,
    teacher_momentum,
)
from vpretrain.vision.dino.loss import DinoHead, balanced_targets, dino_loss, teacher_targets
from vpretrain.vision.learners import warm_up
from vpretrain.vision.loading import new_model
from vpretrain.vision.steering.views import BaselineViews, LearnedTargets, LearnedViews, blur

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


# The loss.


def test_loss_is_its_slow_definition() -> None:
    torch.manual_seed(0)
    student, targets = (
        torch.randn(4, 3, 5, dtype=torch.float64),
        torch.rand(2, 3, 5, dtype=torch.float64),
    )
    slow = 0.0
    for g in range(2):
        for v in range(4):
            if v != g:
                for b in range(3):
                    for p in range(5):
                        slow -= float(
                            targets[g, b, p] * torch.log_softmax(student[v, b] / 0.1, 0)[p]
                        ) / (2 * 3 * 3)
    assert float(dino_loss(student, targets)) == pytest.approx(slow, rel=1e-12)
    # one global view and one other: a single pair
    alone = -(targets[0] * torch.log_softmax(student[1] / 0.2, -1)).sum(-1).mean()
    assert float(dino_loss(student[:2], targets[:1], temperature=0.2)) == pytest.approx(
        float(alone), rel=1e-12
    )


def test_a_view_is_not_compared_with_itself() -> None:
    student = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.zeros(2, 2, 5, dtype=torch.float64)
    targets[0] = 0.2  # only the first view sets a target
    dino_loss(student, targets).backward()
    assert (
        student.grad is not None
        and not student.grad[0].any()
        and student.grad[1].any()
        and student.grad[2].any()
    )


def test_teacher_targets_are_sharpened_and_centred() -> None:
    logits = torch.tensor([[[1.0, 1.04]]])
    assert torch.allclose(
        teacher_targets(logits, torch.zeros(2)), torch.softmax(torch.tensor([[[0.0, 1.0]]]), -1)
    )
    assert torch.allclose(
        teacher_targets(logits, torch.tensor([1.0, 1.04])), torch.full((1, 1, 2), 0.5)
    )


def test_balanced_targets_are_the_slow_loop_and_no_prototype_wins() -> None:
    logits = (
        torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.05
    )
    logits[..., 1] += 0.3  # a prototype that would win in every image
    slow = (logits / 0.04).exp().flatten(0, 1)
    for _ in range(3):
        slow = slow / slow.sum(dim=0)
        slow = slow / slow.sum(dim=1, keepdim=True)
    found = balanced_targets(logits.requires_grad_(), temperature=0.04)
    assert torch.allclose(found, slow.view(2, 5, 3)) and not found.requires_grad
    assert torch.allclose(found.sum(dim=-1), torch.ones(2, 5, dtype=torch.float64))
    assert (
        float(found.mean(dim=(0, 1)).max())
        < 0.4
        < float(teacher_targets(logits, torch.zeros(3)).mean(dim=(0, 1)).max())
    )
    assert torch.isfinite(balanced_targets(logits.detach() * 1e4)).all()


def test_centering_is_as_set() -> None:
    """Balanced targets do not depend on the running centre, and the loss is taken on them."""
    found = {}
    for centering in ("mean", "sinkhorn"):
        made = learner(settings=DinoSettings(centering=centering))  # type: ignore[arg-type]
        before = made.forward(0).teacher_targets
        with torch.no_grad():
            loss = float(made.loss(made.forward(0), BaselineViews()))
            by_hand = float(made.loss(made.forward(0), LearnedTargets(before)))
        assert loss == pytest.approx(by_hand, rel=1e-10)
        made.center += torch.randn(
            made.center.shape, generator=torch.Generator().manual_seed(0)
        ).to(made.center)
        found[centering] = torch.allclose(made.forward(0).teacher_targets, before)
    assert found == {"mean": False, "sinkhorn": True}


@torch.no_grad()
def test_head_scores_are_cosines() -> None:
    head = DinoHead(6, hidden=(5, 4), bottleneck=3, prototypes=7)
    features = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    scores = head(features)
    assert scores.shape == (9, 7) and float(scores.abs().max()) <= 1 + 1e-6
    head.prototypes.mul_(100)  # length says nothing
    assert torch.allclose(head(features), scores, atol=1e-6)
    head.prototypes[2] = head.mlp(features[4:5])[0]
    assert float(head(features)[4, 2]) == pytest.approx(1, abs=1e-6)


def test_learner_loss_is_dino_on_the_models_own_outputs() -> None:
    """From the ``transformers`` model and the head alone, view by view, without any batching of
    views.
    """
    made = learner()
    views = crop(0)
    with torch.no_grad():
        student = [
            made.model.head(made.model.backbone(v).last_hidden_state[:, 0])
            for v in views.global_views + views.local_views
        ]
        teacher = made.teacher.model
        scores = [
            teacher.head(teacher.backbone(v).last_hidden_state[:, 0]) for v in views.global_views
        ]
        targets = torch.softmax((torch.stack(scores) - made.center) / 0.04, dim=-1)
        expected = dino_loss(torch.stack(student), targets)
        assert float(made.loss(made.forward(0), BaselineViews())) == pytest.approx(
            float(expected), rel=1e-10
        )


# Learned views: nothing learned is nothing changed.


@pytest.mark.parametrize("teacher_views", ["plain", "learned"])
def test_a_mask_of_ones_is_the_plain_run_bit_for_bit(teacher_views: Any) -> None:
    results = []
    for learned in (False, True):
        made = learner(
            settings=DinoSettings(teacher_views=teacher_views),
            dtype=torch.float32,
            crops=narrow_crop,
        )
        context = made.forward(0)
        ones = torch.ones(2, 3, 1, 32, 32)
        loss = made.loss(
            context,
            LearnedViews(ones, blur(context.global_views, 2.0)) if learned else BaselineViews(),
        )
        loss.backward()
        made.after_step(0.5)
        gradients = [p.grad for p in made.model.parameters() if p.grad is not None]
        assert len(gradients) > len(made.aligned)
        results.append([loss.detach(), *gradients, made.center, *made.teacher.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_the_teacher_sees_is_as_set() -> None:
    """A fully blurred pair of global views: its targets are the plain ones', or those of the
    blurred ones.
    """
    for setting, changed in (("plain", False), ("learned", True)):
        made = learner(settings=DinoSettings(teacher_views=setting))  # type: ignore[arg-type]
        context = made.forward(0)
        task = LearnedViews(
            torch.zeros(2, 3, 1, 32, 32, dtype=torch.float64), blur(context.global_views, 2.0)
        )
        seen = task.views(context.global_views) if changed else context.global_views
        targets = made.targets(made.teacher.logits(seen))
        with torch.no_grad():
            heads = [
                made.model.head(made.backbone.features(v).pooled)
                for v in [*task.views(context.global_views), *crop(0).local_views]
            ]
        assert float(made.loss(context, task).detach()) == pytest.approx(
            float(dino_loss(torch.stack(heads), targets)), rel=1e-10
        )


# The value of a task.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", [masked, soft])
def test_every_estimator_gives_the_naive_double_backward(
    kind: str, surface: Callable[[Context], Any]
) -> None:
    made = learner(kind)
    context = made.forward(0)
    task = surface(context)
    value, gradient = naive(made, context, task)
    for estimator in ESTIMATORS:
        found = value_estimator(made, estimator)(context, task)
        tolerance = 1e-5 if estimator == "central_difference" else 1e-8
        assert float(found.value) == pytest.approx(float(value), rel=tolerance), estimator
        assert torch.allclose(
            found.gradient[0],
            gradient,
            rtol=tolerance,
            atol=tolerance * float(gradient.abs().max()),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_in_the_mask_is_that_of_brute_finite_differences(kind: str) -> None:
    """``<u, g_S(mu)>`` from plain first-order gradients of the loss, at masks moved to
    both sides.
    """
    made = learner(kind)
    task = masked(made.forward(0))
    u, step = direction(made), 1e-5

    def value(mask: Tensor) -> float:
        loss = made.loss(made.forward(0), task.with_controls((mask,)))
        gradients = torch.autograd.grad(loss, list(made.aligned.values()))
        return float(sum((u[n] * g).sum() for n, g in zip(made.aligned, gradients, strict=True)))

    estimates = {name: value_estimator(made, name)(made.forward(0), task) for name in ESTIMATORS}
    for seed in range(2):
        move = torch.randn(
            task.mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        slope = (value(task.mask + step * move) - value(task.mask - step * move)) / (2 * step)
        for name, estimate in estimates.items():
            assert float((estimate.gradient[0] * move).sum()) == pytest.approx(slope, rel=1e-4), (
                name
            )
    for name, estimate in estimates.items():
        assert float(estimate.value) == pytest.approx(value(task.mask), rel=1e-5), name


def test_all_parameters_as_s_cut_at_the_pixels() -> None:
    made = learner(blocks="all")
    context = made.forward(0)
    task = masked(context)
    value, gradient = naive(made, context, task)
    for estimator in ESTIMATORS:
        found = value_estimator(made, estimator)(made.forward(0), task)
        assert float(found.value) == pytest.approx(float(value), rel=1e-4)
        assert cosine(found.gradient[0], gradient) > 1 - 1e-8
    assert torch.isfinite(
        made.loss(made.forward(0), BaselineViews())
    )  # no rotary cache holds a dual number now


@pytest.mark.parametrize("alignment", ["cosine", "lower_bound"])
def test_alignments_that_need_the_whole_gradient_get_it(alignment: Any) -> None:
    """Their direction depends on ``g_pre``, the pairs with local views among it."""
    made = learner()
    context = made.forward(0)
    task = masked(context)
    control = task.mask.clone().requires_grad_()
    u = direction(made)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = made.loss(context, task.with_controls((control,)))
        pre = vectors.named(
            made.aligned, torch.autograd.grad(loss, list(made.aligned.values()), create_graph=True)
        )
        product, square = vectors.inner(u, pre), vectors.inner(pre, pre)
        scores = {
            "cosine": product / (vectors.norm(u) * square.sqrt()),
            "lower_bound": product - 0.05 * square,
        }
        (gradient,) = torch.autograd.grad(scores[alignment], control)
    found = value_estimator(made, "double_backward", alignment)(context, task)
    assert float(found.value) == pytest.approx(float(scores[alignment].detach()), rel=1e-8)
    assert torch.allclose(
        found.gradient[0], gradient, rtol=1e-7, atol=1e-9 * float(gradient.abs().max())
    )


def test_without_local_views_the_gradient_stays_and_the_gain_too() -> None:
    found = {}
    for held in (True, False):
        made = learner(settings=replace(PLAIN_TEACHER, local_views_in_value=held))
        context = made.forward(0)
        task = masked(context)
        value_of = value_estimator(made, "double_backward")
        plain = value_of(context, task.with_controls((torch.ones_like(task.mask),)))
        found[held] = (value_of(context, task), plain)
    assert torch.allclose(found[True][0].gradient[0], found[False][0].gradient[0], rtol=1e-9)
    task, (value, _) = soft(context), naive(made, context, soft(context))
    assert float(value_of(context, task).value) == pytest.approx(
        float(value), rel=1e-9
    )  # targets speak to all views
    gains = [float(steered.value - plain.value) for steered, plain in found.values()]
    assert gains[0] == pytest.approx(gains[1], rel=1e-9)
    assert float(found[True][0].value) != pytest.approx(float(found[False][0].value), rel=1e-3)


def test_the_value_under_a_teacher_of_learned_views_holds_its_targets_still() -> None:
    made = learner(settings=DinoSettings(teacher_views="learned"))
    context = made.forward(0)
    task = masked(context)
    value, gradient = naive(made, context, task)
    found = value_estimator(made, "forward_mode")(context, task)
    assert float(found.value) == pytest.approx(float(value), rel=1e-8)
    assert cosine(found.gradient[0], gradient) > 1 - 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", [masked, soft])
def test_central_differences_in_float32_point_where_float64_does(
    kind: str, surface: Callable[[Context], Any]
) -> None:
    exact = learner(kind)
    context = exact.forward(0)
    _, gradient = naive(exact, context, surface(context))
    narrow = learner(kind, dtype=torch.float32, crops=narrow_crop)
    with torch.no_grad():  # the same numbers in both, but for rounding
        narrow.model.load_state_dict(exact.model.state_dict())
        narrow.load_state_dict(exact.state_dict())
    seen = narrow.forward(0)
    found = value_estimator(narrow, "central_difference")(seen, surface(seen))
    assert (
        found.gradient[0].dtype == torch.float32 and cosine(found.gradient[0], gradient) >= 0.9999
    )


def test_a_bfloat16_student_is_valued_in_float32() -> None:
    made = learner(dtype=torch.bfloat16, crops=narrow_crop)
    context = made.forward(0)
    objective = made.objective(
        context, replace(task := masked(context), mask=task.mask.clone().requires_grad_())
    )
    assert objective.inputs[0].dtype == torch.float32
    exact = value_estimator(made, "double_backward")(context, task)
    rough = value_estimator(made, "central_difference")(context, task)
    assert cosine(exact.gradient[0], rough.gradient[0]) > 0.999


def test_valuing_leaves_no_trace() -> None:
    """No dropout, no gradient on any parameter, no draw from the generator, no centre, no change of
    mode.
    """
    made = learner(settings=DinoSettings(), drop_path_rate=0.5, attention_dropout=0.5)
    context = made.forward(0)
    calm = value_estimator(made, "central_difference")(context, masked(context))
    made.model.train()
    context = made.forward(0)
    before = {n: t.clone() for n, t in made.model.state_dict().items()}
    state = torch.get_rng_state()
    found = value_estimator(made, "central_difference")(context, masked(context))
    assert torch.equal(found.gradient[0], calm.gradient[0])
    assert torch.equal(torch.get_rng_state(), state) and made.model.backbone.training
    assert all(p.grad is None and p.requires_grad for p in made.model.parameters())
    assert all(torch.equal(before[n], t) for n, t in made.model.state_dict().items())
    center = made.center.clone()
    made.after_step(1.0)
    assert torch.equal(made.center, center)


# The teacher.


def test_the_teacher_never_gets_gradients_and_the_detached_task_gives_none_to_the_mask() -> None:
    made = learner(settings=DinoSettings())
    context = made.forward(0)
    mask = masked(context).mask.requires_grad_()
    made.loss(context, detached(LearnedViews(mask, blur(context.global_views, 2.0)))).backward()
    assert mask.grad is None and not context.teacher_targets.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in made.teacher.model.parameters())
    assert not {id(p) for p in made.model.parameters()} & {
        id(p) for p in made.teacher.model.parameters()
    }
    trained = {n for n, p in made.model.named_parameters() if p.grad is not None}
    assert {"head.prototypes", "backbone.embeddings.cls_token"} <= trained
    assert torch.equal(
        made.forward(1).teacher_logits, made.teacher.logits(torch.stack(crop(1).global_views))
    )


def test_teacher_and_centre_move_by_their_momenta_once_a_step() -> None:
    made = learner(settings=DinoSettings(teacher_momentum=0.9, center_momentum=0.75))
    teacher = [p.clone() for p in made.teacher.model.parameters()]
    center, context = made.center.clone(), made.forward(0)
    made.loss(context, BaselineViews())
    assert torch.equal(made.center, center)
    made.after_step(0.0)
    for before, after, student in zip(
        teacher, made.teacher.model.parameters(), made.model.parameters(), strict=True
    ):
        assert torch.allclose(after, 0.9 * before + 0.1 * student)
    moved = 0.75 * center + 0.25 * context.teacher_logits.mean(dim=(0, 1))
    assert torch.allclose(made.center, moved)
    at_rest = made.teacher.model.head.prototypes.clone()
    made.after_step(1.0)  # momentum 1, and no batch was seen since
    assert torch.allclose(made.center, moved)
    assert torch.equal(made.teacher.model.head.prototypes, at_rest)


def test_the_momentum_rises_to_one() -> None:
    fractions = [teacher_momentum(0.996, fraction) for fraction in (0.0, 0.5, 1.0)]
    assert fractions == pytest.approx([0.996, 0.998, 1.0], abs=1e-12)


def test_a_teacher_that_equals_its_student_stays_bit_for_bit() -> None:
    """Burn-in steps have learning rate 0: nothing may drift there by rounding."""
    made = learner(dtype=torch.bfloat16)
    made.teacher.load({n: vectors.wide(p.detach()) for n, p in made.model.named_parameters()})
    for _ in range(3):
        made.after_step(0.0)
    pairs = zip(made.model.parameters(), made.teacher.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_bfloat16_teacher_does_not_stand_still() -> None:
    made = learner(dtype=torch.bfloat16)
    before = made.teacher.average["backbone.norm.weight"].clone()
    for _ in range(100):
        made.after_step(0.0)
    student = made.model.backbone.norm.weight.float()
    expected = student + 0.996**100 * (before - student)
    assert torch.allclose(made.teacher.average["backbone.norm.weight"], expected, atol=1e-5)
    assert torch.equal(
        made.teacher.model.backbone.norm.weight,
        made.teacher.average["backbone.norm.weight"].bfloat16(),
    )


def test_state_comes_back() -> None:
    first, second = learner(), learner()
    for parameter in first.model.parameters():
        parameter.data.add_(0.1)
    first.loss(first.forward(0), BaselineViews())
    first.after_step(0.0)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict({k: v for k, v in first.state_dict().items()})
    with torch.no_grad():
        assert torch.equal(
            *(made.loss(made.forward(1), BaselineViews()) for made in (first, second))
        )
    first.after_step(0.0)
    assert not torch.equal(first.center, second.center)  # the states are not the same tensors


def test_head_warm_up_trains_the_head_alone_and_lowers_the_loss() -> None:
    made = learner(settings=DinoSettings())
    made.model.train()
    before = {n: p.clone() for n, p in made.model.named_parameters()}
    teacher = {n: p.clone() for n, p in made.teacher.model.named_parameters()}

    def batches() -> Iterator[int]:
        while True:
            yield 0

    losses = warm_up(made, batches(), steps=8, learning_rate=0.02)
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert {n for n, p in made.model.named_parameters() if not torch.equal(p, before[n])} == {
        n for n in before if n.startswith("head.")
    }
    assert not torch.equal(made.teacher.model.head.prototypes, teacher["head.prototypes"])
    assert (
        all(p.grad is None and p.requires_grad for p in made.model.parameters())
        and made.model.backbone.training
    )


@pytest.mark.parametrize("count", [1, 0])
def test_a_batch_without_two_views_is_refused(count: int) -> None:
    views = Views(crop(0).global_views[:count], [] if count else crop(0).local_views)
    with pytest.raises(UserError, match="no pair of views"):
        learner(crops=lambda seed: views).forward(0)


def test_two_global_views_are_enough() -> None:
    made = learner(crops=lambda seed: crop(seed, count=2))
    context = made.forward(0)
    task = masked(context)
    value, gradient = naive(made, context, task)
    found = value_estimator(made, "forward_mode")(context, task)
    assert float(found.value) == pytest.approx(float(value), rel=1e-8)
    assert torch.allclose(
        found.gradient[0], gradient, rtol=1e-7, atol=1e-9 * float(gradient.abs().max())
    )


def test_targets_are_valued_beside_the_students_own_pass() -> None:
    """One-sided: exact to a percent, half the suffix's passes, and the loss is that of the pass
    that was valued."""
    made = learner(blocks=2, dtype=torch.float32, crops=narrow_crop)
    context = made.forward(0)
    task = LearnedTargets(soft(context).mass.requires_grad_())
    objective = made.objective(context, task)
    assert objective.here is not None
    point = {name: p.detach() for name, p in made.aligned.items()}
    known = float(objective.here(task.controls()).detach())
    computed = float(objective.loss(point, task.controls()).detach())
    assert known == pytest.approx(computed, rel=1e-5)
    exact = value_estimator(made, "double_backward")(context, task).gradient[0]
    found = ValueEstimator(made, Alignment("dot"), estimator_named("one_sided_difference"))
    found.update([direction(made)], None, 0.1)
    gradient = found(context, task).gradient[0]
    assert float((gradient - exact).norm()) <= 1e-2 * float(exact.norm())
    assert not found.estimator.central  # type: ignore[attr-defined]
    loss = made.loss(context, task)
    assert float(loss.detach()) == pytest.approx(known, rel=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in made.aligned.values())


@pytest.mark.parametrize("why", ["views", "narrow", "dropout"])
def test_a_pass_that_is_not_what_is_valued_does_not_serve(why: str) -> None:
    dtype = torch.bfloat16 if why == "narrow" else torch.float32
    made = learner("dinov2", dtype=dtype, crops=lambda seed: crop(seed, dtype=dtype))
    if why == "dropout":
        made.model.train()
        made.backbone.blocks[0].drop_path = torch.nn.Dropout(0.5)  # type: ignore[union-attr]
    context = made.forward(0)
    task = masked(context) if why == "views" else soft(context)
    task = task.with_controls((task.controls()[0].requires_grad_(),))
    assert made.objective(context, task).here is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 2, "all"])
def test_what_enters_the_suffix_is_computed_once(kind: str, blocks: Any) -> None:
    """After the student's own pass its views enter S as that pass left them: the blocks below S run
    no second time, and values are the same."""
    made = learner(kind, blocks=blocks, dtype=torch.float32, crops=narrow_crop)
    task = soft(made.forward(0))
    runs: list[int] = []
    hook = made.backbone.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    found = {}
    for name in ("central_difference", "one_sided_difference"):
        value = ValueEstimator(made, Alignment("dot"), estimator_named(name))
        value.update([direction(made)], None, 0.1)
        value(made.forward(0), task)  # measures its step
        context = made.forward(0)
        runs.clear()
        found[name] = value(context, task).gradient[0]
        made.loss(context, task).backward()
        found[name, "runs"] = len(runs)
    hook.remove()
    error = (found["one_sided_difference"] - found["central_difference"]).norm()
    assert float(error) <= 1e-2 * float(found["central_difference"].norm())
    below = made.suffix.first if not made.suffix.whole else 0
    student, teacher = 2, 0  # passes of the whole: global views and local ones
    if below:  # the first block is below S
        assert found["one_sided_difference", "runs"] == student + teacher
        assert found["central_difference", "runs"] == 2 * student
    else:
        assert found["one_sided_difference", "runs"] == 2 * student
        assert found["central_difference", "runs"] == 3 * student
