"""The paper's designer as the paper has it (v1 A.1, A.2; v2 F.2), see docs/results.md."""

from __future__ import annotations

from dataclasses import replace

from studies.starts import DEV, GSM, GSM_START, MAJORITY, NOISY, WEAK_START
from studies.study import add, once

PAPER_VALUE = (
    "value.unit=raw value.alignment=dot value.memory=0 value.shrink=false value.guard_window=0 "
    "data.feedback.batches=1 learner.aligned_norm=false learner.aligned_head=false"
)
PAPER_NETWORK = (
    "designer.candidates=64 designer.gate_max=0.5 designer.hidden=256 designer.layers=6 "
    "designer.heads=4 designer.learning_rate=1e-4 designer.updates=1"
)
PAPER = f"arm=ascent {PAPER_NETWORK} {PAPER_VALUE}"
PAPER_SCHEDULE = (
    "learner.final_fraction=0.0",
    "learner.loss_mean=example",
    "data.feedback.loss_mean=example",
    # In every row, the baseline included: settled moments alone would set rows apart.
    "value.settle_steps=0",
)
OURS_HIDDEN = f"arm=hidden_ascent {PAPER_NETWORK} {PAPER_VALUE}"
add(
    "dev-paper-designer",
    "from the paper's settings of its designer, one change at a time",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "ascent": PAPER,
        "ascent, random feedback": f"{PAPER} feedback.control=random",
        "ascent, starts at the learner": f"{PAPER} designer.start=learner",
        "ascent, rate 1e-3": f"{PAPER} designer.learning_rate=1e-3",
        "ascent, gate 0.1": f"{PAPER} designer.gate_max=0.1",
        "ascent, 8 updates": f"{PAPER} designer.updates=8",
        "ascent, starts at the learner, rate 1e-3": f"{PAPER} designer.start=learner "
        "designer.learning_rate=1e-3",
        "ascent, cosine": f"{PAPER} value.alignment=cosine",
        "ascent, optimizer-aware": f"{PAPER} value.alignment=optimizer_aware",
        "ascent, head and norm in S": f"{PAPER} learner.aligned_norm=true "
        "learner.aligned_head=true",
        "ascent, period 1": f"{PAPER} value.meta_period=1",
        "reads hidden states": OURS_HIDDEN,
        "regression": f"arm=field {PAPER_NETWORK} {PAPER_VALUE} value.unit=standardised",
        "closed_form": "arm=closed_form",
        "document_weights": "arm=document_weights",
    },
    "evaluate.split=dev",
    *PAPER_SCHEDULE,
)

FROM_LEARNER = f"{PAPER} designer.start=learner"
add(
    "dev-paper-designer-start",
    "the paper's designer, its targets starting at the learner's own probabilities (ours)",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "rate 1e-3": f"{FROM_LEARNER} designer.learning_rate=1e-3",
        "rate 3e-3": f"{FROM_LEARNER} designer.learning_rate=3e-3",
        "rate 1e-3, 8 updates": f"{FROM_LEARNER} designer.learning_rate=1e-3 designer.updates=8",
        "rate 1e-3, optimizer-aware": f"{FROM_LEARNER} designer.learning_rate=1e-3 "
        "value.alignment=optimizer_aware",
        "reads hidden states, rate 1e-3": f"{OURS_HIDDEN} designer.start=learner "
        "designer.learning_rate=1e-3",
    },
    "evaluate.split=dev",
    *PAPER_SCHEDULE,
)
LEARNED = f"{FROM_LEARNER} designer.learning_rate=1e-3"
PAPER_ROWS = {
    "onehot": "arm=onehot",
    "ascent": PAPER,
    "ascent, random feedback": f"{PAPER} feedback.control=random",
    "ascent from the learner": LEARNED,
    "ascent from the learner, random feedback": f"{LEARNED} feedback.control=random",
    "reads hidden states": OURS_HIDDEN,
    "uniform smoothing, same gate": "arm=uniform_smoothing designer.candidates=64 "
    "designer.control_gate=0.023",
    "self-distillation, same gate": "arm=self_distillation designer.candidates=64 "
    "designer.control_gate=0.023",
    "closed_form": "arm=closed_form",
    "document_weights": "arm=document_weights",
}
add(
    "paper-designer",
    "the paper's designer as the paper has it, 30 updates",
    "demo-language",
    MAJORITY,
    PAPER_ROWS,
    *PAPER_SCHEDULE,
)
LONG_ROWS = {row: PAPER_ROWS[row] for row in ("onehot", "ascent", "document_weights")}
add(
    "paper-designer-250",
    "the same with 250 updates, in 2,000 steps",
    "demo-language",
    once(MAJORITY),
    LONG_ROWS,
    "budget.steps=2000",
    "evaluate.every=250",
    *PAPER_SCHEDULE,
)
add(
    "paper-designer-1000",
    "the same with 1,000 updates, in 8,000 steps",
    "demo-language",
    once(MAJORITY[:1]),
    {row: PAPER_ROWS[row] for row in ("onehot", "ascent")},
    "budget.steps=8000",
    "evaluate.every=1000",
    *PAPER_SCHEDULE,
)
BETTER_START = f"{LEARNED} value.alignment=optimizer_aware"
REAL_ROWS = {row: PAPER_ROWS[row] for row in ("onehot", "ascent", "ascent from the learner")} | {
    "ascent from the learner, optimizer-aware": BETTER_START,
}
ON_REAL_TEXT = ("evaluate.tasks=[]", "budget.steps=120", *PAPER_SCHEDULE)
add(
    "paper-designer-gsm8k",
    "the paper's designer and its two best variants on real text",
    GSM,
    GSM_START,
    REAL_ROWS,
    *ON_REAL_TEXT,
)
add(
    "paper-designer-gsm8k-noisy",
    "the paper's designer on real text with planted errors",
    NOISY,
    (replace(WEAK_START, seeds=(0, 1, 2)),),
    {row: PAPER_ROWS[row] for row in ("onehot", "ascent")},
    *ON_REAL_TEXT,
)
