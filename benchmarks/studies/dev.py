"""What was chosen on dev: which surface, and how far."""

from __future__ import annotations

from dataclasses import replace

from studies.starts import CLEAN, CLOSED, DEV, GSM, MAJORITY, NOISY, C, D, F, W
from studies.study import STUDIES, Start, add

BEFORE = (
    "learner.learning_rate=5e-5",
    "value.meta_period=4",
    "value.memory=0.0",
    "data.feedback.batch_size=64",
    *(
        f"designers.{arm}.tilt=0.4"
        for arm in ("token_weights", "document_weights", "weighted_targets", "weight_field")
    ),
)
"""Where the search on dev began; what it chose stands in the recipes."""


add(
    "dev-surfaces",
    "which surface, and how far",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "token_weights": W,
        "token_weights, tilt 0.8": f"{W} designer.tilt=0.8",
        "token_weights, tilt 1.5": f"{W} designer.tilt=1.5",
        "token_weights, tilt 3": f"{W} designer.tilt=3",
        "token_weights, memory": f"{W} value.memory=0.9",
        "token_weights, memory, 1.5": f"{W} value.memory=0.9 designer.tilt=1.5",
        "token_weights, memory, 16 rows, 1.5": f"{W} value.memory=0.9 designer.tilt=1.5 "
        "data.feedback.batch_size=16",
        "document_weights, memory, 1.5": "arm=document_weights value.memory=0.9 designer.tilt=1.5",
        "closed_form, memory": f"{C} value.memory=0.9",
        "closed_form, memory, gate 0.8": f"{C} value.memory=0.9 designer.gate_max=0.8",
        "weighted_targets, memory": "arm=weighted_targets value.memory=0.9",
        "weighted_targets, memory, 1.5": "arm=weighted_targets value.memory=0.9 designer.tilt=1.5",
        "field": F,
        "field, memory": f"{F} value.memory=0.9",
        "field, memory, replay 8, updates 8": f"{F} value.memory=0.9 designer.replay=8 "
        "designer.updates=8",
        "weight_field, memory, 1.5": "arm=weight_field value.memory=0.9 designer.tilt=1.5",
    },
    "evaluate.split=dev",
    *BEFORE,
)

M = "value.memory=0.9 data.feedback.batch_size=32 value.meta_period=4"
M8 = "value.memory=0.9 data.feedback.batch_size=32 value.meta_period=8"
add(
    "dev-gsm8k",
    "which surface, and how far, on real text",
    NOISY,
    (Start("gsm8k-0", GSM, 0, (100,)),),
    {
        "onehot": "arm=onehot",
        "token_weights, as it was": W,
        "token_weights, memory": f"{W} {M}",
        "token_weights, memory, 1": f"{W} {M} designer.tilt=1",
        "weighted_targets, memory": f"arm=weighted_targets {M8}",
        "closed_form, memory": f"{C} {M8}",
        "document_weights, memory, 1": f"{D} {M8} designer.tilt=1",
        "token_weights, memory, lr 3e-4": f"{W} {M8} learner.learning_rate=3e-4",
        "onehot, lr 3e-4": "arm=onehot learner.learning_rate=3e-4",
        "token_weights, period 8, memory": f"{W} {M8}",
    },
    "evaluate.split=dev",
    "value.memory=0.0",
    "data.feedback.batch_size=64",
)

DM = f"{D} value.memory=0.9 designer.tilt=1.5"
add(
    "dev-documents",
    "document weights and the learner's rate",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "document_weights, memory, lr 1e-4": f"{DM} learner.learning_rate=1e-4",
        "onehot, lr 1e-4": "arm=onehot learner.learning_rate=1e-4",
        "document_weights, memory, S all": f"{DM} learner.aligned_blocks=all",
        "document_weights, memory, 32 rows": f"{DM} data.feedback.batch_size=32",
        "document_weights, memory, period 8": f"{DM} value.meta_period=8",
        "document_weights, memory, dot": f"{DM} value.alignment=dot",
        "closed_form": C,
        "document_weights, memory 0.95": f"{D} value.memory=0.95 designer.tilt=1.5",
        "oracle: onehot, clean stream": f"arm=onehot {CLEAN}",
        "feedback_sft": "arm=feedback_sft",
        "onehot, lr 2e-4": "arm=onehot learner.learning_rate=2e-4",
        "document_weights, memory, lr 2e-4": f"{DM} learner.learning_rate=2e-4",
        "onehot, lr 4e-4": "arm=onehot learner.learning_rate=4e-4",
        "document_weights, memory, lr 4e-4": f"{DM} learner.learning_rate=4e-4",
    },
    "evaluate.split=dev",
    *BEFORE,
)

A = "arm=hidden_ascent value.memory=0.0 designer.updates=1"
add(
    "dev-ascent",
    "the paper's designer at its best",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "ascent": A,
        "+ updates 4": f"{A} designer.updates=4",
        "+ anchor": f"{A} designer.updates=4 designer.anchor=1",
        "+ anchor, gate price": f"{A} designer.updates=4 designer.anchor=1 designer.gate_price=0.3",
        "+ anchor, memory": f"{A} designer.updates=4 designer.anchor=1 value.memory=0.9",
        "+ anchor, memory, slower": f"{A} designer.updates=4 designer.anchor=1 value.memory=0.9 "
        "designer.learning_rate=1e-3",
        "ascent, dot": f"{A} value.alignment=dot",
        "ascent, cosine": f"{A} value.alignment=cosine",
        "ascent, guard off": f"{A} value.guard_window=0",
        "field, updates 4": f"{F} value.memory=0.0",
        "field, memory": F,
        "field, memory, period 2": f"{F} value.meta_period=2",
        "field, memory, replay 4, updates 8": f"{F} designer.replay=4 designer.updates=8",
        "field, memory, tau 0.5": f"{F} designer.temperature=0.5",
        "field, memory, 128 rows": f"{F} data.feedback.batch_size=128",
    },
    "evaluate.split=dev",
)

ROWS = "data.feedback.rows={{kind: word_problems, split: feedback, rows: {}}}"
add(
    "dev-knobs",
    "what the settings of document weights matter",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "document_weights": D,
        "period 2": f"{D} value.meta_period=2",
        "period 32": f"{D} value.meta_period=32",
        "settling 0": f"{D} value.settle_steps=0",
        "settling 64": f"{D} value.settle_steps=64",
        "S: last block": f"{D} learner.aligned_blocks=1",
        "S: all": f"{D} learner.aligned_blocks=all",
        "16 rows a feedback batch": f"{D} data.feedback.batch_size=16",
        "128 rows a feedback batch": f"{D} data.feedback.batch_size=128",
        "tilt 0.5": f"{D} designer.tilt=0.5",
        "tilt 4": f"{D} designer.tilt=4",
        "closed_form, K 8": CLOSED,
        "closed_form, K 24": f"{CLOSED} designer.candidates=24",
    },
    "evaluate.split=dev",
)
for size in (64, 256, 2048):
    spec = ROWS.format(size)
    STUDIES["dev-knobs"].rows[f"{size} feedback problems"] = (D, spec)

THREE = tuple(replace(start, seeds=(100, 101, 102)) for start in DEV)
CENTRAL, ONE_SIDED = (
    f"value.estimator={side}" for side in ("central_difference", "one_sided_difference")
)
add(
    "dev-one-sided",
    "whether one-sided differences do as well as central ones",
    "demo-language",
    THREE,
    {
        "onehot": "arm=onehot",
        **{
            f"{name}{label}": f"{arm} {estimator}"
            for name, arm in (
                ("document_weights", D),
                ("token_weights", W),
                ("closed_form", CLOSED),
            )
            for label, estimator in (("", CENTRAL), (", one-sided", ONE_SIDED))
        },
    },
    "evaluate.split=dev",
)
add(
    "dev-listening",
    "how much feedback is listened to, and how often",
    "demo-language",
    THREE,
    {
        "onehot": "arm=onehot",
        **{
            f"{rows} rows every {period}": f"{D} data.feedback.batch_size={rows} "
            f"value.meta_period={period}"
            for period in (8, 16, 32)
            for rows in (8, 16, 32)
        },
    },
    "evaluate.split=dev",
    CENTRAL,
)
ALONE = "data.packing=false data.batch_size={} learner.accumulate={}"
add(
    "dev-few-documents",
    "weights among few documents: 80 a step, in batches of fewer",
    "demo-language",
    (replace(MAJORITY[0], seeds=(100, 101, 102)),),
    {
        "onehot": "arm=onehot " + ALONE.format(80, 1),
        **{
            f"document_weights, {size} in a batch": f"{D} " + ALONE.format(size, 80 // size)
            for size in (80, 16, 4, 1)
        },
        **{
            f"token_weights, {size} in a batch": f"{W} " + ALONE.format(size, 80 // size)
            for size in (80, 4)
        },
    },
    "evaluate.split=dev",
    "budget.steps=120",
    "evaluate.every=0",
)
add(
    "dev-cheaper",
    "document weights for fewer seconds: values from the last block alone, rarer meta steps",
    "demo-language",
    THREE,
    {
        "onehot": "arm=onehot",
        "document_weights": D,
        "S: last block": f"{D} learner.aligned_blocks=1",
        "period 32": f"{D} value.meta_period=32",
        "S: last block, period 16": f"{D} learner.aligned_blocks=1 value.meta_period=16",
        "S: last block, period 32": f"{D} learner.aligned_blocks=1 value.meta_period=32",
    },
    "evaluate.split=dev",
)
