"""The one-step probe on a tiny language model: it leaves everything as it was, and what it returns
and writes.
"""

import dataclasses
import hashlib
import json
import math
import random

import numpy
import pytest
import torch
from typer.testing import CliRunner

from tests.studies.small_recipe import TINY, tiny_recipe
from vpretrain.cli import app
from vpretrain.language import Language
from vpretrain.method.accumulation import MicroBatches
from vpretrain.studies.probe import IN_NATS, REALISED, Bench, probe
from vpretrain.system.errors import UserError


@pytest.fixture(scope="module")
def language_bench():
    """A tiny language model with dropout, after its burn-in."""
    recipe = tiny_recipe()
    return Bench(recipe, Language().build(recipe, Language().load(recipe)))


def everything(bench):
    """A digest of parameters, moments, learning rates, modes, gradients and generators."""
    digest = hashlib.sha256()
    for name, tensor in bench.learner.model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    for parameter, state in bench.step.optimizer.state.items():
        assert parameter.grad is None
        for key, value in state.items():
            digest.update(key.encode() + value.numpy().tobytes())
    modes = [module.training for module in bench.learner.model.modules()]
    rates = [group["lr"] for group in bench.step.optimizer.param_groups]
    digest.update(repr([modes, rates, random.getstate(), numpy.random.get_state()]).encode())
    digest.update(torch.get_rng_state().numpy().tobytes())
    return digest.hexdigest()


def test_a_draw_leaves_everything_bit_for_bit(language_bench):
    torch.manual_seed(5)
    before = everything(language_bench)
    point = language_bench.draw(0)
    assert everything(language_bench) == before
    assert (
        point.realised["adamw"] != 0 and point.realised["sgd_full"] != point.realised["sgd_aligned"]
    )
    language_bench.draw(1)
    assert everything(language_bench) == before


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_draw_that_fails_leaves_everything_too(language_bench, failing):
    before = everything(language_bench)
    parts, calls = language_bench.parts, []

    def fails():
        calls.append(1)
        if len(calls) == failing:
            raise RuntimeError("planted")
        return parts.held_out_loss()

    language_bench.parts = dataclasses.replace(parts, held_out_loss=fails)
    try:
        with pytest.raises(RuntimeError, match="planted"):
            language_bench.draw(0)
    finally:
        language_bench.parts = parts
    assert len(calls) == failing
    assert everything(language_bench) == before


def test_the_step_sees_the_dropout_of_its_gradient(language_bench):
    bench = language_bench
    with bench.unchanged():
        batch, pre = bench.next(3)
        bench.seed(3)
        bench.step(MicroBatches((batch,)), 1e-3)
        norm = math.sqrt(sum(float(g.square().sum()) for g in pre.values()))
        clip = min(1.0, bench.recipe.learner.clip_norm / norm)
        for name, parameter in bench.parameters.items():
            expected = 0.9 * bench.unchanged.moments[parameter]["exp_avg"] + 0.1 * clip * pre[name]
            torch.testing.assert_close(
                bench.step.optimizer.state[parameter]["exp_avg"], expected, rtol=1e-4, atol=1e-7
            )


def test_dropout_differs_from_draw_to_draw(language_bench):
    bench = language_bench
    with bench.unchanged():
        batch = next(bench.parts.stream)
        losses = []
        for index in (0, 0, 1):
            bench.seed(index)
            context = bench.learner.forward(batch)
            losses.append(
                float(
                    bench.learner.loss(
                        context, bench.parts.designer.baseline_task(context)
                    ).detach()
                )
            )
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("batch_size", [7, 64])
def test_the_held_out_loss_is_the_evaluated_one(batch_size):
    """In pieces that add up to it, whatever their size, without dropout, and with the gradient of
    the whole.
    """
    recipe = tiny_recipe(f"evaluate.batch_size={batch_size}")
    parts = Language().build(recipe, Language().load(recipe))
    state = torch.get_rng_state()
    pieces = list(parts.held_out_loss())
    assert torch.equal(torch.get_rng_state(), state)
    assert len(pieces) == math.ceil(40 / batch_size)
    assert float(sum(pieces).detach()) == pytest.approx(
        parts.evaluate()["test/nll"].value, rel=1e-6
    )
    assert parts.learner.model.training
    sum(pieces).backward()
    assert all(p.grad is not None for p in parts.learner.aligned.values())


def test_feedback_that_is_matched_to_sources_is_refused():
    rows = "{kind: word_problems, split: feedback, rows: 64}"
    recipe = tiny_recipe(
        "data.feedback.rows=null",
        f"data.feedback.tasks={{sums: {{kind: likelihood, rows: {rows}, sources: [problems]}}}}",
    )
    parts = Language().build(recipe, Language().load(recipe))
    with pytest.raises(UserError, match="without `sources`"):
        Bench(recipe, parts)


def test_what_probe_returns_and_writes(tmp_path):
    seen = []
    overrides = ["arm=closed_form"]  # ignored
    result = probe(
        tiny_recipe(*overrides),
        draws=6,
        out=tmp_path / "a" / "b",
        progress=lambda done, total: seen.append((done, total)),
    )
    folder = tmp_path / "a" / "b"
    assert seen == [(i, 6) for i in range(1, 7)]
    assert result["draws"] == 6
    assert {"sgd_aligned", "sgd_full", "adamw_plain", "adamw_preconditioned"} <= set(
        result["pearson"]
    )
    assert set(result["pearson"]) == set(result["ci95"]) == set(REALISED) and set(
        result["slope"]
    ) == set(IN_NATS)
    assert result["pearson"]["sgd_full"] > 0.9
    assert 0 <= result["lower_bound"]["share_holding"] <= 1
    assert json.loads((folder / "probe.json").read_text()) == json.loads(json.dumps(result))
    points = json.loads((folder / "points.json").read_text())
    assert all(
        len(column) == 6 for part in ("predicted", "realised") for column in points[part].values()
    )
    assert len(set(points["batch"])) == 6
    assert (folder / "scatter.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "scatter.svg").read_text()[:2000]
    again = probe(tiny_recipe(), draws=6, out=tmp_path / "again")
    assert again["pearson"] == result["pearson"]
    assert (tmp_path / "again" / "points.json").read_bytes() == (
        folder / "points.json"
    ).read_bytes()


def test_the_verb(tmp_path):
    command = [
        "probe",
        "demo-language",
        *TINY,
        "--draws",
        "4",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert results["draws"] == 4 and "sgd_aligned" in result.stderr
    too_few = CliRunner().invoke(app, ["probe", "demo-language", "--draws", "3"])
    assert too_few.exit_code == 2
