"""The feedback of vision: its gradient is that of eq. 51 and nothing of the learner moves."""

import copy
import dataclasses
import types
from operator import attrgetter

import pytest
import torch
from torch import nn

from vpretrain.method import vectors
from vpretrain.method.roles import Gradient
from vpretrain.system.errors import UserError
from vpretrain.vision.backbone import Backbone, Features, aligned_parameters
from vpretrain.vision.data.images import (
    IGNORE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Picture,
    normalised,
)
from vpretrain.vision.feedback import gradient as module
from vpretrain.vision.feedback.features import LastBlocks
from vpretrain.vision.feedback.gradient import DenseFeedback, HeadSettings
from vpretrain.vision.feedback.pools import shuffled
from vpretrain.vision.feedback.tasks import Classification, Depth, Segmentation
from vpretrain.vision.loading import new_model

CLASSES, WIDTH, SIDE = 3, 6, 8
UNTRAINED = HeadSettings(steps=0, batch_size=4, learning_rate=1e-2)
TASKS = {Segmentation(CLASSES): 2.0, Depth(): 0.5}


class Encoder:
    """Patches of 4 pixels, dropout, and one more layer; pooled is their mean."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        self.model = nn.Sequential(
            nn.Conv2d(3, WIDTH, 4, stride=4), nn.Tanh(), nn.Dropout(0.5), nn.Conv2d(WIDTH, WIDTH, 1)
        )
        for parameter in self.model.parameters():
            parameter.data.normal_(std=0.5, generator=generator)
        self.model.to(dtype).train()

    def features(self, images):
        patches = self.model(images)
        return Features(patches, patches.mean(dim=(2, 3)))


def new_learner(**options):
    encoder = Encoder(**options)
    aligned = {name: p for name, p in encoder.model.named_parameters() if name.startswith("3.")}
    return types.SimpleNamespace(model=encoder.model, aligned=aligned, backbone=encoder)


def pictures(count, start=0, side=SIDE):
    """Labels and depth follow from brightness, so that there is something to learn."""
    result = []
    for at in range(start, start + count):
        generator = torch.Generator().manual_seed(at)
        coarse = torch.randint(
            0, 256, (3, side // 4, side // 4), generator=generator, dtype=torch.uint8
        )
        pixels = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
        labels = (pixels[0].long() * CLASSES) // 256
        depth = 1 + pixels[1].float() / 64
        labels[0, : at % 4], depth[1, : 1 + at % 3] = IGNORE, float("nan")
        result.append(Picture(f"train/{at}", pixels, labels, depth, int(labels[-1, -1])))
    return result


def new_feedback(train=None, meta=None, tasks=TASKS, **changed):
    settings = {
        "width": WIDTH,
        "heads": HeadSettings(steps=3, batch_size=4, learning_rate=1e-2),
        "batch_size": 3,
        "batches": 2,
        "seed": 0,
        "encoder": attrgetter("backbone"),
    } | changed
    train = pictures(8) if train is None else train
    return DenseFeedback(train, pictures(6, 100) if meta is None else meta, tasks, **settings)


def flat(gradient: Gradient):
    return torch.cat([piece.flatten() for piece in gradient.values()])


def test_the_gradient_is_that_of_the_whole_computation_written_out(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_PICTURES", 2)  # batches of 3 then come in two pieces
    learner = new_learner(dtype=torch.float64)
    feedback = new_feedback(heads=UNTRAINED)
    feedback.heads.double()
    feedback.warm_up(learner, 5)
    heads = {name: copy.deepcopy(head).eval() for name, head in feedback.heads.items()}
    result = feedback.gradients(learner)
    twin = new_learner(dtype=torch.float64)
    twin.model.eval()
    for gradient, (pool,) in zip(result, feedback.meta, strict=True):
        losses = {"segmentation": [], "depth": []}
        for picture in pool.pictures:
            patches = twin.model(normalised([picture]).double())[0]
            for name, head in heads.items():
                norm = head.norm
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                normal = (patches - norm.running_mean[:, None, None]) * scale[
                    :, None, None
                ] + norm.bias[:, None, None]
                coarse = torch.einsum("od,dyx->oyx", head.weight, normal) + head.bias[:, None, None]
                out = nn.functional.interpolate(
                    coarse[None], (SIDE, SIDE), mode="bilinear", align_corners=False
                )[0]
                for y in range(SIDE):
                    for x in range(SIDE):
                        label, depth = int(picture.labels[y, x]), float(picture.depth[y, x])
                        if name == "segmentation" and label != IGNORE:
                            losses[name].append(-out[:, y, x].log_softmax(dim=0)[label])
                        if name == "depth" and depth == depth:
                            losses[name].append((out[0, y, x].exp().log1p() - depth).abs())
        assert len(losses["segmentation"]) != len(
            losses["depth"]
        )  # each is a mean over its own pixels
        whole = (
            2.0 * torch.stack(losses["segmentation"]).mean()
            + 0.5 * torch.stack(losses["depth"]).mean()
        )
        expected = torch.autograd.grad(whole, list(twin.aligned.values()))
        for name, want in zip(twin.aligned, expected, strict=True):
            torch.testing.assert_close(gradient[name], want, rtol=1e-8, atol=1e-12)


def test_nothing_of_the_learner_moves():
    learner = new_learner()
    marked = learner.aligned["3.weight"]
    marked.grad = torch.full_like(marked, 7.0)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    frozen_already = learner.model[0].bias.requires_grad_(False)
    feedback = new_feedback()
    state = torch.get_rng_state()
    feedback.warm_up(learner, 3)
    with torch.no_grad():  # whatever the caller's mode
        result = feedback.gradients(learner)
    assert torch.equal(torch.get_rng_state(), state)
    assert (marked.grad == 7).all()
    assert all(p.grad is None for p in learner.model.parameters() if p is not marked)
    assert all(torch.equal(p, before[name]) for name, p in learner.model.named_parameters())
    assert all(m.training for m in learner.model.modules())
    assert [p.requires_grad for p in learner.model.parameters()] == [True, False, True, True]
    assert not frozen_already.requires_grad
    assert all(p.requires_grad for p in feedback.heads.parameters())
    assert not any(piece.requires_grad for gradient in result for piece in gradient.values())
    assert len(result) == 2 and all(set(gradient) == set(learner.aligned) for gradient in result)


def test_the_direction_helps_on_pictures_that_it_did_not_see():
    feedback = new_feedback(pictures(40), pictures(40, 100), batch_size=20)
    learner, fresh = new_learner(), pictures(30, 500)
    feedback.warm_up(learner, 100)

    def loss():
        with torch.no_grad():
            return float(sum(feedback.held_out_loss(learner, fresh)))

    down, before = vectors.mean(feedback.gradients(learner)), loss()
    size = float(vectors.norm(down))
    with torch.no_grad():
        for name, parameter in learner.aligned.items():
            parameter -= 0.05 / size * down[name]
    assert loss() < before


def test_warm_up_teaches_the_heads():
    learner, feedback, fresh = new_learner(), new_feedback(), pictures(12, 500)
    before = float(sum(piece.detach() for piece in feedback.held_out_loss(learner, fresh)))
    feedback.warm_up(learner, 150)
    after = float(sum(piece.detach() for piece in feedback.held_out_loss(learner, fresh)))
    assert after < 0.9 * before


def test_held_out_loss_has_its_graph_to_the_learner(monkeypatch):
    learner, feedback, fresh = new_learner(), new_feedback(), pictures(5, 500)
    whole = torch.autograd.grad(
        sum(feedback.held_out_loss(learner, fresh)), list(learner.model.parameters())
    )
    monkeypatch.setattr(module, "CHUNK_PICTURES", 2)
    pieces = list(feedback.held_out_loss(learner, fresh))
    assert len(pieces) == 3
    for result, want in zip(
        torch.autograd.grad(sum(pieces), list(learner.model.parameters())), whole, strict=True
    ):
        torch.testing.assert_close(result, want, rtol=1e-4, atol=1e-6)
    assert all(piece.abs().sum() > 0 for piece in whole)


def test_the_same_seed_says_the_same_and_another_does_not():
    def direction(seed):
        torch.manual_seed(seed + 50)  # the global generator has no say
        feedback = new_feedback(seed=seed)
        learner = new_learner()
        return [flat(g) for _ in range(2) for g in feedback.gradients(learner)]

    one, same, other = direction(0), direction(0), direction(1)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


def test_resuming_is_exact():
    learner = new_learner()
    whole, resumed = (new_feedback(meta=pictures(20, 100)) for _ in range(2))
    whole.warm_up(learner, 3)
    whole.gradients(learner)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for a, b in zip(whole.gradients(learner), resumed.gradients(learner), strict=True):
        assert torch.equal(flat(a), flat(b))


def test_meta_batches_never_share_a_picture():
    feedback = new_feedback(meta=pictures(11, 100))
    first, second = (
        {picture.name for _ in range(8) for picture in fraction[0].draw()}
        for fraction in feedback.meta
    )
    assert len(first) + len(second) == 11 and not first & second


def test_a_picture_is_in_one_batch_for_all_of_its_tasks():
    """Else batches would agree on a picture, though a task lacks its targets on a few others."""
    meta = pictures(12, 100)
    meta[3], meta[7] = (dataclasses.replace(meta[at], labels=None) for at in (3, 7))
    feedback = new_feedback(meta=meta)
    shares = [{p.name for pool in pools for p in pool.pictures} for pools in feedback.meta]
    assert not shares[0] & shares[1] and len(shares[0] | shares[1]) == 12
    for pools in feedback.meta:
        held = {task.name: len(pool.pictures) for pool in pools for task in pool.tasks}
        assert held == {"segmentation": 5, "depth": 6}


@pytest.mark.parametrize("task", [Segmentation(CLASSES), Depth(), Classification(CLASSES)])
def test_other_labels_give_another_gradient(task):
    learner = new_learner()
    train, meta = pictures(8), pictures(6, 100)

    def direction(train, meta):
        feedback = new_feedback(train, meta, {task: 1.0})
        feedback.warm_up(learner, 10)
        return torch.stack([flat(g) for g in feedback.gradients(learner)]).mean(dim=0)

    plain = direction(train, meta)
    assert not torch.allclose(plain, direction(shuffled(train, 0), meta), rtol=1e-2)
    assert not torch.allclose(plain, direction(train, shuffled(meta, 0)), rtol=1e-2)


def test_tasks_of_two_data_sets_add_up():
    """Labels in some pictures, depth in others of another size: L_down is the weighted sum (eq.
    51).
    """
    learner = new_learner(dtype=torch.float64)
    tasks = list(TASKS)

    def split(count, start):
        labelled = [dataclasses.replace(p, depth=None) for p in pictures(count, start)]
        return labelled, [
            dataclasses.replace(p, labels=None) for p in pictures(count, start + 1000, side=12)
        ]

    def direction(train, meta, tasks):
        feedback = new_feedback(train, meta, tasks, heads=UNTRAINED)
        feedback.heads.double()
        for task in tasks:
            generator = torch.Generator().manual_seed(9)
            feedback.heads[task.name].weight.data.normal_(generator=generator)
        return flat(vectors.mean(feedback.gradients(learner)))

    (seg_train, dep_train), (seg_meta, dep_meta) = split(8, 0), split(6, 100)
    both = direction(seg_train + dep_train, seg_meta + dep_meta, TASKS)
    alone = [
        direction(seg_train, seg_meta, {tasks[0]: 1.0}),
        direction(dep_train, dep_meta, {tasks[1]: 1.0}),
    ]
    torch.testing.assert_close(both, 2.0 * alone[0] + 0.5 * alone[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 2])
def test_on_a_transformer_every_part_of_S_is_reached(blocks):
    """Also through the features of several blocks, and S alone asks for gradients while they are
    taken.
    """
    model = new_model(
        {
            "model_type": "dinov3_vit",
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "image_size": 16,
            "patch_size": 4,
            "initializer_range": 0.2,
            "num_register_tokens": 1,
        },
        dtype=torch.float32,
        attention="sdpa",
    )
    backbone = Backbone(model)
    aligned = aligned_parameters(backbone, blocks=2, patterns=[])
    learner = types.SimpleNamespace(model=model, aligned=aligned, backbone=backbone)
    feedback = new_feedback(
        pictures(6, side=16),
        pictures(6, 100, side=16),
        TASKS | {Classification(CLASSES): 1.0},
        width=16 * blocks,
        encoder=lambda learner: LastBlocks(learner.backbone, blocks),
    )
    feedback.warm_up(learner, 3)
    state, asking = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    result = feedback.gradients(learner)
    assert (
        torch.equal(torch.get_rng_state(), state)
        and [p.requires_grad for p in model.parameters()] == asking
    )
    assert all(gradient.keys() == aligned.keys() for gradient in result)
    # No key bias changes an attention; all else does.
    silent = {name for name, piece in result[0].items() if piece.abs().max() < 1e-12}
    assert all("k_proj.bias" in name for name in silent)
    assert not torch.allclose(flat(result[0]), flat(result[1]), rtol=1e-2)


def test_narrow_parameters_give_wide_gradients():
    result = new_feedback().gradients(new_learner(dtype=torch.bfloat16))
    assert all(
        piece.dtype == torch.float32 and piece.isfinite().all()
        for g in result
        for piece in g.values()
    )


def test_shuffled_gives_every_picture_the_targets_of_another():
    given = (
        pictures(9)
        + [dataclasses.replace(p, depth=None) for p in pictures(2, 50)]
        + pictures(2, 60, side=12)
    )
    result = shuffled(given, 1)
    owners = {id(p.labels): at for at, p in enumerate(given)}
    donors = [owners[id(p.labels)] for p in result]
    assert sorted(donors) == list(range(13)) and all(donor != at for at, donor in enumerate(donors))
    for at, (p, donor) in enumerate(zip(result, donors, strict=True)):
        assert p.pixels is given[at].pixels and p.name == given[at].name
        assert p.depth is given[donor].depth and p.category == given[donor].category
    assert [owners[id(p.labels)] for p in shuffled(given, 1)] == donors
    assert [owners[id(p.labels)] for p in shuffled(given, 2)] != donors


def without(kind, value=None):
    return [dataclasses.replace(p, **{kind: value}) for p in pictures(8)]


NOWHERE = torch.full((SIDE, SIDE), float("nan"))


@pytest.mark.parametrize(
    ("changes", "where", "said"),
    [
        ({"meta": pictures(5, 100) + pictures(1)}, "data.feedback.meta", "train/0"),
        (
            {
                "meta": [
                    *pictures(5, 100),
                    dataclasses.replace(pictures(1)[0], name="copy", labels=None),
                ]
            },
            ".meta",
            "copy",
        ),
        (
            {"meta": [*pictures(5, 100), dataclasses.replace(pictures(1, 105)[0], name="train/3")]},
            ".meta",
            "train/3",
        ),
        ({"train": []}, "data.feedback.train", "segmentation"),
        ({"meta": []}, "data.feedback.meta", "depth"),
        ({"train": without("depth", NOWHERE)}, "data.feedback.train", "metres"),
        ({"train": without("labels")}, "data.feedback.train", "segmentation"),
        ({"train": pictures(1)}, "data.feedback.train", "at least 2"),
        ({"meta": pictures(5, 100)}, "data.feedback.meta", "at least 6"),
        ({"tasks": {Segmentation(2): 1.0}}, "data.feedback.train", "0 to 1"),
        ({"tasks": {}}, "data.feedback.tasks", "no loss"),
        ({"tasks": {Depth(): 0.0}}, "data.feedback.tasks", "above 0"),
        ({"tasks": {Depth(): 1.0, Depth("l2"): 1.0}}, "data.feedback.tasks", "different names"),
        ({"batches": 1}, "data.feedback.batches", "2 or more"),
    ],
)
def test_a_set_that_cannot_teach_is_refused(changes, where, said):
    with pytest.raises(UserError) as refused:
        new_feedback(**changes)
    assert where in str(refused.value) and said in str(refused.value)
