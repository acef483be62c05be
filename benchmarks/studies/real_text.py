"""GSM8K feedback, on a small learner of our own and on SmolLM2."""

from __future__ import annotations

from dataclasses import replace

from studies.starts import ADAPTED, GSM, GSM_START, NOISY, RELEASED, SMOL, WEAK_START, D, W
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
ERRORS = "data.stream.2.rows.corrupt_digits=0.3"
ORACLE_FILTER = {"oracle: onehot, clean stream": "arm=onehot data.stream.2.rows.corrupt_digits=0"}
BY_HAND = {
    "onehot, GSM8K rows alone": "arm=onehot data.stream.0.weight=0.001 data.stream.1.weight=0.001"
}
UNSHRUNK = {"document_weights, tilt 1.5, no shrinkage": f"{D} designer.tilt=1.5 value.shrink=false"}
GREATS = "arm=greats_topk designer.alignment=optimizer_aware"
# MODELS/smollm2-reference is the adapted checkpoint after 64 steps on the feedback rows:
# vpretrain train recipes/language/gsm8k-smollm2.yaml arm=feedback_sft budget.steps=64 seed=9
#     learner.dtype=bfloat16 learner.model=MODELS/smollm2-adapted/model
#     --out MODELS/smollm2-reference
RHO = "arm=rho1 designer.reference=MODELS/smollm2-reference/model"
add(
    "dev-smollm2-noisy",
    "SmolLM2-135M after 30 one-hot steps: weights or selection",
    SMOL,
    (replace(ADAPTED, seeds=(100,)),),
    {"onehot": "arm=onehot"}
    | ORACLE_FILTER
    | {
        "document_weights, tilt 1.5": f"{D} designer.tilt=1.5",
        **UNSHRUNK,
        "greats_topk, 2 draws": GREATS,
        "rho1": RHO,
    }
    | BY_HAND,
    "evaluate.split=dev",
    "data.evaluation.dev.rows=100",
    ERRORS,
)
ELSEWHERE = (
    "data.stream.1.rows.skip_rows=40",  # of the prose, so that some is held out
    "data.evaluation.prose={kind: jsonl, path: prose/docs.jsonl, text: text, rows: 12}",
    "data.evaluation.mathematics=" + MEASURED.replace("1000", "60"),
    "evaluate.also=[mathematics,prose]",
)
add(
    "smollm2-noisy",
    "SmolLM2-135M after 30 one-hot steps; wrong digits in 30% of the stream's GSM8K rows",
    SMOL,
    (replace(ADAPTED, seeds=(0, 1)),),
    {"onehot": "arm=onehot", **UNSHRUNK, "greats_topk, 2 draws": GREATS, "rho1": RHO}
    | BY_HAND
    # as many seconds as greats_topk takes
    | {"onehot, 48 steps": "arm=onehot budget.steps=48"},
    "data.evaluation.test.rows=100",
    ERRORS,
    "learner.dtype=bfloat16",
    "threads=1",
    *ELSEWHERE,
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
add(
    "dev-smollm2-cheap",
    "SmolLM2-135M after 30 one-hot steps: what chooses at little cost",
    SMOL,
    (replace(ADAPTED, seeds=(100,)),),
    {
        "onehot": "arm=onehot",
        "repeat_topk": f"arm=repeat_topk {FEW_ROWS}",
        "dga, step 1": f"arm=dga designer.step_size=1 {FEW_ROWS}",
    },
    "evaluate.split=dev",
    "data.evaluation.dev.rows=100",
    ERRORS,
    "learner.dtype=bfloat16",
    "threads=1",
)

FREE = f"{D} designer.tilt=1.5 value.shrink=false"
add(
    "dev-smollm2-less-feedback",
    "SmolLM2-135M after 30 one-hot steps: document weights on less feedback",
    SMOL,
    (replace(ADAPTED, seeds=(100,)),),
    {
        "onehot": "arm=onehot",
        "document_weights, 16 rows": FREE,
        "document_weights, 8 rows": f"{FREE} {FEW_ROWS}",
        "document_weights, 8 rows, S: last block": f"{FREE} {FEW_ROWS} learner.aligned_blocks=1",
    },
    "evaluate.split=dev",
    "data.evaluation.dev.rows=100",
    ERRORS,
    "learner.dtype=bfloat16",
    "threads=1",
)
add(
    "smollm2-seconds",
    "SmolLM2-135M after 30 one-hot steps, the noisy stream: weights and plain steps in as many "
    "seconds (1.31 of a step's each, dev-smollm2-less-feedback)",
    SMOL,
    (replace(ADAPTED, seeds=(0, 1, 2)),),
    {
        "onehot, 31 steps": "arm=onehot budget.steps=31",
        "document_weights, tilt 1.5, no shrinkage, 8 rows": f"{FREE} {FEW_ROWS}",
    },
    "data.evaluation.test.rows=100",
    ERRORS,
    "learner.dtype=bfloat16",
    "threads=1",
    *ELSEWHERE,
)

QUESTIONS_AND_PROSE = (
    "data.stream=[{name: mathematics, weight: 0.5, rows: {"
    + QUESTIONS.format(file="train")
    + ", rows: 40000}}, {name: prose, weight: 0.5, rows: {kind: jsonl, path: prose/docs.jsonl, "
    "text: text, skip_rows: 40}}]"
)
add(
    "smollm2-without",
    "SmolLM2-135M on a stream that holds no GSM8K text at all",
    SMOL,
    (
        replace(
            RELEASED,
            name="adapted without GSM8K",
            seeds=(0, 1),
            folder="smollm2-without/model",
            command=f"vpretrain train {SMOL} arm=onehot budget.steps=30 seed=9 threads=1 "
            f"learner.model=MODELS/smollm2 '{QUESTIONS_AND_PROSE}' --out MODELS/smollm2-without",
        ),
    ),
    {
        "onehot": "arm=onehot",
        **UNSHRUNK,
        "fixed_random_direction": "arm=fixed_random_direction designer.kind=document_weights "
        "designer.tilt=1.5",
        "document_weights, tilt 1.5": f"{D} designer.tilt=1.5",
    },
    QUESTIONS_AND_PROSE,
    "data.evaluation.test.rows=100",
    "threads=1",
    *ELSEWHERE,
)
add(
    "qwen-without",
    "adapters of Qwen2.5-Coder-0.5B on the stream that holds no GSM8K text",
    SMOL,
    (
        replace(
            RELEASED,
            seeds=(0,),
            folder="qwen",
            command="../shared/models/fetch qwen2.5-0.5b MODELS/qwen",
        ),
    ),
    {"onehot": "arm=onehot", **UNSHRUNK},
    QUESTIONS_AND_PROSE,
    "learner.lora={r: 8, alpha: 16, targets: "
    "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]}",
    "learner.learning_rate=2e-4",
    "data.batch_size=4",
    FEW_ROWS,
    "data.evaluation.test.rows=60",
    "data.evaluation.mathematics=" + MEASURED.replace("1000", "60"),
    "evaluate.also=[mathematics]",
    "threads=1",
)
