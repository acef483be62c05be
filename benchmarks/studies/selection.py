"""Document weights beside what people would use instead: selection and reweighting of the stream.

Settings on dev, from each method's defaults one change at a time; then on test, once.
"""

from __future__ import annotations

from dataclasses import replace

from studies.starts import CLEAN, DEV, GSM, GSM_START, MAJORITY, MINORITY, NOISY, D, W
from studies.study import add

GREATS, OPUS, RHO, DGA = "arm=greats_topk", "arm=opus", "arm=rho1", "arm=dga"
add(
    "dev-selection",
    "how much is drawn, how it is chosen",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "document_weights": D,
        "greats_topk": GREATS,
        "greats_topk, 4 draws": f"{GREATS} designer.draws=4",
        "greats_topk, optimizer-aware": f"{GREATS} designer.alignment=optimizer_aware",
        "greats_topk, optimizer-aware, 4 draws": f"{GREATS} designer.alignment=optimizer_aware "
        "designer.draws=4",
        "greats_topk, interaction 0.1": f"{GREATS} designer.interaction=0.1",
        "opus": OPUS,
        "opus, temperature 0.3": f"{OPUS} designer.temperature=0.3",
        "opus, temperature 0.3, no redundancy": f"{OPUS} designer.temperature=0.3 "
        "designer.redundancy=0",
        "rho1": RHO,
        "rho1, reference at 1e-3": f"{RHO} designer.reference_learning_rate=1e-3",
        "rho1, keep 0.3": f"{RHO} designer.keep=0.3",
        "dga": DGA,
        "dga, step 1": f"{DGA} designer.step_size=1",
        "random_selection": "arm=random_selection",
    },
    "evaluate.split=dev",
)
AWARE = f"{GREATS} designer.alignment=optimizer_aware designer.draws=4"
REPEAT4 = "arm=repeat_topk value.meta_period=4"
OTHERS = {
    "document_weights": D,
    "token_weights": W,
    "repeat_topk, period 4": REPEAT4,
    "greats_topk, optimizer-aware, 4 draws": AWARE,
    "opus": OPUS,
    "rho1": RHO,
    "dga": DGA,
    "random_selection": "arm=random_selection",
}
add(
    "selection",
    "selection and reweighting of one stream, each at its settings from dev",
    "demo-language",
    MAJORITY,
    {"onehot": "arm=onehot", **OTHERS, "oracle: onehot, clean stream": f"arm=onehot {CLEAN}"},
)
REPEAT = "arm=repeat_topk"
add(
    "dev-repeated",
    "selection at the price of a meta step in n: the best documents of a meta step, again",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "document_weights": D,
        "repeat_topk": REPEAT,
        "repeat_topk, period 4": f"{REPEAT} value.meta_period=4",
    },
    "evaluate.split=dev",
)
add(
    "repeated",
    "the best documents of a meta step trained on again",
    "demo-language",
    MAJORITY,
    {
        "onehot": "arm=onehot",
        "repeat_topk": REPEAT,
        "repeat_topk, period 4": f"{REPEAT} value.meta_period=4",
        "repeat_topk, period 32": f"{REPEAT} value.meta_period=32 designer.repeats=32",
        "repeat_topk, fixed random direction": "arm=fixed_random_direction "
        "designer.kind=repeat_topk",
        "onehot, 360 steps": "arm=onehot budget.steps=360",  # more seconds than either
    },
)

# MODELS/gsm8k-reference is the learner after as many tokens of the feedback rows as rho1 trains its
# reference on, in more and smaller steps: vpretrain train recipes/language/gsm8k-small.yaml
#     arm=feedback_sft budget.tokens=770000 seed=9 data.evaluation.test.rows=20 evaluate.tasks=[]
#     learner.prepare.seed=0 --out MODELS/gsm8k-reference
GIVEN = f"{RHO} designer.reference=MODELS/gsm8k-reference/model"
add(
    "dev-gsm8k-selection",
    "the noisy GSM8K stream: each method's settings",
    NOISY,
    (replace(GSM_START[0], seeds=(100,)),),
    {
        "onehot": "arm=onehot",
        "token_weights": W,
        "document_weights": D,
        "document_weights, tilt 1.5": f"{D} designer.tilt=1.5",
        "rho1": RHO,
        "rho1, reference at 1e-3": f"{RHO} designer.reference_learning_rate=1e-3",
        "rho1, reference given": GIVEN,
    },
    "evaluate.split=dev",
)

# Steps that take as many seconds as 240 of one-hot's: by the seconds of `selection`'s first pair on
# an idle machine (1.42, 1.43, 3.6, 5.6), and rho1's after its reference (0.16) at 1.33 a step.
add(
    "selection-seconds",
    "in as many seconds as one-hot's 240 steps",
    "demo-language",
    MAJORITY,
    {
        "onehot": "arm=onehot",
        "document_weights, 169 steps": f"{D} budget.steps=169",
        "repeat_topk, period 4, 168 steps": f"{REPEAT4} budget.steps=168",
        "greats_topk, optimizer-aware, 4 draws, 67 steps": f"{AWARE} budget.steps=67",
        "opus, 43 steps": f"{OPUS} budget.steps=43",
        "rho1, 152 steps": f"{RHO} budget.steps=152",
    },
)
add(
    "selection-irrelevant",
    "nine documents of ten are about something else",
    "recipes/language/regimes/mostly-irrelevant.yaml",
    MAJORITY,
    {
        "onehot": "arm=onehot",
        "document_weights": D,
        "repeat_topk, period 4": REPEAT4,
        "rho1": RHO,
        "dga": DGA,
    },
)
add(
    "selection-format",
    "a clean stream, where there is nothing to choose",
    "recipes/language/regimes/other-format.yaml",
    MINORITY[:1],
    {"onehot": "arm=onehot", "document_weights": D, "rho1": RHO, "repeat_topk, period 4": REPEAT4},
)
QUESTIONS = (
    "{kind: jsonl, path: mathematics/valid.jsonl, prompt: problem, solution: solution, "
    "skip_rows: 1412, rows: 333}"  # between rows that the stream holds too
)
BESIDE_MATHEMATICS = (
    "evaluate.tasks=[]",
    f"data.evaluation.mathematics={QUESTIONS}",
    "evaluate.also=[mathematics]",
)
WEIGHED = {
    "onehot": "arm=onehot",
    "token_weights": W,
    "document_weights, tilt 1.5": f"{D} designer.tilt=1.5",
    "rho1": RHO,
}
# as many seconds as rho1 takes with its reference
LONGER = {"token_weights, 230 steps": f"{W} budget.steps=230"}
for name, recipe, rows in (
    ("gsm8k-selection", NOISY, WEIGHED | LONGER),
    ("gsm8k-selection-clean", GSM, WEIGHED),
):
    add(
        name,
        "weights by value beside Rho-1, and what they cost what the feedback is not about",
        recipe,
        GSM_START,
        rows,
        *BESIDE_MATHEMATICS,
    )

# On GSM8K a reference takes one pass over the rows, a third of what it takes in gsm8k-selection.
EXCESS, ONE_PASS = "arm=excess_weights", "designer.reference_epochs=1"
BY_EXCESS = {
    "onehot": "arm=onehot",
    "excess_weights": EXCESS,
    "excess_weights, shuffled feedback": "arm=shuffled_feedback designer.kind=excess_weights",
}
add(
    "excess-gsm8k-noisy",
    "documents by value and tokens by excess loss, beside Rho-1 with a reference of one pass",
    NOISY,
    GSM_START,
    BY_EXCESS | {"rho1, one epoch": f"{RHO} {ONE_PASS}"},
    *BESIDE_MATHEMATICS,
)
for name, description, recipe, starts in (
    (
        "excess",
        "documents by value and tokens by excess loss",
        "demo-language",
        MAJORITY[:1],
    ),
    (
        "excess-format",
        "the same where there is nothing to choose",
        "recipes/language/regimes/other-format.yaml",
        MINORITY[:1],
    ),
):
    add(name, description, recipe, starts, BY_EXCESS | {"document_weights": D, "rho1": RHO})

add(
    "gsm8k-tenth",
    "a tenth of the noisy stream's documents are GSM8K's",
    NOISY,
    GSM_START,
    {
        "onehot": "arm=onehot",
        "document_weights, tilt 1.5": f"{D} designer.tilt=1.5",
        "token_weights": W,
        "excess_weights": EXCESS,
        "rho1, one epoch": f"{RHO} {ONE_PASS}",
        "greats_topk, optimizer-aware": f"{GREATS} designer.alignment=optimizer_aware",
        "opus": OPUS,
        "dga": DGA,
        "fixed_random_direction": "arm=fixed_random_direction",
        "random_selection": "arm=random_selection",
    },
    *BESIDE_MATHEMATICS,
    *(f"data.stream.{at}.weight={weight}" for at, weight in enumerate((0.45, 0.45, 0.1))),
)
