"""How far is a step of Muon linear in its gradient?

What a batch's gradient changes in the step is correlated with what two linear images of it predict:
the step's derivative at the momentum, and the gradient itself. Gradients are synthetic, a common
part of low rank and noise."""

import torch
from torch import Tensor

MOMENTUM, DRAWS, COEFFICIENTS = 0.95, 60, (3.4445, -4.7750, 2.0315)


def orthogonalised(x: Tensor) -> Tensor:
    """torch.optim.Muon's Newton-Schulz iteration, in float32 instead of bfloat16."""
    a, b, c = COEFFICIENTS
    y = x / x.norm()
    for _ in range(5):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y


def correlations(rows: int, columns: int, rank: int) -> tuple[float, float]:
    """With the derivative at the momentum, and with the gradient itself."""
    common = 0.3 * torch.randn(rows, rank) @ torch.randn(rank, columns) / rank**0.5
    gradients = [common + torch.randn(rows, columns) for _ in range(100 + DRAWS)]
    buffer = torch.zeros(rows, columns)
    for gradient in gradients[:100]:
        buffer.lerp_(gradient, 1 - MOMENTUM)
    at = (MOMENTUM**2 * buffer).requires_grad_()
    weight = (1 - MOMENTUM) * (1 + MOMENTUM)  # of a new gradient, under Nesterov's momentum
    down = common + 0.3 * torch.randn(rows, columns)
    before = orthogonalised(at)
    (image,) = torch.autograd.grad(before, at, down)
    with torch.no_grad():
        # What a task decides: how much of the common part a batch's gradient has.
        drawn = [gradient + common * (2 * torch.rand(()) - 1) for gradient in gradients[100:]]
        changed = [(orthogonalised(at + weight * g) - before) for g in drawn]
        realised = torch.stack([(change * down).sum() for change in changed])
        predicted = [torch.stack([(u * g).sum() for g in drawn]) for u in (image, down)]
    first, second = (float(torch.corrcoef(torch.stack([realised, p]))[0, 1]) for p in predicted)
    return first, second


if __name__ == "__main__":
    torch.manual_seed(0)
    print("rows x columns, rank: r with the derivative at the momentum, r with the gradient")
    for rows, columns, rank in ((64, 64, 8), (64, 192, 8), (128, 128, 64)):
        each = torch.tensor([correlations(rows, columns, rank) for _ in range(5)])
        ends = [f"{float(r.min()):.2f} to {float(r.max()):.2f}" for r in each.T]
        print(f"{rows} x {columns}, {rank}: {ends[0]}, {ends[1]}")
