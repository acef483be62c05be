"""GSM8K feedback, on a small learner of our own and on SmolLM2."""

from __future__ import annotations

from studies.starts import GSM, GSM_START, NOISY, WEAK_START, W
from studies.study import STUDIES, Start, Study, add, arms

REAL = arms("onehot", "token_weights", "closed_form", "fixed_random_direction")
add(
    "gsm8k-noisy",
    "real text, wrong digits planted in 30% of the stream's GSM8K rows",
    NOISY,
    GSM_START,
    # The last row is one-hot with the steps that fit into the seconds of token_weights.
    REAL | {"onehot, 155 steps": "arm=onehot budget.steps=155"},
)
add(
    "gsm8k-second-start",
    "the noisy stream from a second learner, made in full",
    NOISY,
    (Start("gsm8k-1", GSM, 1, (3, 4, 5)),),
    arms("onehot", "token_weights"),
)
add(
    "gsm8k-weak",
    "the same from a learner that was made in half the steps",
    NOISY,
    (WEAK_START,),
    REAL,
)
add(
    "gsm8k",
    "real text as it is",
    GSM,
    GSM_START,
    arms("onehot", "token_weights", "fixed_random_direction"),
    "evaluate.tasks=[]",
)

ORACLE = "data.stream.2.rows.corrupt_digits=0.0"
add(
    "gsm8k-references",
    "real text with planted errors: a filter that knows them, and training on the feedback rows",
    NOISY,
    GSM_START,
    arms("onehot", "feedback_sft") | {"oracle: onehot without the errors": f"arm=onehot {ORACLE}"},
)
QUESTIONS = "kind: jsonl, path: mathematics/{file}.jsonl, prompt: problem, solution: solution"
SECOND = (
    "{" + QUESTIONS.format(file="valid") + ", skip_rows: 1412, rows: 333}"
)  # between rows that the stream holds too
MEASURED = "{" + QUESTIONS.format(file="valid") + ", rows: 1000}"
STUDIES["gsm8k-second-target"] = Study(
    "gsm8k-second-target",
    "one stream, two targets: word problems or mathematics questions steer",
    NOISY,
    GSM_START,
    {
        "onehot": ("arm=onehot",),
        "GSM8K steers": (W,),
        "mathematics questions steer": (W, f"data.feedback.rows={SECOND}"),
    },
    (f"data.evaluation.mathematics={MEASURED}", "evaluate.also=[mathematics]"),
)

add(
    "gsm8k-repeated",
    "the noisy stream; the best documents of a meta step trained on again",
    NOISY,
    GSM_START,
    {
        "onehot": "arm=onehot",
        "repeat_topk, period 4": "arm=repeat_topk value.meta_period=4",
        "token_weights": "arm=token_weights",
    },
    "evaluate.tasks=[]",
)
FEW_ROWS = "data.feedback.batch_size=8"
