"""The paper's probe: a run's own steps against fresh held-out batches, and a run that does not
notice."""

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

from tests.studies.small_recipe import TINY, tiny_recipe
from vpretrain.cli import app
from vpretrain.language import Language
from vpretrain.method import vectors
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.studies import probe_along
from vpretrain.studies.one_step import loss_of
from vpretrain.system.errors import UserError

STEERED = ("arm=closed_form", "designer.candidates=8", "value.meta_period=2", "budget.steps=4")


def parts_of(recipe):
    return Language().build(recipe, Language().load(recipe))


def stopped(recipe):
    """A run at its first point."""
    return next(probe_along._points(recipe, parts_of(recipe), 2))


def test_the_run_goes_on_as_if_nobody_had_looked():
    recipe = tiny_recipe(*STEERED)
    parts, alone = parts_of(recipe), parts_of(recipe)
    for index, point in enumerate(probe_along._points(recipe, parts, 2)):
        for draw in range(2):
            point.draw(draw, lambda at=2 * index + draw: probe_along.held_out_batches(parts)(at))
    train(Run(recipe, alone, step0={}))
    other = alone.learner.model.state_dict()
    for name, tensor in parts.learner.model.state_dict().items():
        assert torch.equal(tensor, other[name]), name
    assert parts.stream.state_dict() == alone.stream.state_dict()


def test_it_is_the_step_of_the_runs_own_task():
    """Predicted is eta <g_down, g_pre> of the held-out batch and of the designer's task."""
    point = stopped(tiny_recipe(*STEERED, "learner.config.attention_dropout=0.0"))
    held_out = lambda: probe_along.held_out_batches(point.parts)(3)  # noqa: E731
    point.leave()  # the stream where the run left it, and no draw before this one to compare with
    with point.unchanged():
        batch, steered = point.next(0)
        context = point.learner.forward(batch)
        plain = point.parts.designer.baseline_task(context)
        loss = point.learner.loss(context, plain)
        gradients = torch.autograd.grad(loss, list(point.parameters.values()))
        down = point.gradient(held_out())
    point.leave()
    draw = point.draw(0, held_out)
    expected = float(point.rate * vectors.inner(down, steered))
    assert draw.predicted["sgd_full"] == pytest.approx(expected, rel=1e-5)
    of_plain = point.rate * vectors.inner(down, vectors.named(point.parameters, gradients))
    assert draw.predicted["sgd_full"] != pytest.approx(float(of_plain), rel=1e-3)
    assert draw.realised["sgd_full"] == pytest.approx(expected, rel=0.2)


def test_an_arm_that_chooses_what_is_trained_on_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"(?s)chooses what is trained on.*greats_topk"):
        probe_along.probe_along(tiny_recipe("arm=greats_topk"), points=1, draws=4, out=tmp_path)


def test_every_draw_has_a_held_out_batch_of_its_own():
    parts = parts_of(tiny_recipe("data.feedback.batch_size=10"))
    batch = probe_along.held_out_batches(parts)
    losses = [loss_of(batch(draw)) for draw in range(4)]  # of 40 rows
    assert len(set(losses)) == 4 and losses[0] == loss_of(batch(0))
    pieces = lambda: iter([torch.tensor(0.0), torch.tensor(1.0)])  # noqa: E731
    without = dataclasses.replace(parts, held_out_batch=None, held_out_loss=pieces)
    assert [loss_of(probe_along.held_out_batches(without)(n)) for n in range(3)] == [0, 1, 0]


def test_every_point_is_come_to_once():
    """Also where a step is a part whose decimal fraction float64 does not hold."""
    for steps, points in ((100, 50), (50, 50), (300, 7), (7, 300)):
        reached = [probe_along._reached(step / steps, points) for step in range(steps + 1)]
        assert reached == [step * points // steps for step in range(steps + 1)]


def test_the_verb(tmp_path):
    command = ["probe", "demo-language", *TINY, *STEERED, "--along", "2", "--draws", "4"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert results == json.loads((tmp_path / "probe.json").read_text())
    assert (results["arm"], results["points"], results["draws"]) == ("closed_form", 2, 4)
    assert [point["step"] for point in results["along"]] == [2, 4]
    for figures in (results, *results["along"]):
        assert set(figures["pearson"]) == {"sgd_aligned", "sgd_full"}
        assert all(-1 <= r <= 1 for r in figures["pearson"].values())
    assert len(json.loads((tmp_path / "points.json").read_text())) == 8
    assert (tmp_path / "scatter.svg").is_file()
    assert "all" in result.stderr and "held-out" in result.stderr
