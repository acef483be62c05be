"""I-JEPA's learner: the target encoder by hand, what goes in and comes out, and what is refused."""

import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel, IJepaConfig, IJepaModel

from tests.vision.ijepa.small_learner import ENCODERS, SIZES, Batch, images, some_task, tiny_learner
from vpretrain.system.errors import UserError
from vpretrain.vision.ijepa.blocks import BlockSettings
from vpretrain.vision.ijepa.learner import IJepaLearner, baseline_task
from vpretrain.vision.ijepa.predictor import Predictor

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
