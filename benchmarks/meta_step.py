"""The meta step by the three estimators, and by the paper's way through the whole learner: seconds,
memory, agreement.

    python benchmarks/meta_step.py [--vocabulary 32000] [--width 896] [--blocks 8] [--length 512]
    [--aligned 2]
        [--candidates 64] [--rounds 5] [--quick] [--out results/meta-step.json]

What is timed is ``V`` and ``dV/d targets`` of one batch under one direction, the learner's own
forward pass not counted: g_down, which costs the same in all, and the designer's backward pass are
left out.

* whole graph: ``<u, grad_S L>`` differentiated through the learner's logits, the way that needs no
  thought (Algorithm 1 as it is written). Its forward pass is made again, since it needs other
  attention kernels than training does.
* double backward, forward mode, central difference: as vpretrain runs them, from where S begins,
  the head to first order.

Ratios are to the whole graph's seconds in the same round; cosine is of ``dV/d targets`` with the
whole graph's.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from trainer import Shape, new_model, windows
from turns import parser, save

from vpretrain.language.data.batch import TokenBatch, padded
from vpretrain.language.data.rows import Document
from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.language.learner.targets import SoftTargets, one_hot, soft_target_loss
from vpretrain.method import vectors
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.studies.doctor import peak_bytes
from vpretrain.system.contexts import evaluating


def whole_graph(
    learner: CausalLearner, batch: TokenBatch, task: SoftTargets, down: dict[str, Tensor]
) -> Tensor:
    """``d/d mass <u, grad_S L>`` by double backward through logits as a whole."""
    mass = task.mass.detach().requires_grad_()
    row, at = batch.predicted.nonzero(as_tuple=True)
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), evaluating(learner.model):
        logits = learner.anatomy.finished(learner.anatomy.head(learner.hidden(batch)[row, at - 1]))
        loss = soft_target_loss(logits, SoftTargets(task.ids, mass))
        gradients = torch.autograd.grad(loss, list(learner.aligned.values()), create_graph=True)
        value = vectors.inner(down, vectors.named(learner.aligned, gradients))
        (result,) = torch.autograd.grad(value, (mass,))
    return result


def estimated(
    learner: CausalLearner, context: Context, task: SoftTargets, down: dict[str, Tensor], way: str
) -> Tensor:
    """The same as a step has it."""
    value_estimator = ValueEstimator(learner, Alignment("dot"), ESTIMATORS[way])
    value_estimator.update([down], None, 0.0)
    return value_estimator(context, task).gradient[0]


SIZES = {
    "vocabulary": 32000,
    "width": 896,
    "blocks": 8,
    "length": 512,
    "aligned": 2,
    "candidates": 64,
}
QUICK = {"vocabulary": 9000, "width": 64, "blocks": 3, "length": 512, "candidates": 8, "rounds": 1}


def arguments() -> argparse.Namespace:
    """Of the command line."""
    made = parser(__doc__, rounds=5)
    for name, default in SIZES.items():
        made.add_argument(f"--{name}", type=int, default=default)
    given = made.parse_args()
    if given.quick:
        vars(given).update(QUICK)
    return given


def main() -> None:
    """Prints one line a way, and writes them."""
    given = arguments()
    torch.set_num_threads(1)
    shape = Shape(given.vocabulary, given.width, given.blocks, given.length)
    model = new_model(shape)
    aligned = aligned_parameters(model, Anatomy.of(model), blocks=given.aligned, patterns=[])
    learner = CausalLearner(model, aligned)
    (ids,) = windows(shape, 1, given.length, seed=1)
    batch = padded([Document(ids, [True] * len(ids), "s", "s")], pad_id=0)
    context = learner.forward(batch)
    targets = one_hot(context.labels, context.predictions.candidates(given.candidates))
    generator = torch.Generator().manual_seed(2)
    down = {name: torch.randn(p.shape, generator=generator) for name, p in aligned.items()}
    ways: dict[str, Callable[[], Tensor]] = {
        "whole graph": functools.partial(whole_graph, learner, batch, targets, down)
    }
    for name in ("double_backward", "forward_mode", "central_difference"):
        ways[name] = functools.partial(estimated, learner, context, targets, down, name)
    reference = ways["whole graph"]().flatten()
    rows = {}
    for name, way in ways.items():
        cosine = float(torch.nn.functional.cosine_similarity(way().flatten(), reference, dim=0))
        rows[name] = {"cosine": cosine, "peak_bytes": peak_bytes(way)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    for name, row in rows.items():
        ratios = [
            slow / own for slow, own in zip(seconds["whole graph"], seconds[name], strict=True)
        ]
        row |= {
            "cpu_seconds": statistics.median(seconds[name]),
            "faster": statistics.median(ratios),
        }
        row["memory"] = row["peak_bytes"] / rows["whole graph"]["peak_bytes"]
        print(
            f"{name:20} {row['cpu_seconds']:7.3f} CPU s  {row['faster']:6.2f}x  peak "
            f"{row['peak_bytes'] / 1e6:6.0f} MB "
            f"({row['memory']:.2f})  cosine {row['cosine']:.6f}",
            flush=True,
        )
    sizes = {name: getattr(given, name) for name in SIZES}
    save("meta-step", given, sizes=sizes, rounds=given.rounds, ways=rows)


if __name__ == "__main__":
    main()
