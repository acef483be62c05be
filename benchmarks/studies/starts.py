"""Starts and settings that several studies share."""

from __future__ import annotations

from dataclasses import replace

from studies.study import Start

MAJORITY = (
    Start("majority-0", "demo-language", None, (0, 1)),
    Start("majority-1", "demo-language", 1, (2, 3)),
    Start("majority-2", "demo-language", 2, (4, 5)),
)
DEV = (Start("majority-1", "demo-language", 1, (100,)),)

MINORITY = (
    Start("minority-0", "demo-language-minority", None, (0, 1)),
    Start("minority-1", "demo-language-minority", 1, (2, 3)),
    Start("minority-2", "demo-language-minority", 2, (4, 5)),
)


GSM, NOISY = "recipes/language/gsm8k-small.yaml", "recipes/language/gsm8k-small-noisy.yaml"
GSM_START = (Start("gsm8k-0", GSM, 0, (0, 1, 2)),)
WEAK = "learner.prepare.phases=[{steps: 1000, learning_rate: 1.5e-3, to: 1e-4}]"
WEAK_START = Start("gsm8k-1, half the steps", GSM, 1, (2,), (WEAK,))

SMOL = "recipes/language/gsm8k-smollm2.yaml"
RELEASED = Start(
    "released",
    SMOL,
    None,
    (0, 1, 2),
    folder="smollm2",
    command="../shared/models/fetch smollm2-135m MODELS/smollm2",
)
ADAPTED = replace(
    RELEASED,
    name="adapted",
    folder="smollm2-adapted/model",
    command=f"vpretrain train {SMOL} arm=onehot budget.steps=30 seed=9 learner.dtype=bfloat16 "
    "learner.model=MODELS/smollm2 --out MODELS/smollm2-adapted",
)

W, C, F, D = "arm=token_weights", "arm=closed_form", "arm=field", "arm=document_weights"
CLOSED = "arm=closed_form value.memory=0.0"  # memory costs it on dev
CLEAN = "data.stream.0.rows.noise_share=0.0 data.stream.0.rows.random_share=0.0"
