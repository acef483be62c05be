"""I-JEPA's loss against its loops, and what of a picture reaches it."""

import pytest
import torch

from tests.vision.ijepa.small_learner import Batch, images, some_task, tiny_learner
from vpretrain.vision.ijepa.learner import IJepaTask, baseline_task, prediction_loss


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
