"""Would it pay to send gradients while the backward pass goes on? A trial of it, beside the sum
after it that is in use.

    python -m tests.reliability.overlap [--pairs 30] [--out results/overlap.json]

Two gloo processes train one learner by turns in both ways. Prints one JSON document: medians in
seconds of a step and of its sum over processes, and the ratio of steps (sent on the way over sent
at the end), a median over pairs with its 95% interval.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from scipy.stats import bootstrap

from tests.reliability.processes import together
from tests.reliability.runs import build, language_recipe, record
from vpretrain.language import Language
from vpretrain.run.build import new_step
from vpretrain.system import distributed

WIDE = (
    "learner.config={model_type: llama, vocab_size: 96, hidden_size: 256, intermediate_size: "
    "768, num_hidden_layers: 6, "
    "num_attention_heads: 4, num_key_value_heads: 4, max_position_embeddings: 128, "
    "tie_word_embeddings: false}"
)
BUCKET_BYTES = 2**22  # several of them in so small a learner


class OnTheWay:
    """Sends a bucket as soon as its gradients and all buckets before it are there, so that
    processes send in one order.
    """

    def __init__(self, parameters):
        self.buckets, self.on = list(distributed._buckets(parameters[::-1])), False
        self.place = {
            parameter: place for place, bucket in enumerate(self.buckets) for parameter in bucket
        }
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self.ready)

    def begin(self):
        self.on, self.sent, self.missing = True, [], [len(bucket) for bucket in self.buckets]

    def ready(self, parameter):
        if self.on:
            self.missing[self.place[parameter]] -= 1
            while len(self.sent) < len(self.missing) and not self.missing[len(self.sent)]:
                self.send()

    def send(self):
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in self.buckets[len(self.sent)]])
        self.sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def end(self):
        for bucket, (flat, work) in zip(self.buckets, self.sent, strict=True):
            work.wait()
            for parameter, piece in zip(
                bucket, flat.split([p.numel() for p in bucket]), strict=True
            ):
                parameter.grad.copy_(piece.view(parameter.shape))
        self.on = False


def steps(recipe, materials, pairs):
    """Seconds of steps that send at the end and on the way, and of the sums at the end."""
    distributed.BUCKET_BYTES = BUCKET_BYTES
    parts = build(recipe, materials)
    step, at_the_end = new_step(recipe, parts), distributed.all_reduce_gradients
    way, seconds, sums = OnTheWay(step.parameters), {False: [], True: []}, []

    def add_up(parameters):
        started = time.perf_counter()
        if way.on:
            way.end()
        else:
            at_the_end(parameters)
            sums.append(time.perf_counter() - started)

    distributed.all_reduce_gradients = add_up
    for number in range(2 * (pairs + 2)):
        on_the_way = bool((number + number // 2) % 2)  # which is first changes from pair to pair
        batch = next(parts.stream)
        distributed.barrier()
        started = time.perf_counter()
        if on_the_way:
            way.begin()
        step(batch, 1e-4)
        seconds[on_the_way].append(time.perf_counter() - started)
    return seconds[False][2:], seconds[True][2:], sums[2:]  # the first ones are not counted


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = language_recipe("arm=onehot", WIDE, "threads=1")
    materials = Language().load(recipe)
    after, on_the_way, sums = together(2, steps, recipe, materials, options.pairs)[0]
    ratios = [b / a for a, b in zip(after, on_the_way, strict=True)]
    interval = bootstrap([ratios], median, rng=0).confidence_interval
    record(
        {
            "parameters": sum(
                p.numel() for p in build(recipe, materials).learner.model.parameters()
            ),
            "tokens": recipe.data.batch_size * recipe.data.window_tokens,
            "pairs": options.pairs,
            "seconds": {
                "at_the_end": median(after),
                "on_the_way": median(on_the_way),
                "sum_at_the_end": median(sums),
            },
            "on_the_way_over_at_the_end": {"median": median(ratios), "ci95": list(interval)},
        },
        options.out,
    )


if __name__ == "__main__":
    main()
