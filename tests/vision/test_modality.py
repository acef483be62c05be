"""Whole runs on tiny backbones: the information bottlenecks, the baselines, and the studies."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from tests.designers import arms_of
from tests.vision.conftest import KINDS, tiny_recipe, trained, weights_hash
from vpretrain.config.arms import CONTROLS
from vpretrain.method import vectors
from vpretrain.method.accumulation import next_batches
from vpretrain.method.estimators import NAMES
from vpretrain.run.build import new_step
from vpretrain.studies.compare import compare
from vpretrain.studies.doctor import doctor
from vpretrain.vision import Vision, modality
from vpretrain.vision.feedback.features import images_for
from vpretrain.vision.steering.arms import ARMS, DEMO
from vpretrain.vision.steering.views import BaselineViews

OF = {kind: arms_of(ARMS, kind) for kind in ("dino", "ijepa")}
METRICS = {
    "test/miou",
    "test/probe_cross_entropy",
    "test/depth_rmse",
    "test/depth_abs_rel",
    "test/depth_delta_1",
    "test/accuracy",
    "test/knn",
}

# a guard that closes on bad gains is a way, if a narrow one, from labels to the learner
OPEN = "value.guard_window=0"


@pytest.fixture(scope="module")
def plain(materials):
    return {kind: trained(materials[kind], "arm=plain", kind=kind) for kind in KINDS}


IN_FULL = {*OF["ijepa"]} - {"plain", "ascent", "uneven_masks", "patch_weights"}
"""Arms of I-JEPA whose like is tried here, or under DINO; with ``-m slow``."""


@pytest.mark.parametrize(
    ("kind", "arm"),
    [
        pytest.param(
            kind, arm, marks=[pytest.mark.slow] if kind == "ijepa" and arm in IN_FULL else []
        )
        for kind in KINDS
        for arm in OF[kind]
    ],
)
def test_every_arm_trains_and_sees_the_same_stream(kind, arm, materials, plain):
    before = weights_hash(Vision().build(tiny_recipe(kind=kind), materials[kind]))
    after, result = trained(materials[kind], f"arm={arm}", kind=kind)
    assert after != before
    if arm not in CONTROLS:  # whose batches may not agree at all, and then nothing is steered
        assert (after != plain[kind][0]) == (arm != "plain")
    assert result.spent.steps == 2 and result.spent.tokens == 8
    assert set(result.final) == METRICS
    assert result.stream_digest == plain[kind][1].stream_digest
    assert all(torch.isfinite(torch.tensor(record["loss"])) for record in result.history)
    uses_feedback = arm not in (
        "plain",
        "direct",
        "constant_mask",
        "random_masks",
        "uniform_smoothing",
    )
    figures = {"gain", "agreement"} | ({"gate"} if arm != "chosen_crops" else set())
    assert all((figures <= record.keys()) == uses_feedback for record in result.history)


def test_masks_say_whether_they_have_collapsed(materials):
    record = trained(materials["dino"], "arm=ascent")[1].history[-1]
    assert {"mask_mean", "mask_std", "mask_spread", "mask_total_variation"} <= record.keys()
    assert (
        record["mask_mean"] == pytest.approx(tiny_recipe().designer.keep_ratio, abs=0.05)
        and record["mask_std"] > 0
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_plain_runs_are_the_same_bit_for_bit(kind, materials, plain):
    again, result = trained(materials[kind], "arm=plain", kind=kind)
    assert again == plain[kind][0] and result.final == plain[kind][1].final
    assert trained(materials[kind], "arm=plain", "seed=1", kind=kind)[0] != again


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_small_steps_are_not_lost_in_bfloat16(kind, materials):
    """Arithmetic is in bfloat16; a weight of 0.02 kept in it would not move by 4e-6."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        recipe = tiny_recipe("arm=plain", f"learner.dtype={dtype}", kind=kind)
        parts = Vision().build(recipe, materials[kind])
        before = {name: p.detach().clone() for name, p in parts.learner.aligned.items()}
        losses[dtype] = new_step(recipe, parts)(next_batches(parts.stream, 1), 4e-6)["loss"]
        after = parts.learner.aligned
        assert all(p.dtype == torch.float32 for p in after.values())
        assert (
            min((after[name] != p).float().mean() for name, p in before.items() if p.ndim > 1) > 0.9
        )
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=2e-2)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_labels_reach_the_learner_through_the_designer_alone(kind, materials):
    """With a frozen designer permuted labels leave the learner bit-identical; with one that learns
    they do not.
    """
    description = ["designer.kind=ascent", OPEN, "budget.steps=3"]
    runs = {
        (rate, arm): trained(
            materials[kind], *description, f"designer.learning_rate={rate}", f"arm={arm}", kind=kind
        )[0]
        for rate in (0, 1e-2)
        for arm in ("ascent", "shuffled_feedback")
    }
    assert runs[0, "ascent"] == runs[0, "shuffled_feedback"]
    assert len(set(runs.values())) == 3


@pytest.mark.parametrize(
    ("kind", "arm", "off"),
    [
        ("dino", "constant_mask", "designer.keep_ratio=1"),
        ("dino", "random_masks", "designer.keep_ratio=1"),
        ("dino", "closed_form", "designer.gate_max=0"),
        ("dino", "view_weights", "designer.tilt=0"),
        ("dino", "uniform_smoothing", "designer.control_gate=0"),
        ("ijepa", "constant_mask", "designers.constant_mask.keep_ratio=1"),
        ("ijepa", "random_masks", "designers.random_masks.keep_ratio=1"),
        ("ijepa", "patch_weights", "designer.tilt=0"),
    ],
)
def test_switched_off_is_the_plain_run_bit_for_bit(kind, arm, off, materials, plain):
    assert trained(materials[kind], f"arm={arm}", off, kind=kind)[0] == plain[kind][0]


def test_direct_adds_the_feedback_gradient_and_nothing_else(materials):
    parts = Vision().build(tiny_recipe("arm=direct", "designer.direct_weight=3"), materials["dino"])
    direct, feedback = parts.learner, parts.learner.feedback
    context = direct.forward(next(parts.stream))
    start = feedback.state_dict()["drawn"]
    torch.manual_seed(
        0
    )  # DINOv3 draws from it while it trains: its positions are rescaled at random
    pushed = direct.loss(context, BaselineViews())
    names, aligned = zip(*direct.aligned.items(), strict=True)
    with_labels = torch.autograd.grad(pushed, aligned)
    torch.manual_seed(0)
    alone = direct.learner.loss(context, BaselineViews())
    without = torch.autograd.grad(alone, aligned)
    assert (
        pushed.item() == pytest.approx(alone.item(), rel=1e-6)
        and feedback.state_dict()["drawn"] != start
    )
    fresh = Vision().build(tiny_recipe("arm=direct"), materials["dino"])
    down = vectors.mean(fresh.learner.feedback.gradients(fresh.learner.learner))
    for name, a, b in zip(names, with_labels, without, strict=True):
        assert torch.allclose(a - b, 3 * down[name], atol=1e-5)
    assert set(names) <= {name for name, _ in direct.model.named_parameters()}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_feedback_and_probes_normalise_as_the_learner_does(kind, materials, monkeypatch):
    """Encoders of CLIP and SigLIP, for example, are used to other numbers than ImageNet's."""
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)
    changed = [f"learner.crops.mean={list(mean)}", f"learner.crops.std={list(std)}"]
    probed = []
    monkeypatch.setattr(modality, "evaluate", lambda recipe, sets, encoder: probed.append(encoder))
    fresh = modality.Materials(materials[kind].location, materials[kind].sets)
    parts = Vision().build(tiny_recipe("arm=ascent", *changed, kind=kind), fresh)
    parts.evaluate()
    picture = fresh.sets.evaluation[0]
    wanted = (picture.pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    for encoder in (*probed, parts.held_out_loss.feedback.encoder(parts.learner)):
        torch.testing.assert_close(images_for(encoder, [picture])[0], wanted)
    assert len(probed) == 1


def test_held_out_loss_moves_with_the_learner_alone(materials):
    parts = Vision().build(tiny_recipe("arm=plain"), materials["dino"])

    def loss():
        return sum(float(piece.detach()) for piece in parts.held_out_loss())

    before = loss()
    parts.feedback.gradients(parts.learner)  # its heads train
    assert loss() == before
    with torch.no_grad():
        for parameter in parts.learner.aligned.values():
            parameter.mul_(1.1)
    assert loss() != before


def test_held_out_pictures_are_of_every_task(materials, monkeypatch):
    """As where sets with labels and sets with depth follow each other in a recipe."""
    monkeypatch.setattr(modality, "HELD_OUT_PICTURES", 4)
    given = materials["dino"].sets.evaluation
    evaluation = [replace(p, depth=None) for p in given] + [replace(p, labels=None) for p in given]
    sets = replace(materials["dino"].sets, evaluation=evaluation)
    parts = Vision().build(tiny_recipe("arm=plain"), replace(materials["dino"], sets=sets))
    asked = []
    feedback = parts.held_out_loss.feedback
    monkeypatch.setattr(feedback, "held_out_loss", lambda learner, pictures: asked.append(pictures))
    parts.held_out_loss()
    parts.held_out_batch(1)
    for pictures in asked:
        assert [sum(task.has(p) for p in pictures) for task in feedback.tasks] == [2, 2]
    assert asked[0][0] is evaluation[0] and asked[0][1] is evaluation[len(given)]


def test_held_out_heads_are_made_once_a_build(materials, monkeypatch):
    parts = Vision().build(tiny_recipe("arm=plain"), materials["dino"])
    made, build = [], modality.DenseFeedback
    monkeypatch.setattr(modality, "DenseFeedback", lambda *a, **k: made.append(1) or build(*a, **k))
    for _ in range(2):
        list(parts.held_out_loss())
        list(parts.held_out_batch(0))
    assert len(made) == 1


def test_compare_writes_the_table(tmp_path):
    arms = ["plain", "ascent", "direct"]
    small = tiny_recipe("evaluate.probe={steps: 1, batch_size: 4, train_size: [4, 4]}")
    compare(small, arms=arms, seeds=2, match="steps", out=tmp_path)
    table = json.loads((tmp_path / "compare.json").read_text())
    assert table["modality"] == "vision" and table["metrics"]["test/depth_rmse"] == {
        "higher_is_better": False
    }
    assert set(table["step0"]) == METRICS and table["step0"]["test/miou"].keys() == {
        "value",
        "stderr",
        "n",
    }
    assert [(run["arm"], run["seed"]) for run in table["runs"]] == [
        (arm, seed) for seed in (0, 1) for arm in arms
    ]
    for run in table["runs"]:
        assert run["steps"] == 2 and run["tokens_or_images"] == 8 and set(run["final"]) == METRICS
    flops = {run["arm"]: run["flops"] for run in table["runs"]}
    assert 0 < flops["plain"] < flops["direct"] and flops["plain"] < flops["ascent"]
    assert len({run["stream_digest"] for run in table["runs"]}) == 2
    assert set(table["summary"]) == set(arms)
    assert set(table["paired"]) == {"ascent", "direct"}
    assert {"difference", "ci95", "p_holm", "verdict"} <= table["paired"]["ascent"][
        "test/miou"
    ].keys()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_doctor_finds_every_estimator_right(kind):
    result = doctor(tiny_recipe(kind=kind))
    assert [row["name"] for row in result["estimators"]] == list(NAMES)
    assert all(row["supported"] and row["cosine"] > 0.999 for row in result["estimators"])


def test_the_demo_shows_the_baseline_first():
    assert DEMO[0] == next(iter(ARMS.all)) == "plain" and set(DEMO) <= set(ARMS.all)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_settling_moves_nothing_of_the_learner(kind, materials):
    recipe = tiny_recipe("arm=plain", kind=kind)
    parts = Vision().build(recipe, materials[kind])
    before = copy.deepcopy([parts.learner.state_dict(), parts.learner.model.state_dict()])
    new_step(recipe, parts)(next_batches(parts.stream, 1), 0.0)
    for was, now in zip(
        before, (parts.learner.state_dict(), parts.learner.model.state_dict()), strict=True
    ):
        torch.testing.assert_close(now, was, rtol=0, atol=0)


def test_with_wrong_labels_the_held_out_heads_are_those_of_every_arm(materials):
    """They learn true labels from the learner as it begins, and not where it has got to."""
    states = []
    for arm in ("ascent", "shuffled_feedback"):
        fresh = modality.Materials(materials["dino"].location, materials["dino"].sets)
        parts = Vision().build(tiny_recipe(f"arm={arm}"), fresh)
        with torch.no_grad():
            for parameter in parts.learner.aligned.values():
                parameter.mul_(2.0)
        states.append(parts.held_out_loss.feedback.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "key", "name"),
    [
        ("dino", "learner.error=squared", "error"),
        ("dino", "learner.predictor.depth=2", "predictor"),
        ("ijepa", "learner.centering=sinkhorn", "centering"),
    ],
)
def test_keys_that_this_kind_of_learner_does_not_read_are_warned_of(kind, key, name):
    warnings = Vision().load(tiny_recipe(key, kind=kind)).sets.warnings
    said = {each.where: each.message for each in warnings}
    assert f"kind {kind} does not read this key" in said[f"learner.{name}"]
    assert f"learner.{name}" not in {
        each.where for each in Vision().load(tiny_recipe(kind=kind)).sets.warnings
    }
