"""GSM8K feedback on real checkpoints: SmolLM2-135M with all parameters, Qwen2.5-0.5B by LoRA."""

from __future__ import annotations

from dataclasses import replace

from studies.paper_designer import PAPER
from studies.real_text import MEASURED, QUESTIONS
from studies.starts import ADAPTED, CLOSED, RELEASED, SMOL, D, W
from studies.study import add

BFLOAT16 = ("learner.dtype=bfloat16", "threads=1")
ERRORS = "data.stream.2.rows.corrupt_digits=0.3"
ELSEWHERE = (
    "data.stream.1.rows.skip_rows=40",  # of the prose, so that some is held out
    "data.evaluation.prose={kind: jsonl, path: prose/docs.jsonl, text: text, rows: 12}",
    "data.evaluation.mathematics=" + MEASURED.replace("1000", "60"),
    "evaluate.also=[mathematics,prose]",
)
DEV = ("evaluate.split=dev", "data.evaluation.dev.rows=100", ERRORS)
TEST = ("data.evaluation.test.rows=100", *BFLOAT16, *ELSEWHERE)

FREE = "value.shrink=false"
DOCUMENTS = f"{D} designer.tilt=1.5 {FREE}"
FEWER_ROWS = "data.feedback.batch_size=8"
# MODELS/smollm2-reference is the adapted checkpoint after 64 steps on the feedback rows:
# vpretrain train recipes/language/gsm8k-smollm2.yaml arm=feedback_sft budget.steps=64 seed=9
#     learner.dtype=bfloat16 threads=1 learner.model=MODELS/smollm2-adapted/model
#     --out MODELS/smollm2-reference
REFERENCE = "designer.reference=MODELS/smollm2-reference/model"
RHO = f"arm=rho1 {REFERENCE}"
RANDOM = "arm=fixed_random_direction designer.kind=document_weights designer.tilt=1.5"

DEV_START = (replace(ADAPTED, seeds=(100,)),)
add(
    "dev-smollm2-noisy",
    "SmolLM2-135M after 30 one-hot steps: weights or selection",
    SMOL,
    DEV_START,
    {
        "onehot": "arm=onehot",
        "oracle: onehot, clean stream": "arm=onehot data.stream.2.rows.corrupt_digits=0",
        "document_weights, tilt 1.5": f"{D} designer.tilt=1.5 value.shrink=true",
        "document_weights, tilt 1.5, no shrinkage": DOCUMENTS,
        "greats_topk, 2 draws": "arm=greats_topk designer.alignment=optimizer_aware",
        "rho1": RHO,
    },
    *DEV,
)
add(
    "dev-smollm2-cheap",
    "SmolLM2-135M after 30 one-hot steps: what chooses at little cost",
    SMOL,
    DEV_START,
    {
        "onehot": "arm=onehot",
        "repeat_topk": f"arm=repeat_topk {FEWER_ROWS}",
        "dga, step 1": f"arm=dga designer.step_size=1 {FEWER_ROWS}",
    },
    *DEV,
    *BFLOAT16,
)
add(
    "dev-smollm2-less-feedback",
    "SmolLM2-135M after 30 one-hot steps: document weights on less feedback",
    SMOL,
    DEV_START,
    {
        "onehot": "arm=onehot",
        "document_weights, 16 rows": DOCUMENTS,
        "document_weights, 8 rows": f"{DOCUMENTS} {FEWER_ROWS}",
        "document_weights, 8 rows, S: last block": f"{DOCUMENTS} {FEWER_ROWS} "
        "learner.aligned_blocks=1",
    },
    *DEV,
    *BFLOAT16,
)

add(
    "dev-smollm2-shrinkage",
    "SmolLM2-135M after 30 one-hot steps: shrinkage by an agreement over the recent meta steps",
    SMOL,
    DEV_START,
    {
        "onehot": "arm=onehot",
        "document_weights": f"{D} designer.tilt=1.5 value.shrink=true",
        "document_weights, no shrinkage": DOCUMENTS,
    },
    *DEV,
    *BFLOAT16,
)

ROWS = {"onehot": "arm=onehot", "document_weights": DOCUMENTS, "fixed_random_direction": RANDOM}
AS_MANY_SECONDS = {"onehot, 34 steps": "arm=onehot budget.steps=34"}
add(
    "smollm2-noisy",
    "SmolLM2-135M after 30 one-hot steps; wrong digits in 30% of the stream's GSM8K rows",
    SMOL,
    (ADAPTED,),
    ROWS
    | {
        "oracle: onehot, clean stream": "arm=onehot data.stream.2.rows.corrupt_digits=0",
        "token_weights": f"{W} {FREE}",
    }
    | AS_MANY_SECONDS,
    ERRORS,
    *TEST,
)
add(
    "smollm2-whole",
    "the noisy stream, on all 1,319 held-out rows and with Pass@1 on 200 of them",
    SMOL,
    (replace(ADAPTED, seeds=(0, 1)),),
    {"onehot": "arm=onehot", "document_weights": DOCUMENTS},
    ERRORS,
    *BFLOAT16,
    "data.evaluation.test.rows=1319",
    "evaluate.tasks=[gsm8k]",
    "evaluate.task_rows=200",
    "evaluate.task_tokens=160",
)
add(
    "smollm2-selection",
    "the noisy stream: weights, selection and rows by hand",
    SMOL,
    (replace(ADAPTED, seeds=(0, 1)),),
    {
        "onehot": "arm=onehot",
        "document_weights, tilt 1.5, no shrinkage": DOCUMENTS,
        "greats_topk, 2 draws": "arm=greats_topk designer.alignment=optimizer_aware",
        "rho1": RHO,
        "onehot, GSM8K rows alone": "arm=onehot data.stream.0.weight=0.001 "
        "data.stream.1.weight=0.001",
        "onehot, 48 steps": "arm=onehot budget.steps=48",  # as long as greats_topk
    },
    ERRORS,
    *TEST,
)
add(
    "smollm2-seconds",
    "the noisy stream: weights on less feedback, and plain steps in as many seconds",
    SMOL,
    (ADAPTED,),
    {
        "onehot, 31 steps": "arm=onehot budget.steps=31",
        "document_weights, tilt 1.5, no shrinkage, 8 rows": f"{DOCUMENTS} {FEWER_ROWS}",
    },
    ERRORS,
    *TEST,
)
add(
    "smollm2-clean",
    "SmolLM2-135M after 30 one-hot steps; the same stream without errors",
    SMOL,
    (ADAPTED,),
    {"onehot": "arm=onehot", "document_weights": DOCUMENTS},
    *TEST,
)
add(
    "smollm2-designers",
    "the noisy stream: designers of soft targets, and the feedback rows as training data",
    SMOL,
    (ADAPTED,),
    {
        "onehot": "arm=onehot",
        "closed_form": f"{CLOSED} {FREE}",
        "ascent, the paper's settings": PAPER,
        "feedback_sft": "arm=feedback_sft",
    },
    ERRORS,
    *TEST,
)
TENTH = tuple(f"data.stream.{at}.weight={weight}" for at, weight in enumerate((0.45, 0.45, 0.1)))
add(
    "smollm2-tenth",
    "SmolLM2-135M after 30 one-hot steps; a tenth of the noisy stream's documents are GSM8K's",
    SMOL,
    (ADAPTED,),
    ROWS | {"rho1": RHO} | AS_MANY_SECONDS,
    ERRORS,
    *TENTH,
    *TEST,
)

LATE = replace(
    RELEASED,
    seeds=(0, 1, 2, 3),
    name="after 150 steps",
    folder="smollm2-late/model",
    command=f"vpretrain train {SMOL} arm=onehot budget.steps=150 seed=9 threads=1 "
    f"learner.dtype=bfloat16 learner.model=MODELS/smollm2 {ERRORS} data.stream.1.rows.skip_rows=40 "
    "--out MODELS/smollm2-late",
)
add(
    "smollm2-late",
    "SmolLM2-135M after 150 one-hot steps on the noisy stream, when it learns little more from it",
    SMOL,
    (LATE,),
    {
        "onehot": "arm=onehot",
        "document_weights": DOCUMENTS,
        "onehot, 34 steps": "arm=onehot budget.steps=34",
        "fixed_random_direction": RANDOM,
    },
    ERRORS,
    *TEST,
)
add(
    "smollm2-late-again",
    "the same with other seeds and three times the held-out rows",
    SMOL,
    (replace(LATE, seeds=(4, 5, 6)),),
    {
        "onehot, 34 steps": "arm=onehot budget.steps=34",
        "document_weights": DOCUMENTS,
        "onehot": "arm=onehot",
    },
    ERRORS,
    *TEST,
    "data.evaluation.test.rows=300",
)

QUESTIONS_AND_PROSE = (
    "data.stream=[{name: mathematics, weight: 0.5, rows: {"
    + QUESTIONS.format(file="train")
    + ", rows: 40000}}, {name: prose, weight: 0.5, rows: {kind: jsonl, path: prose/docs.jsonl, "
    "text: text, skip_rows: 40}}]"
)
WITHOUT = replace(
    RELEASED,
    name="adapted without GSM8K",
    folder="smollm2-without/model",
    command=f"vpretrain train {SMOL} arm=onehot budget.steps=30 seed=9 threads=1 "
    f"learner.dtype=bfloat16 learner.model=MODELS/smollm2 '{QUESTIONS_AND_PROSE}' "
    "--out MODELS/smollm2-without",
)
add(
    "smollm2-without",
    "SmolLM2-135M on a stream that holds no GSM8K text at all",
    SMOL,
    (WITHOUT,),
    ROWS,
    QUESTIONS_AND_PROSE,
    *TEST,
)
LORA = (
    "learner.lora={r: 8, alpha: 16, targets: "
    "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]}",
    "learner.learning_rate=2e-4",
    "data.batch_size=4",
)
QWEN = replace(
    RELEASED,
    seeds=(0,),
    folder="qwen",
    command="../shared/models/fetch qwen2.5-0.5b MODELS/qwen",
)
OF_QWEN = (
    *LORA,
    FEWER_ROWS,
    "data.evaluation.test.rows=60",
    "data.evaluation.mathematics=" + MEASURED.replace("1000", "60"),
    "evaluate.also=[mathematics]",
    "threads=1",
)
add(
    "qwen-without",
    "adapters of Qwen2.5-Coder-0.5B on the stream that holds no GSM8K text",
    SMOL,
    (QWEN,),
    {"onehot": "arm=onehot", "document_weights, tilt 1.5, no shrinkage": DOCUMENTS},
    QUESTIONS_AND_PROSE,
    *OF_QWEN,
)
add(
    "qwen-noisy",
    "adapters of Qwen2.5-Coder-0.5B after 30 one-hot steps; wrong digits in 30% of GSM8K's rows",
    SMOL,
    (
        replace(
            QWEN,
            name="adapted",
            seeds=(0, 1, 2),
            folder="qwen-adapted/model",
            command=f"vpretrain train {SMOL} arm=onehot budget.steps=30 seed=9 threads=1 "
            f"learner.dtype=bfloat16 learner.model=MODELS/qwen '{LORA[0]}' {' '.join(LORA[1:])} "
            "--out MODELS/qwen-adapted",
        ),
    ),
    {"onehot": "arm=onehot", "document_weights": DOCUMENTS},
    ERRORS,
    *OF_QWEN,
    "learner.dtype=bfloat16",
)
