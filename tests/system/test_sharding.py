"""Parameters that processes share out."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.reliability.processes import together
from vpretrain.system import distributed, sharding


def test_clipping_over_shards_is_clipping():
    gradients = [[3.0, 4.0], [12.0, 0.0]]
    assert together(2, clipped, gradients, 6.5) == [(13.0, [[1.5, 2.0], [6.0, 0.0]])] * 2


def clipped(gradients, bound):
    mesh = DeviceMesh("cpu", torch.arange(distributed.world()))
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in gradients]
    parameters[0] = torch.nn.Parameter(distribute_tensor(parameters[0], mesh, [Shard(0)]))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = sharding.laid_out(torch.tensor(gradient), parameter)
    norm = sharding.clip(parameters, bound)
    held = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in parameters]
    return round(norm, 6), [[round(float(x), 5) for x in tensor] for tensor in held]
