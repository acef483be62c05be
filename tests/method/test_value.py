"""Alignments: their direction is their gradient, and P is what AdamW does."""

from types import SimpleNamespace

import pytest
import torch

from vpretrain.method.value import Alignment, adam_preconditioner, second_moment


def random_vector(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(3, 4, generator=generator, dtype=dtype),
        "b": torch.randn(5, generator=generator, dtype=dtype),
    }


@pytest.mark.parametrize("name", ["dot", "optimizer_aware", "cosine", "lower_bound"])
def test_direction_is_the_gradient_of_the_value(name):
    alignment = Alignment(name, smoothness=3.0)
    down, pre = random_vector(0), random_vector(1)
    valued = alignment(down, pre, 0.1)
    for key, piece in pre.items():
        for index in range(piece.numel()):
            moved = []
            for sign in (1e-6, -1e-6):
                other = {k: v.clone() for k, v in pre.items()}
                other[key].view(-1)[index] += sign
                moved.append(float(alignment(down, other, 0.1).value))
            numeric = (moved[0] - moved[1]) / 2e-6
            assert float(valued.direction[key].view(-1)[index]) == pytest.approx(
                numeric, rel=1e-6, abs=1e-8
            )


def test_values_by_hand():
    down, pre = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([1.0, 2.0])}
    assert float(Alignment("dot")(down, pre, 0.0).value) == 11
    assert float(Alignment("cosine")(down, pre, 0.0).value) == pytest.approx(11 / (5 * 5**0.5))
    assert float(Alignment("lower_bound", smoothness=2.0)(down, pre, 0.5).value) == pytest.approx(
        11 - 0.5 * 5
    )


def test_lower_bound_holds_on_a_quadratic():
    """Prop. 2.1 with the exact L: the bound never exceeds the realised drop."""
    hessian = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    point = torch.tensor([1.0, -2.0], dtype=torch.float64)
    loss = lambda x: float(x @ hessian @ x) / 2  # noqa: E731
    pre, eta = torch.tensor([0.7, -0.4], dtype=torch.float64), 0.3
    bound = Alignment("lower_bound", smoothness=4.0)({"w": hessian @ point}, {"w": pre}, eta).value
    assert eta * float(bound) <= loss(point) - loss(point - eta * pre) + 1e-12


def test_preconditioner_is_that_of_adamw_up_to_one_scale():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, eps=0.0, weight_decay=0.0, betas=(0.0, 0.9))
    assert adam_preconditioner(optimizer, {"w": weight}, floor=1e-9) is None
    for _ in range(5):
        weight.grad = torch.randn(50, dtype=torch.float64)
        before = weight.detach().clone()
        optimizer.step()
    update = (before - weight.detach()) / 1e-3  # beta1 = 0: the update is P grad
    predicted = adam_preconditioner(optimizer, {"w": weight}, floor=1e-9)["w"] * weight.grad
    torch.testing.assert_close(
        (predicted / predicted.norm()).float(),
        (update / update.norm()).float(),
        rtol=1e-4,
        atol=1e-6,
    )


def test_floor_bounds_rows_of_rare_tokens():
    weight = torch.nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.AdamW([weight], lr=0.0)
    weight.grad = torch.tensor([1e-8] + [1.0] * 9)
    optimizer.step()
    preconditioner = adam_preconditioner(optimizer, {"w": weight}, floor=0.1)["w"]
    assert float(preconditioner.max()) == pytest.approx(10, rel=1e-5)
    assert float(preconditioner[1]) == pytest.approx(1, rel=0.1)


def test_a_parameter_without_moments_leaves_the_others_preconditioned():
    """An expert that no token was sent to."""
    used, idle = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.AdamW([used, idle], lr=0.0)
    used.grad = torch.tensor([1.0, 3.0])
    optimizer.step()
    result = adam_preconditioner(optimizer, {"used": used, "idle": idle}, 0.1)
    assert result["idle"].tolist() == [1, 1] and result["used"][0] > result["used"][1]


def quantised(moment, block=256):
    """As bitsandbytes and torchao keep it: a code for each entry, and a scale for each block."""
    levels = torch.linspace(0, 1, 256) ** 2
    flat = moment.flatten()
    blocks = [part.max() for part in flat.split(block)]
    scale = torch.stack(blocks)
    share = flat / scale.repeat_interleave(block)[: len(flat)]
    return (share[:, None] - levels).abs().argmin(1).byte().view_as(moment), levels, scale


def test_eight_bits_of_a_second_moment_are_read_as_the_number_that_they_stand_for():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 200))  # the last block is not full
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    for _ in range(3):
        weight.grad = torch.randn(3, 200)
        optimizer.step()
    state = optimizer.state[weight]
    whole = adam_preconditioner(optimizer, {"w": weight}, 0.1)["w"]
    codes, levels, scale = quantised(state["exp_avg_sq"])
    state |= {"state2": codes, "qmap2": levels, "absmax2": scale}
    torch.testing.assert_close(
        adam_preconditioner(optimizer, {"w": weight}, 0.1)["w"], whole, rtol=0.1, atol=0
    )
    optimizer.state[weight] = {"step": 3, "state2": state["exp_avg_sq"]}  # a small parameter
    assert torch.equal(adam_preconditioner(optimizer, {"w": weight}, 0.1)["w"], whole)
    even = state["exp_avg_sq"].flatten()[:512].view(2, 256)
    codes, levels, scale = quantised(even)
    torchao = SimpleNamespace(codes=codes, qmap=levels, scale=scale)
    torch.testing.assert_close(
        second_moment({"exp_avg_sq": torchao}), even, rtol=0.2, atol=float(even.max()) / 500
    )
