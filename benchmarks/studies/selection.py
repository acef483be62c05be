"""Document weights beside what people would use instead: selection and reweighting of the stream.

Settings on dev, from each method's defaults one change at a time; then on test, once.
"""

from __future__ import annotations

from studies.starts import CLEAN, DEV, MAJORITY, D
from studies.study import add, once

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
add(
    "selection",
    "selection and reweighting of one stream, each at its settings from dev",
    "demo-language",
    once(MAJORITY),
    {
        "onehot": "arm=onehot",
        "document_weights": D,
        "opus": OPUS,
        # as many seconds as opus takes
        "document_weights, 720 steps": f"{D} budget.steps=720",
        "greats_topk, optimizer-aware, 4 draws": f"{GREATS} designer.alignment=optimizer_aware "
        "designer.draws=4",
        "rho1": RHO,
        "dga": DGA,
        "random_selection": "arm=random_selection",
        "oracle: onehot, clean stream": f"arm=onehot {CLEAN}",
    },
)
REPLAY = "arm=replay"
add(
    "dev-replay",
    "selection at the price of a meta step in n: how much is trained on again, and how often",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "replay": REPLAY,
        "replay, 16 repeats": f"{REPLAY} designer.repeats=16",
        "replay, period 4, 4 repeats": f"{REPLAY} value.meta_period=4 designer.repeats=4",
        "replay, a quarter": f"{REPLAY} designer.share=0.25",
        "replay, all": f"{REPLAY} designer.share=1 designer.repeats=16",
        "replay, period 4, 8 repeats": f"{REPLAY} value.meta_period=4",
    },
    "evaluate.split=dev",
)
