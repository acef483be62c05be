"""The head by its slow definition: logits, log-softmax and autograd over the whole of [N, V]."""

import torch

WIDE = torch.float64


def next_batches(n, vocabulary, width=6, seed=0, dtype=WIDE, bias=False):
    """Hidden states, weight, bias (or None) and labels; leaves that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=generator, dtype=WIDE).to(dtype).requires_grad_()

    labels = torch.randint(vocabulary, (n,), generator=generator)
    return leaf(n, width), leaf(vocabulary, width), leaf(vocabulary) if bias else None, labels


def mass_of(n, count, weighted, seed=0, dtype=WIDE):
    generator = torch.Generator().manual_seed(seed + 1)
    mass = torch.randn(n, count, generator=generator, dtype=dtype).softmax(dim=1)
    if weighted:
        mass = mass * torch.rand(n, 1, generator=generator, dtype=dtype).mul(3).sub(0.5).clamp_min(
            0
        )
    return mass.requires_grad_()


def slow_logits(hidden, weight, bias, scale=1.0, cap=None):
    logits = scale * hidden @ weight.t()
    logits = logits if bias is None else logits + bias
    return logits if cap is None else cap * torch.tanh(logits / cap)


def slow_loss(logits, ids, mass):
    log_p = torch.log_softmax(logits, dim=1)
    terms = [
        mass[n, k] * log_p[n, ids[n, k]]
        for n in range(len(ids))
        for k in range(ids.shape[1])
        if mass[n, k] != 0
    ]
    return -torch.stack(terms).sum() / len(ids)


def gradients(loss, leaves):
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])


def same(result, expected, tolerance=1e-10):
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
