"""Collectives over processes, and what a launcher left out."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from tests.reliability.processes import together
from vpretrain.system import distributed
from vpretrain.system.errors import Fault, UserError, user_error


def statistics(parts):
    """Of this process's part; what a gradient is with respect to it."""
    values = parts[distributed.rank()].clone().requires_grad_()
    (distributed.mean(values) - 3).square().backward()
    gradient, values = values.grad.tolist(), values.detach()
    rows = distributed.logsumexp(parts[distributed.rank()][:, None])
    return [float(distributed.mean(values)), float(distributed.std(values)), float(rows), gradient]


def test_statistics_are_those_of_all_parts_however_uneven():
    values = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = statistics([values])
    parts = together(2, statistics, [values[:2], values[2:]])
    for at in range(3):
        assert parts[0][at] == parts[1][at] == pytest.approx(whole[at], rel=1e-12)
    assert parts[0][3] + parts[1][3] == pytest.approx(whole[3], rel=1e-12)


def summed(gradients):
    parameters = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
    for parameter, gradient in zip(parameters, gradients[distributed.rank()], strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    distributed.all_reduce_gradients(parameters)
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


def test_a_gradient_that_only_one_process_has_counts(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 1)  # every tensor in a bucket of its own
    some = [[[1.0, 2, 3], None, None], [[1.0, 1, 1], [5.0, 6, 7], None]]
    assert together(2, summed, some) == [[[2.0, 3, 4], [5.0, 6, 7], None]] * 2


def beside_another_group():
    """What CPU tensors need if the default group does not carry them, as one of NCCL's."""
    torch.distributed.destroy_process_group()
    torch.distributed.init_process_group("cuda:gloo")
    with pytest.raises(RuntimeError, match="cpu"):
        torch.distributed.all_reduce(torch.ones(1))
    sent = torch.tensor([float(distributed.rank())])
    distributed.broadcast([sent])
    here = distributed.rank() + 1.0
    return [
        distributed.summed(here),
        distributed.all_gather_object(here),
        distributed.broadcast_object({"from": here}),
        sent.tolist(),
        distributed.logsumexp(torch.tensor([here])).tolist(),
    ]


def test_a_group_that_another_library_started_for_accelerators_alone_will_do():
    first, second = together(2, beside_another_group)
    assert first == second
    assert first[:4] == [3.0, [1.0, 2.0], {"from": 1.0}, [0.0]]
    assert first[4] == pytest.approx([2.3132617])


def wrote(path):
    def make():
        result = path.read_text() if path.exists() else ""
        path.write_text(result + str(distributed.world()))
        return result

    return distributed.in_turn(make)


def test_the_first_makes_what_the_others_find(tmp_path):
    assert together(2, wrote, tmp_path / "made") == ["", "1"]  # each alone in its turn


def refused():
    def make():
        raise user_error("data.stream", "it is not there")

    try:
        distributed.in_turn(make)
    except UserError as error:
        return str(error)


def test_what_the_first_finds_wrong_is_told_to_all():
    assert together(2, refused) == ["data.stream: it is not there"] * 2


def failed(error):
    """What each process raises where the first one does."""

    def make():
        raise error

    raised = []
    for run in (distributed.from_first_rank, distributed.in_turn):
        with pytest.raises(Exception) as caught:
            run(make)
        raised.append((caught.type.__name__, str(caught.value)))
    return raised


@pytest.mark.parametrize(
    "error", [Fault("it is broken"), PermissionError(errno.EACCES, "not yours", "runs")]
)
def test_what_fails_on_the_first_is_told_to_all(error):
    """Otherwise the others would die of a broken connection."""
    assert together(2, failed, error) == [[(type(error).__name__, str(error))] * 2] * 2


def test_an_error_of_others_is_told_by_its_message():
    """Its class may be one that another process cannot build."""
    first, second = together(2, failed, SafetensorError("No space left"))
    assert first == [("SafetensorError", "No space left")] * 2
    assert second[0] == ("RuntimeError", "SafetensorError: No space left")


def test_what_a_launcher_left_out_and_too_many_processes_are_named(monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="MASTER_PORT"), distributed.process_group():
        pass
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="nproc-per-node"), distributed.process_group():
        pass
