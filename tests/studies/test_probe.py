"""The one-step probe: it measures what it says, on a learner known in closed form, and leaves
everything as it was.
"""

import dataclasses
import hashlib
import json
import math
import random
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from vpretrain.cli import app
from vpretrain.config import recipe as recipes
from vpretrain.language import Language
from vpretrain.method.accumulation import MicroBatches
from vpretrain.method.roles import Designer
from vpretrain.method.snapshot import Snapshot
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.parts import Parts
from vpretrain.studies.correlation import pearson, slope
from vpretrain.studies.probe import IN_NATS, REALISED, Bench, probe
from vpretrain.system.errors import Fault, UserError

TINY = [
    "learner.model=null",
    "learner.prepare=null",
    "learner.config={model_type: llama, vocab_size: 96, hidden_size: 24, intermediate_size: "
    "32, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128, "
    "tie_word_embeddings: false, "
    "attention_dropout: 0.3}",
    "learner.aligned_blocks=1",
    "data.batch_size=4",
    "data.stream.0.rows.rows=200",
    "data.stream.1.rows.rows=200",
    "data.feedback.rows.rows=64",
    "data.feedback.batch_size=16",
    "data.evaluation.test.rows=40",
    "evaluate.new_tokens=4",
]


def tiny_recipe(*overrides):
    return recipes.load("demo-language", [*TINY, "arm=onehot", *overrides], schemas=SCHEMAS)


@pytest.fixture(scope="module")
def language_bench():
    """A tiny language model with dropout, after its burn-in."""
    recipe = tiny_recipe()
    return Bench(recipe, Language().build(recipe, Language().load(recipe)))


class Toy(nn.Module):
    """A learner whose loss on a batch ``c`` is ``<c, theta>``, so that ``g_pre = c``; S is
    ``near``.
    """

    def __init__(self, hessian):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.near = nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64))
        self.far = nn.Parameter(torch.randn(10, generator=generator, dtype=torch.float64))
        self.hessian = hessian
        self.model, self.aligned = self, {"near": self.near}

    def after_step(self, progress):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def flat(self):
        return torch.cat([self.near, self.far])

    def forward(self, batch):
        return batch.vector

    def loss(self, context, task):
        return self.flat() @ context

    def held_out_loss(self):
        linear = torch.linspace(-1, 2, 16, dtype=torch.float64)
        yield linear @ self.flat() + 5
        yield self.flat() @ self.hessian @ self.flat() / 2

    def gradients(self, learner):
        return [{"near": torch.ones_like(self.near)}]


class BaselineDesigner(Designer):
    """A designer with nothing to choose."""

    def controls(self):
        return ()

    def with_controls(self, controls):
        return self

    def baseline_task(self, context):
        return self


def vectors_stream():
    generator = torch.Generator().manual_seed(1)
    while True:
        vector = torch.randn(16, generator=generator, dtype=torch.float64)
        yield SimpleNamespace(vector=vector, digest=lambda: "")


def toy_bench(hessian=None, *overrides):
    toy = Toy(torch.zeros(16, 16, dtype=torch.float64) if hessian is None else hessian)
    parts = Parts(
        toy, BaselineDesigner(), toy, vectors_stream(), dict, toy.held_out_loss, lambda path: None
    )
    return Bench(tiny_recipe(*overrides), parts)


def spread_hessian():
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    return root @ root.T


def columns(bench, draws):
    points = [bench.draw(i) for i in range(draws)]
    return {
        name: ([p.predicted[name] for p in points], [p.realised[step] for p in points])
        for name, step in REALISED.items()
    }


def test_predictions_in_nats_are_the_drop_where_the_loss_is_linear():
    found = columns(toy_bench(), 8)
    for name in ("sgd_aligned", "sgd_full", "adamw_update"):
        assert found[name][0] == pytest.approx(found[name][1], rel=1e-6, abs=1e-10)
    assert found["sgd_lower_bound"][0] == pytest.approx(found["sgd_aligned"][0])  # L = 0
    assert found["sgd_aligned"][0] != pytest.approx(found["sgd_full"][0], rel=1e-2)


def test_sgd_misses_the_curvature_and_the_lower_bound_allows_for_it():
    hessian = spread_hessian()
    bench = toy_bench(hessian)
    stream = vectors_stream()
    for _ in range(bench.settle_steps):
        next(stream)
    on_s = hessian[:6, :6]
    pilots = [next(stream).vector[:6] for _ in range(8)]
    assert bench.smoothness == pytest.approx(
        max(float((on_s @ c).norm() / c.norm()) for c in pilots), rel=1e-6
    )
    length = sum(float(bench.rate * c.norm()) for c in pilots) / 8
    assert length == pytest.approx(1e-3 * bench.size)
    found = columns(bench, 12)
    for index in range(12):
        c, eta = next(stream).vector[:6], bench.rate
        linear, bound, drop = (
            found[n][k][index]
            for n, k in (("sgd_aligned", 0), ("sgd_lower_bound", 0), ("sgd_aligned", 1))
        )
        assert linear - drop == pytest.approx(float(eta**2 / 2 * c @ on_s @ c), rel=1e-5)
        assert linear - bound == pytest.approx(
            float(eta**2 / 2 * bench.smoothness * c @ c), rel=1e-5
        )


def test_adamw_by_hand():
    """The real step, its first-order drop with fresh denominators and clipping, and the constant
    that the momentum adds.
    """
    bench = toy_bench(None, "learner.learning_rate=1e-3", "learner.clip_norm=1.5")
    down = torch.linspace(-1, 2, 16, dtype=torch.float64)
    states = bench.unchanged.moments
    m, v = (
        torch.cat([states[p][key] for p in (bench.learner.near, bench.learner.far)])
        for key in ("exp_avg", "exp_avg_sq")
    )
    assert bench.settle_steps == 16
    stream = vectors_stream()
    for _ in range(16 + 8):
        next(stream)

    def drop(g):
        first = (0.9 * m + 0.1 * g) / (1 - 0.9**17)
        second = (0.999 * v + 0.001 * g**2) / (1 - 0.999**17)
        return float(1e-3 * down @ (first / (second.sqrt() + 1e-8)))

    assert bench.momentum_drop == pytest.approx(
        drop(torch.zeros(16, dtype=torch.float64)), rel=1e-6
    )
    for index in range(4):
        c = next(stream).vector
        point = bench.draw(index)
        assert point.realised["adamw"] == pytest.approx(
            drop(c * min(1, 1.5 / float(c.norm()))), rel=1e-5
        )
        floored = (v / (1 - 0.999**16)).sqrt()
        near = floored[:6].clamp(min=0.1 * float(floored[:6].square().mean().sqrt()))
        expected = float((down[:6] / near * c[:6]).sum() * floored[:6].square().mean().sqrt())
        assert point.predicted["adamw_preconditioned"] == pytest.approx(expected, rel=1e-4)
        assert point.predicted["adamw_plain"] == pytest.approx(float(down[:6] @ c[:6]))


def test_the_optimizer_aware_value_predicts_adamw_where_scales_differ():
    """Planted: every other coordinate has a gradient a thousand times smaller, which AdamW scales
    back up.
    """

    def unequal():
        for batch in vectors_stream():
            batch.vector[::2] *= 1e-3
            yield batch

    toy = Toy(torch.zeros(16, 16, dtype=torch.float64))
    parts = Parts(
        toy, BaselineDesigner(), toy, unequal(), dict, toy.held_out_loss, lambda path: None
    )
    found = columns(Bench(tiny_recipe("value.preconditioner_floor=1e-6"), parts), 60)
    r = {name: pearson(*pair)[0] for name, pair in found.items()}
    assert r["adamw_update"] > 0.9999
    assert r["adamw_preconditioned_full"] > 0.95
    assert r["adamw_preconditioned_full"] > r["adamw_preconditioned"] + 0.05  # S is 6 of 16
    assert r["adamw_preconditioned"] > r["adamw_plain"] + 0.05


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


class Followed:
    """A learner with something beside its model that follows it."""

    def __init__(self, model):
        self.model, self.teacher = model, torch.zeros(3)

    def state_dict(self):
        return {"teacher": self.teacher}

    def load_state_dict(self, state):
        self.teacher.copy_(state["teacher"])


def test_a_snapshot_keeps_buffers_modes_and_generators_and_what_follows_the_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    learner = Followed(model)
    unchanged = Snapshot(learner, optimizer)
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate()
    with pytest.raises(ZeroDivisionError), unchanged():
        model.eval()
        model.train()
        model[2].eval()
        model(torch.randn(8, 4)).sum().backward()
        optimizer.param_groups[0]["lr"] = 1.0
        optimizer.step()
        learner.teacher += 1
        random.random()
        assert not torch.equal(saved["1.running_mean"], model[1].running_mean)
        raise ZeroDivisionError
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generators[0]) and random.getstate() == generators[1]
    assert (
        model[2].training and optimizer.param_groups[0]["lr"] == 0.0 and not learner.teacher.any()
    )
    assert all(state["step"] == 1 for state in optimizer.state.values())


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


def test_a_held_out_loss_that_is_not_finite_is_a_fault():
    bench = toy_bench()
    bench.parts = dataclasses.replace(
        bench.parts, held_out_loss=lambda: iter([torch.tensor(torch.inf)])
    )
    with pytest.raises(Fault, match=r"learner\.learning_rate"):
        bench.draw(0)


def test_feedback_that_is_matched_to_sources_is_refused():
    rows = "{kind: word_problems, split: feedback, rows: 64}"
    recipe = tiny_recipe(
        "data.feedback.rows=null",
        f"data.feedback.tasks={{sums: {{kind: likelihood, rows: {rows}, sources: [problems]}}}}",
    )
    parts = Language().build(recipe, Language().load(recipe))
    with pytest.raises(UserError, match="without `sources`"):
        Bench(recipe, parts)


def test_fewer_settle_steps_than_p_needs_are_raised():
    assert toy_bench(None, "value.settle_steps=2").settle_steps == 16
    assert toy_bench(None, "value.settle_steps=20").settle_steps == 20


def test_pearson_by_hand():
    assert pearson([1, 2, 3, 4], [2, 4, 6, 8])[0] == pytest.approx(1)
    assert pearson([1, 2, 3, 4], [1, 1, 1, 1]) == (None, None)
    assert pearson([0.1] * 5, [1, 2, 3, 4, 5]) == (None, None)
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0]
    r, (low, high) = pearson(x, y)
    assert r == pytest.approx(numpy.corrcoef(x, y)[0, 1])
    assert (low, high) == pytest.approx((-0.2796, 0.9861), abs=1e-3)  # tanh(1.0986 -+ 1.3859)
    assert slope(x, y) == pytest.approx(0.8)
    assert slope([1, 1], [1, 2]) is None
    for wrong in (
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4], [1, 2, 3]),
        ([1, 2, 3, math.nan], [1, 2, 3, 4]),
    ):
        with pytest.raises(ValueError, match="4 or more"):
            pearson(*wrong)


@pytest.mark.parametrize("rho", [0.0, 0.66, 0.95])
def test_the_interval_is_that_of_the_bootstrap(rho):
    generator = numpy.random.default_rng(3)
    x, noise = generator.standard_normal((2, 200))
    y = rho * x + math.sqrt(1 - rho**2) * noise
    r, (low, high) = pearson(list(x), list(y))
    picks = generator.integers(0, 200, (4000, 200))
    a, b = x[picks], y[picks]
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    drawn = (a * b).sum(1) / numpy.sqrt((a * a).sum(1) * (b * b).sum(1))
    assert (low, high) == pytest.approx(
        numpy.percentile(drawn, [2.5, 97.5]), abs=0.2 * (high - low)
    )
    assert low < r < high


def test_the_interval_covers(rho=0.8, n=50, repeats=4000):
    generator = numpy.random.default_rng(4)
    x, noise = generator.standard_normal((2, repeats, n))
    y = rho * x + math.sqrt(1 - rho**2) * noise
    held = sum(
        low <= rho <= high for _, (low, high) in (pearson(a, b) for a, b in zip(x, y, strict=True))
    )
    assert held / repeats == pytest.approx(0.95, abs=0.012)


def test_what_probe_returns_and_writes(tmp_path):
    seen = []
    overrides = ["arm=closed_form"]  # ignored
    found = probe(
        tiny_recipe(*overrides),
        draws=6,
        out=tmp_path / "a" / "b",
        progress=lambda done, total: seen.append((done, total)),
    )
    folder = tmp_path / "a" / "b"
    assert seen == [(i, 6) for i in range(1, 7)]
    assert found["draws"] == 6
    assert {"sgd_aligned", "sgd_full", "adamw_plain", "adamw_preconditioned"} <= set(
        found["pearson"]
    )
    assert set(found["pearson"]) == set(found["ci95"]) == set(REALISED) and set(
        found["slope"]
    ) == set(IN_NATS)
    assert found["pearson"]["sgd_full"] > 0.9
    assert 0 <= found["lower_bound"]["share_holding"] <= 1
    assert json.loads((folder / "probe.json").read_text()) == json.loads(json.dumps(found))
    points = json.loads((folder / "points.json").read_text())
    assert all(
        len(column) == 6 for part in ("predicted", "realised") for column in points[part].values()
    )
    assert len(set(points["batch"])) == 6
    assert (folder / "scatter.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "scatter.svg").read_text()[:2000]
    again = probe(tiny_recipe(), draws=6, out=tmp_path / "again")
    assert again["pearson"] == found["pearson"]
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
    found = json.loads(result.stdout)
    assert found["draws"] == 4 and "sgd_aligned" in result.stderr
    too_few = CliRunner().invoke(app, ["probe", "demo-language", "--draws", "3"])
    assert too_few.exit_code == 2
