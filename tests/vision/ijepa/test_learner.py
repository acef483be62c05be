"""I-JEPA: the loss against its loops, the target encoder by hand, and the value of weights and
context masks.
"""

from dataclasses import dataclass

import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaModel,
    ViTConfig,
    ViTModel,
)

from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system.errors import UserError
from vpretrain.vision.ijepa.blocks import BlockSettings
from vpretrain.vision.ijepa.learner import IJepaLearner, IJepaTask, baseline_task, prediction_loss
from vpretrain.vision.ijepa.predictor import Predictor

SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
ENCODERS = {
    "ijepa": lambda: IJepaModel(IJepaConfig(**SIZES)),
    "vit": lambda: ViTModel(ViTConfig(**SIZES), add_pooling_layer=False),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2)),
}


@dataclass(frozen=True)
class Batch:
    pixels: torch.Tensor
    seed: int = 3
    rank: int = 0
    world: int = 1


def tiny_learner(family="ijepa", dtype=torch.float64, aligned_blocks=1, blocks=None, **options):
    torch.manual_seed(0)
    encoder = ENCODERS[family]().to(dtype)
    predictor = Predictor(32, width=16, depth=2, heads=2, seed=1).to(dtype)
    with torch.no_grad():
        for (
            parameter
        ) in predictor.parameters():  # away from the small default, so that predictions differ
            parameter.mul_(1.5)
    return IJepaLearner(
        encoder,
        predictor,
        aligned_blocks=aligned_blocks,
        blocks=blocks or BlockSettings(),
        **options,
    )


def images(count=3, size=32, seed=1):
    return torch.randn(
        count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def some_task(context, seed=5):
    """Weights of mean 1 and a mask somewhere between nothing and everything."""
    generator = torch.Generator().manual_seed(seed)
    weights = (
        torch.rand(context.blocks.targets.shape, dtype=torch.float64, generator=generator) + 0.2
    )
    patches = context.grid[0] * context.grid[1]
    mask = 0.2 + 0.7 * torch.rand(
        len(context.pixels), patches, dtype=torch.float64, generator=generator
    )
    return IJepaTask(weights / weights.mean(), mask)


def direction(learner, seed=7):
    """Some vector over S, the same for every learner of a layout."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.dtype)
        for name, p in learner.aligned.items()
    }


def appraised(learner, estimator, alignment="dot", task=None):
    """Value and its gradient at some task, float64."""
    context = learner.forward(Batch(images()))
    value_estimator = ValueEstimator(
        learner, Alignment(alignment, smoothness=2.0), ESTIMATORS[estimator]
    )
    value_estimator.update([direction(learner)], None, step_size=0.1)
    estimate = value_estimator(context, task or some_task(context))
    return float(estimate.value), *(gradient.double() for gradient in estimate.gradient)


def close(a, b, tolerance):
    return float((a - b).norm() / b.norm()) < tolerance


# The loss.


def test_prediction_loss_equals_its_loops():
    generator = torch.Generator().manual_seed(0)
    predictions, answers = (
        2 * torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    weights = torch.rand(2, 2, 3, dtype=torch.float64, generator=generator)
    for error, rho in {
        "squared": lambda x: x**2,
        "smooth_l1": lambda x: x**2 / 2 if abs(x) < 1 else abs(x) - 0.5,
    }.items():
        slow = 0.0
        for b in range(2):
            for m in range(2):
                for k in range(3):
                    gaps = [float(predictions[b, m, k, d] - answers[b, m, k, d]) for d in range(4)]
                    slow += float(weights[b, m, k]) * sum(map(rho, gaps)) / 4 / 12
        assert float(prediction_loss(predictions, answers, weights, error)) == pytest.approx(
            slow, rel=1e-12
        )


@torch.no_grad()
@pytest.mark.parametrize("error", ["smooth_l1", "squared"])
def test_the_whole_loss_image_by_image_and_block_by_block(error):
    """Nothing of one image or block may reach another: the batch's loss is the mean of losses
    computed alone.
    """
    learner = tiny_learner(error=error)
    context = learner.forward(Batch(images()))
    task = some_task(context)
    blocks, encoder, target = context.blocks, learner.encoder, learner.target_encoder
    slow = 0.0
    for b, picture in enumerate(images()):
        whole = target(picture[None]).last_hidden_state[0]
        seen = blocks.context[b]
        content = encoder.embeddings.patch_embeddings(picture[None])[0, seen]
        mu = task.context_mask[b, seen, None]
        places = encoder.embeddings.position_embeddings[0, seen]
        states = (mu * content + (1 - mu) * content.mean(dim=0) + places)[None]
        for layer in encoder.layers:
            states = layer(states)
        states = encoder.layernorm(states)
        for m in range(4):
            ids = blocks.targets[b, m]
            prediction = learner.predictor(states, seen[None], ids[None, None], 4)[0, 0]
            for k, patch in enumerate(ids.tolist()):
                answer = (whole[patch] - whole[patch].mean()) / (
                    whole[patch].var(correction=0) + 1e-5
                ).sqrt()
                measure = (
                    torch.nn.functional.smooth_l1_loss
                    if error == "smooth_l1"
                    else torch.nn.functional.mse_loss
                )
                slow += (
                    float(task.weights[b, m, k] * measure(prediction[k], answer))
                    / blocks.targets.numel()
                )
    assert float(learner.loss(context, task)) == pytest.approx(slow, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_unsteered_task_is_bit_for_bit_the_plain_loss(dtype):
    """Loss and gradients; the plain loss is written here without a mask and without weights."""
    learner = tiny_learner(dtype=dtype)
    context = learner.forward(Batch(images()))
    loss = learner.loss(context, baseline_task(context))
    loss.backward()
    gradients = [p.grad.clone() for p in learner.model.parameters()]
    learner.model.zero_grad()

    tokens = learner.encoder.embeddings(images().to(dtype))
    states = torch.stack(
        [row[seen] for row, seen in zip(tokens, context.blocks.context, strict=True)]
    )
    for layer in learner.encoder.layers:
        states = layer(states)
    places = (context.blocks.context, context.blocks.targets, 4)
    predictions = learner.predictor(learner.encoder.layernorm(states), *places).to(
        context.answers.dtype
    )
    errors = torch.nn.functional.smooth_l1_loss(
        predictions, context.answers, reduction="none"
    ).mean(dim=-1)
    errors.mean().backward()
    assert torch.equal(loss, errors.mean())
    assert all(
        torch.equal(p.grad, g) for p, g in zip(learner.model.parameters(), gradients, strict=True)
    )


@torch.no_grad()
def test_weights_are_per_target_patch_and_linear():
    learner = tiny_learner()
    context = learner.forward(Batch(images()))
    task = some_task(context)
    apart = 0.0
    for position in range(task.weights.numel()):
        single = torch.zeros_like(task.weights)
        single.view(-1)[position] = task.weights.view(-1)[position]
        apart += float(learner.loss(context, IJepaTask(single, task.context_mask)))
    assert apart == pytest.approx(float(learner.loss(context, task)), rel=1e-12)


def test_at_mask_zero_the_encoder_cannot_tell_context_patches_apart():
    """Two context patches of the picture change places: the same input at mu = 0, another one at mu
    = 1.
    """
    learner = tiny_learner(aligned_blocks=2)
    picture = images(1)
    context = learner.forward(Batch(picture))
    first, second = context.blocks.context[0, :2].tolist()
    swapped = picture.clone()
    at = [
        (slice(8 * (i // 4), 8 * (i // 4) + 8), slice(8 * (i % 4), 8 * (i % 4) + 8))
        for i in (first, second)
    ]
    swapped[:, :, *at[0]], swapped[:, :, *at[1]] = picture[:, :, *at[1]], picture[:, :, *at[0]]
    other = learner.forward(Batch(swapped))

    def entering(context, mu):
        mask = torch.full((1, 16), mu, dtype=torch.float64, requires_grad=True)
        return learner.objective(context, IJepaTask(baseline_task(context).weights, mask)).inputs[0]

    torch.testing.assert_close(entering(context, 0.0), entering(other, 0.0), rtol=1e-12, atol=1e-12)
    assert (entering(context, 1.0) - entering(other, 1.0)).abs().max() > 0.1


def test_the_target_patches_of_a_picture_reach_the_loss_through_the_answers_alone():
    learner = tiny_learner()
    picture = images(1)
    context = learner.forward(Batch(picture))
    hidden = set(range(16)) - set(context.blocks.context[0].tolist())
    changed = picture.clone()
    for i in hidden:
        changed[:, :, 8 * (i // 4) : 8 * (i // 4) + 8, 8 * (i % 4) : 8 * (i % 4) + 8] += 1
    other = learner.forward(Batch(changed))
    task = IJepaTask(baseline_task(context).weights, some_task(context).context_mask)
    for one, two in zip(
        *(learner.objective(c, task).inputs for c in (context, other)), strict=True
    ):
        assert torch.equal(one, two)
    assert not torch.equal(context.answers, other.answers)


def test_the_seed_of_the_batch_sets_the_masks():
    learner = tiny_learner()
    one, again, other = (learner.forward(Batch(images(), seed)).blocks for seed in (1, 1, 2))
    assert torch.equal(one.targets, again.targets) and torch.equal(one.context, again.context)
    assert one.targets.shape != other.targets.shape or not torch.equal(one.targets, other.targets)


# The target encoder.


def test_the_target_encoder_is_a_moving_average_by_hand():
    learner = tiny_learner(momentum=(0.9, 1.0))
    name = "layers.0.mlp.fc1.weight"
    source, target = (
        dict(e.named_parameters())[name] for e in (learner.encoder, learner.target_encoder)
    )
    with torch.no_grad():
        target.fill_(2.0)
        source.fill_(4.0)
    learner.after_step(0.0)
    torch.testing.assert_close(target, torch.full_like(target, 0.9 * 2 + 0.1 * 4))
    learner.after_step(0.5)  # momentum 0.95
    torch.testing.assert_close(target, torch.full_like(target, 0.95 * 2.2 + 0.05 * 4))
    before = target.clone()
    learner.after_step(1.0)
    assert torch.equal(target, before)
    assert (source == 4).all()


def test_a_bfloat16_encoder_still_moves_its_target():
    """A step of 0.4% of the gap is below bfloat16's resolution: in that dtype the target would
    stand still.
    """
    learner = tiny_learner(dtype=torch.bfloat16)
    source, target = (next(e.parameters()) for e in (learner.encoder, learner.target_encoder))
    with torch.no_grad():
        target.fill_(1.0)
        source.fill_(1.1)
    for _ in range(10):
        learner.after_step(0.0)
    expected = 1 + (1 - 0.996**10) * (float(source.detach().flatten()[0]) - 1)
    assert float(target.mean()) == pytest.approx(expected, rel=1e-5)


def test_the_target_encoder_gets_no_gradient_and_is_not_trained():
    learner = tiny_learner()
    trained = {id(p) for p in learner.model.parameters()}
    assert not trained & {id(p) for p in learner.target_encoder.parameters()}
    context = learner.forward(Batch(images()))
    assert not context.answers.requires_grad
    learner.loss(context, baseline_task(context)).backward()
    assert all(p.grad is None and not p.requires_grad for p in learner.target_encoder.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.model.parameters())


def test_the_target_encoder_can_be_kept_and_restored():
    learner, other = tiny_learner(momentum=(0.5, 0.5)), tiny_learner()
    with torch.no_grad():
        next(learner.encoder.parameters()).add_(1)
    learner.after_step(0.0)
    before = other.forward(Batch(images())).answers
    other.load_state_dict(learner.state_dict())
    answers = [each.forward(Batch(images())).answers for each in (learner, other)]
    assert torch.equal(*answers) and not torch.equal(before, answers[1])


def test_plain_training_predicts_better():
    learner = tiny_learner(dtype=torch.float32)
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        context = learner.forward(Batch(images(8), seed=step % 2))
        loss = learner.loss(context, baseline_task(context))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(step / 40)
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


# The value of a task.


@pytest.mark.parametrize("family", sorted(ENCODERS))
@pytest.mark.parametrize("aligned_blocks", [1, 2])
def test_the_objective_is_the_loss_as_a_function_of_the_aligned_parameters(family, aligned_blocks):
    """Value and gradient at S, and after S has moved."""
    learner = tiny_learner(family, aligned_blocks=aligned_blocks)
    context = learner.forward(Batch(images()))
    task = some_task(context)
    objective = learner.objective(context, task)
    point = {name: p.detach().clone().requires_grad_() for name, p in learner.aligned.items()}
    loss = objective.loss(point, objective.inputs)
    full = learner.loss(context, task)
    torch.testing.assert_close(loss, full, rtol=1e-12, atol=0)
    theirs = torch.autograd.grad(full, list(learner.aligned.values()))
    for mine, expected in zip(torch.autograd.grad(loss, list(point.values())), theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        for name, u in direction(learner).items():
            learner.aligned[name].add_(u, alpha=0.1)
        moved = {name: p.clone() for name, p in learner.aligned.items()}
        height = objective.loss(moved, objective.inputs)
        assert (height - full).abs() > 1e-4
        torch.testing.assert_close(height, learner.loss(context, task), rtol=1e-12, atol=0)


def test_aligned_parameters_may_be_wider_than_the_learner():
    learner = tiny_learner(dtype=torch.float32)
    context = learner.forward(Batch(images()))
    objective = learner.objective(context, baseline_task(context))
    wide = objective.loss(
        {name: p.detach().double() for name, p in learner.aligned.items()}, objective.inputs
    )
    assert wide.dtype == torch.float64
    torch.testing.assert_close(
        wide.float(), learner.loss(context, baseline_task(context)), rtol=1e-5, atol=0
    )


def test_the_aligned_parameters_are_the_last_blocks_and_the_final_norm():
    prefixes = {name.rsplit(".", 1)[0] for name in tiny_learner(aligned_blocks=1).aligned}
    assert {p for p in prefixes if "layers.1" not in p} == {"encoder.layernorm"}
    assert len(tiny_learner(aligned_blocks=1).aligned) == 16 + 2
    assert len(tiny_learner(aligned_blocks=2).aligned) == 2 * 16 + 2


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("aligned_blocks", [1, 2])
@pytest.mark.parametrize("error", ["smooth_l1", "squared"])
def test_value_gradients_against_brute_force(error, aligned_blocks, estimator):
    """``<u, g_S>`` from the learner's own loss, differenced in single controls: no shared code with
    the estimators.

    In small steps: the second derivative of smooth L1 jumps at 1, and a step across a jump would
    see both sides.
    """
    learner = tiny_learner(aligned_blocks=aligned_blocks, error=error)
    context = learner.forward(Batch(images()))
    task, u = some_task(context), direction(learner)

    def value(controls):
        gradients = torch.autograd.grad(
            learner.loss(context, IJepaTask(*controls)),
            list(learner.aligned.values()),
            retain_graph=True,
        )
        return sum(float((a * b).sum()) for a, b in zip(u.values(), gradients, strict=True))

    found, *gradients = appraised(learner, estimator, task=task)
    assert found == pytest.approx(value(task.controls()), rel=1e-5)
    for which, gradient in enumerate(gradients):
        assert gradient.shape == task.controls()[which].shape
        picks = gradient.abs().flatten().topk(6).indices.tolist()
        for pick in picks:
            ends = []
            for sign in (1e-6, -1e-6):
                controls = [c.clone() for c in task.controls()]
                controls[which].view(-1)[pick] += sign
                ends.append(value(controls))
            assert float(gradient.flatten()[pick]) == pytest.approx(
                (ends[0] - ends[1]) / 2e-6, rel=1e-5
            ), pick


@pytest.mark.parametrize("error", ["smooth_l1", "squared"])
@pytest.mark.parametrize("alignment", ["dot", "cosine", "lower_bound"])
def test_float64_estimators_agree(alignment, error):
    learner = tiny_learner(error=error)
    reference = appraised(learner, "double_backward", alignment)
    for estimator, tolerance in (("forward_mode", 1e-6), ("central_difference", 1e-5)):
        found = appraised(learner, estimator, alignment)
        assert found[0] == pytest.approx(reference[0], rel=tolerance)
        assert close(found[1], reference[1], tolerance) and close(found[2], reference[2], tolerance)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.9999), (torch.bfloat16, 0.99)])
def test_narrow_central_difference_against_float64(dtype, least):
    """The suffix is valued in float32 even if the learner is in bfloat16; what is left is the
    prefix.
    """
    narrow, wide = tiny_learner(dtype=dtype), tiny_learner()
    for one, other in ((wide.model, narrow.model), (wide.target_encoder, narrow.target_encoder)):
        one.load_state_dict(other.state_dict())
    for found, reference in zip(
        appraised(narrow, "central_difference")[1:],
        appraised(wide, "double_backward")[1:],
        strict=True,
    ):
        assert float(torch.cosine_similarity(found.flatten(), reference.flatten(), dim=0)) >= least


def test_a_mask_over_patches_that_are_no_context_is_worth_nothing():
    learner = tiny_learner()
    context = learner.forward(Batch(images()))
    _, _, gradient = appraised(learner, "central_difference")
    seen = torch.zeros(gradient.shape, dtype=torch.bool).scatter(1, context.blocks.context, True)
    assert (gradient[~seen] == 0).all() and (gradient[seen] != 0).all()


def test_valuing_leaves_the_learner_as_it_was():
    learner = tiny_learner()
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    learner.model.train()
    state = torch.get_rng_state()
    appraised(learner, "central_difference")
    assert all(module.training for module in learner.model.modules())
    assert not learner.target_encoder.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(p, before[name]) and p.grad is None
        for name, p in learner.model.named_parameters()
    )


@pytest.mark.parametrize("aligned_blocks", [1, 2])
def test_values_are_without_dropout(aligned_blocks):
    """Below S and in it: the loss on which a task is valued is that of evaluation mode, to the bit,
    every time.
    """
    torch.manual_seed(0)
    encoder = IJepaModel(
        IJepaConfig(**SIZES, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    )
    predictor = Predictor(32, width=16, depth=1, heads=2, seed=1)
    learner = IJepaLearner(
        encoder, predictor, aligned_blocks=aligned_blocks, blocks=BlockSettings()
    )
    context = learner.forward(Batch(images()))
    learner.model.train()
    point = {name: p.detach() for name, p in learner.aligned.items()}
    objective = learner.objective(context, baseline_task(context))
    valued = objective.loss(point, objective.inputs).detach()
    trained = learner.loss(context, baseline_task(context)).detach()
    learner.model.eval()
    assert torch.equal(valued, learner.loss(context, baseline_task(context)).detach())
    assert not torch.equal(valued, trained)


# What goes in and what comes out.


@pytest.mark.parametrize("family", sorted(ENCODERS))
def test_features_are_the_encoders_patches_in_their_places(family):
    learner = tiny_learner(family)
    features = learner.backbone.features(images())
    patches, pooled = features.patches, features.pooled
    tokens = learner.encoder(images()).last_hidden_state
    assert patches.shape == (3, 32, 4, 4) and pooled.shape == (3, 32)
    torch.testing.assert_close(patches[1, :, 2, 3], tokens[1, -16 + 2 * 4 + 3])
    # I-JEPA has no class token; the others do.
    expected = tokens.mean(dim=1) if family == "ijepa" else tokens[:, 0]
    torch.testing.assert_close(pooled, expected)
    pooled.sum().backward()
    assert all(p.grad is not None for p in learner.aligned.values())


def test_another_image_size_and_a_grid_that_is_not_square():
    learner = tiny_learner()
    wide = images(2, 64)[:, :, :48]
    assert learner.backbone.features(wide).patches.shape == (2, 32, 6, 8)
    context = learner.forward(Batch(wide))
    assert context.grid == (6, 8)
    learner.loss(context, some_task(context)).backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.model.parameters())


def test_bytes_are_normalised_by_channel():
    learner = tiny_learner(dtype=torch.float32)
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[:, 1] = 255
    expected = torch.tensor([-0.485 / 0.229, (1 - 0.456) / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(learner.forward(Batch(pixels)).pixels[0, :, 0, 0], expected)


def test_the_encoder_survives_a_folder(tmp_path):
    learner = tiny_learner(dtype=torch.float32)
    context = learner.forward(Batch(images()))
    learner.loss(context, baseline_task(context)).backward()
    torch.optim.SGD(learner.model.parameters(), lr=0.1).step()
    learner.encoder.save_pretrained(tmp_path)
    again = IJepaLearner(
        IJepaModel.from_pretrained(tmp_path),
        learner.predictor,
        aligned_blocks=1,
        blocks=BlockSettings(),
    )
    assert torch.equal(
        again.backbone.features(images()).patches, learner.backbone.features(images()).patches
    )


def test_a_patch_size_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"learner\.model.*8 x 8 pixels\n.*36 x 36"):
        tiny_learner().forward(Batch(images(1, 36)))


@pytest.mark.parametrize("aligned_blocks", [0, 3])
def test_blocks_that_are_not_there_are_refused(aligned_blocks):
    with pytest.raises(UserError, match=r"learner\.aligned_blocks[\s\S]*1 to 2"):
        tiny_learner(aligned_blocks=aligned_blocks)


def test_rotary_encoders_are_refused():
    torch.manual_seed(0)
    encoder = DINOv3ViTModel(DINOv3ViTConfig(**SIZES))
    with pytest.raises(UserError, match=r"learner\.model[\s\S]*I-JEPA"):
        IJepaLearner(
            encoder,
            Predictor(32, width=16, depth=1, heads=2, seed=0),
            aligned_blocks=1,
            blocks=BlockSettings(),
        )


def test_parts_that_do_not_add_up_are_refused():
    class Scaled(IJepaModel):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.last_hidden_state = 2 * out.last_hidden_state
            return out

    torch.manual_seed(0)
    with pytest.raises(UserError, match="Scaled"):
        IJepaLearner(
            Scaled(IJepaConfig(**SIZES)),
            Predictor(32, width=16, depth=1, heads=2, seed=0),
            aligned_blocks=1,
            blocks=BlockSettings(),
        )


# The predictor.


def test_predictions_depend_on_the_places_of_context_and_targets():
    predictor = Predictor(32, width=16, depth=2, heads=2, seed=1)
    states = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    context, targets = torch.tensor([[0, 1, 5]]), torch.tensor([[[2, 3], [6, 7]]])
    out = predictor(states, context, targets, 4)
    assert out.shape == (1, 2, 2, 32)
    assert (out[0, 0, 0] - out[0, 0, 1]).abs().max() > 1e-4
    assert (predictor(states, context + 8, targets, 4) - out).abs().max() > 1e-4
    # As a set: the order of the context patches is not read, their places are.
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(predictor(states[:, order], context[:, order], targets, 4), out)
    assert (predictor(states[:, order], context, targets, 4) - out).abs().max() > 1e-4


def test_a_predictor_is_made_by_its_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again = (Predictor(32, width=16, depth=1, heads=2, seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    with pytest.raises(UserError, match=r"learner\.predictor\.width"):
        Predictor(32, width=18, depth=1, heads=2, seed=1)
