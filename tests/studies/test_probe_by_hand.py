"""The one-step probe measures what it says: a learner whose losses are known in closed form."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.studies.small_recipe import tiny_recipe
from vpretrain.method.roles import Designer
from vpretrain.run.parts import Parts
from vpretrain.studies.correlation import pearson
from vpretrain.studies.probe import REALISED, Bench
from vpretrain.system.errors import Fault


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
    result = columns(toy_bench(), 8)
    for name in ("sgd_aligned", "sgd_full", "adamw_update"):
        assert result[name][0] == pytest.approx(result[name][1], rel=1e-6, abs=1e-10)
    assert result["sgd_lower_bound"][0] == pytest.approx(result["sgd_aligned"][0])  # L = 0
    assert result["sgd_aligned"][0] != pytest.approx(result["sgd_full"][0], rel=1e-2)


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
    result = columns(bench, 12)
    for index in range(12):
        c, eta = next(stream).vector[:6], bench.rate
        linear, bound, drop = (
            result[n][k][index]
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
    result = columns(Bench(tiny_recipe("value.preconditioner_floor=1e-6"), parts), 60)
    r = {name: pearson(*pair)[0] for name, pair in result.items()}
    assert r["adamw_update"] > 0.9999
    assert r["adamw_preconditioned_full"] > 0.95
    assert r["adamw_preconditioned_full"] > r["adamw_preconditioned"] + 0.05  # S is 6 of 16
    assert r["adamw_preconditioned"] > r["adamw_plain"] + 0.05


def test_a_held_out_loss_that_is_not_finite_is_a_fault():
    bench = toy_bench()
    bench.parts = dataclasses.replace(
        bench.parts, held_out_loss=lambda: iter([torch.tensor(torch.inf)])
    )
    with pytest.raises(Fault, match=r"learner\.learning_rate"):
        bench.draw(0)


def test_fewer_settle_steps_than_p_needs_are_raised():
    assert toy_bench(None, "value.settle_steps=2").settle_steps == 16
    assert toy_bench(None, "value.settle_steps=20").settle_steps == 20
