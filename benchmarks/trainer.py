"""One-hot and steered steps against transformers' Trainer and TRL's SFTTrainer: the same model,
tokens and optimizer.

    python benchmarks/trainer.py [--arms "HF Trainer" "TRL SFTTrainer" onehot field closed_form
    token_weights]
        [--vocabulary 151936] [--width 896] [--blocks 4] [--length 512] [--rows 1] [--accumulation
        1] [--rounds 3] [--bfloat16] [--unfused] [--quick] [--out results/trainer.json]

A Qwen2 with random float32 weights and tied embeddings trains on windows of random tokens, one
thread, AdamW, gradient clipping at 1; a step adds up the gradients of so many batches as
--accumulation says. A steered arm's step is seven plain steps and one meta step in eight, measured
apart. "closed_form, one-sided" and the like value as recipes do by default, the others by central
differences; "SteeredTrainer token_weights" and the like are that arm in our Trainer. Batches are
handed to the trainers for nothing: fetching them is not in their time.
--bfloat16: autocast in all of them; then what recipes do by default is forward mode in bfloat16.
--unfused: torch's unfused AdamW for our arms, where all have the fused one otherwise. Speed and
memory are ratios to the first arm.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from turns import Turn, compared, in_turn, parser, save, show

from vpretrain.integrations.transformers import SteeredTrainer, Steering
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Source, Stream
from vpretrain.language.feedback.likelihood import Likelihood, parted
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.language.steering.ascent import CandidateDesigner, Prices
from vpretrain.language.steering.baselines import OneHot
from vpretrain.language.steering.networks import FieldDesigner
from vpretrain.language.steering.rules import Anchored, GroupWeights, TokenWeights
from vpretrain.language.steering.scorer import CandidateScorer
from vpretrain.method.accumulation import next_batches
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.estimators import estimator
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.network import Learning
from vpretrain.method.reliability import Reliability
from vpretrain.method.step import SteeredStep, steered_step
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator

PERIOD = 8
ARMS = (
    "HF Trainer",
    "TRL SFTTrainer",
    "onehot",
    "hidden_ascent",
    "field",
    "closed_form",
    "token_weights",
    "document_weights",
)
ONE_SIDED = ", one-sided"
STEERED = "SteeredTrainer "
RATE = 1e-5


@dataclass(frozen=True)
class Shape:
    """Of model and batch."""

    vocabulary: int = 151936
    width: int = 896
    blocks: int = 4
    length: int = 512
    rows: int = 1
    accumulation: int = 1
    candidates: int = 64
    feedback_rows: int = 32
    bfloat16: bool = False
    unfused: bool = False


def new_model(shape: Shape) -> Any:
    """Qwen2 of that shape, the same weights in every arm."""
    torch.manual_seed(0)
    heads = max(2, shape.width // 64)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.width * 38 // 7,
        num_hidden_layers=shape.blocks,
        num_attention_heads=heads,
        num_key_value_heads=1 if heads % 2 else 2,
        max_position_embeddings=max(shape.length, 128),
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def windows(shape: Shape, count: int, length: int, seed: int) -> list[list[int]]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape.vocabulary, (count, length), generator=generator).tolist()


def verified(shape: Shape) -> list[list[int]]:
    """Feedback rows."""
    return windows(shape, 4 * shape.feedback_rows, 48, seed=2)


class InTurn(TrainerCallback):
    """Steps of another trainer when it is their turn, two at a time; ``steered``: the first of
    them is a meta step.
    """

    def __init__(self, turn: Turn, *, steered: bool) -> None:
        self.turn, self.steered = turn, steered

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Waits where a round is over."""
        if state.global_step % 2 == 0:
            self.turn.wait()
        self.turn.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clocks the step, which is counted by now."""
        self.turn.stop("meta" if self.steered and state.global_step % 2 else "plain")


def another_trainer(name: str, shape: Shape, turn: Turn) -> None:
    """The others' loops, as they come."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows = windows(shape, 64 * shape.rows, shape.length, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        fixed: dict[str, Any] = dict(
            output_dir=folder,
            per_device_train_batch_size=shape.rows,
            max_steps=10**6,
            learning_rate=RATE,
            use_cpu=True,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            optim="adamw_torch_fused",
            weight_decay=0.0,
            bf16=shape.bfloat16,
            gradient_checkpointing=False,
            gradient_accumulation_steps=shape.accumulation,
        )
        trainer: Any
        data = [{"input_ids": ids, "labels": ids} for ids in rows]
        if name == "HF Trainer":
            trainer = Trainer(new_model(shape), TrainingArguments(**fixed), train_dataset=data)
        elif name.startswith(STEERED):
            trainer = SteeredTrainer(
                new_model(shape),
                TrainingArguments(**fixed),
                train_dataset=data,
                feedback_dataset=[{"input_ids": ids, "labels": ids} for ids in verified(shape)],
                steering=Steering(
                    arm=name.removeprefix(STEERED),
                    feedback_batch_size=shape.feedback_rows,
                    meta_period=2,  # see InTurn
                    aligned_blocks=min(2, shape.blocks),
                ),
            )
        else:
            from datasets import Dataset
            from trl import SFTConfig, SFTTrainer

            from vpretrain.language.data import word_problems

            data = Dataset.from_list([{"input_ids": ids} for ids in rows])
            trainer = SFTTrainer(
                new_model(shape),
                SFTConfig(max_length=shape.length, **fixed),
                train_dataset=data,
                processing_class=word_problems.tokenizer(),
            )
        steered = name.startswith(STEERED) and name != f"{STEERED}onehot"
        trainer.add_callback(InTurn(turn, steered=steered))
        trainer.train()


def our_step(arm: str, shape: Shape) -> tuple[SteeredStep[Any, Any, Any], Stream]:
    """The arm's parts, put together by hand."""
    model = new_model(shape)
    learner = CausalLearner(
        model,
        aligned_parameters(model, Anatomy.of(model), blocks=min(2, shape.blocks), patterns=[]),
        autocast=torch.bfloat16 if shape.bfloat16 else None,
    )
    learning = Learning(1e-4, Reliability(shrink=True))
    targets, reliability = Anchored(shape.candidates), Reliability(shrink=True)

    def network(gated: bool) -> CandidateScorer:
        return CandidateScorer(shape.width, hidden=256, layers=6, heads=4, gated=gated)

    head = learner.anatomy.head.get_parameter("weight")
    designers: dict[str, Any] = {
        "onehot": OneHot,
        "closed_form": lambda: ExactDesigner(targets, reliability),
        "token_weights": lambda: ExactDesigner(TokenWeights(), reliability),
        "document_weights": lambda: ExactDesigner(GroupWeights(by="document"), reliability),
        "field": lambda: FieldDesigner(network(gated=False), head, targets, learning),
        "hidden_ascent": lambda: CandidateDesigner(
            network(gated=True), head, targets, learning, Prices(entropy_bonus=0.01)
        ),
    }
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, weight_decay=0.0, fused=not shape.unfused
    )
    by_default = arm.endswith(ONE_SIDED)
    value_estimator = ValueEstimator(
        learner,
        Alignment("dot"),
        estimator("one_sided_difference") if by_default else ESTIMATORS["central_difference"],
    )
    texts = [
        Document(ids, [True] * len(ids), f"f:{at}", "f") for at, ids in enumerate(verified(shape))
    ]
    feedback = Likelihood(parted(texts, 2, batch_size=shape.feedback_rows, seed=0, pad_id=0))
    step = steered_step(
        learner,
        designers[arm.removesuffix(ONE_SIDED)](),
        feedback,
        value_estimator,
        optimizer,
        period=PERIOD,
        preconditioner_floor=0.1,
        clip_norm=1.0,
        guard_window=0,
    )
    documents = [
        Document(ids, [True] * len(ids), f"s:{at}", "s")
        for at, ids in enumerate(windows(shape, 64, shape.length, 1))
    ]
    source = Source("s", documents, 1.0)
    return step, Stream(
        [source], batch_size=shape.rows, window_tokens=shape.length, seed=0, pad_id=0
    )


def ours(arm: str, shape: Shape, turn: Turn) -> None:
    """A meta step where the arm has any, and one without."""
    logging.getLogger("vpretrain").setLevel(logging.ERROR)
    step, stream = our_step(arm, shape)
    while True:
        turn.wait()
        for kind in ("meta", "plain") if step.meta.designer.uses_feedback else ("plain", "plain"):
            turn.start()
            batch = next_batches(stream, shape.accumulation)
            step.uncounted(batch, RATE, 0.0, meta_due=kind == "meta")
            turn.stop(kind)


def main() -> None:
    """Prints the table, and writes the JSON."""
    made = parser(__doc__, rounds=3)
    made.add_argument("--arms", nargs="+", default=ARMS)
    for name in ("vocabulary", "width", "blocks", "length", "rows", "accumulation"):
        made.add_argument(f"--{name}", type=int, default=getattr(Shape, name))
    made.add_argument("--bfloat16", action="store_true")
    made.add_argument("--unfused", action="store_true")
    given = made.parse_args()
    shape = Shape(
        **{
            field.name: getattr(given, field.name)
            for field in fields(Shape)
            if hasattr(given, field.name)
        }
    )
    if given.quick:
        shape, given.rounds = Shape(300, 64, 2, 32, candidates=8, feedback_rows=4), 1
    bodies = {
        arm: functools.partial(another_trainer if "Trainer" in arm else ours, arm, shape)
        for arm in given.arms
    }
    for at, result in enumerate(in_turn(bodies, given.rounds), start=1):
        rows = compared(result, PERIOD)
        show(rows, f"{shape}; after {at} rounds; ratios to {rows[0]['arm']}")
        save(
            "trainer",
            given,
            shape=vars(shape),
            rounds=at,
            period=PERIOD,
            rows=rows,
            steps=result,
        )


if __name__ == "__main__":
    main()
