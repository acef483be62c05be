"""The steered arm against the controls, over seeds and over held-out items."""

import json

from vpretrain.config.arms import CONTROLS, Arm
from vpretrain.language.steering.arms import ARMS as LANGUAGE
from vpretrain.studies.verdicts import judged

METRICS = {"test/nll": {"higher_is_better": False}}
ARMS = {
    "onehot": Arm("plain", role="baseline"),
    "token_weights": Arm("steers"),
    "random_feedback": CONTROLS["random_feedback"],
}


def test_arms_say_what_they_are_in_a_comparison():
    assert {arm.role for arm in CONTROLS.values()} == {"control"}
    roles = {name: arm.role for name, arm in LANGUAGE.all.items()}
    assert [name for name, role in roles.items() if role == "baseline"] == ["onehot"]
    assert roles["random_selection"] == roles["loss_weights"] == "control"
    assert roles["document_weights"] == roles["feedback_sft"] == "treatment"


def table(out, items=None, arms=ARMS):
    """Three seeds in which the steered arm is ahead; ``items`` of the control less its own."""
    means = {"onehot": 2.0, "token_weights": 1.0, "random_feedback": 1.9}
    runs = []
    (out / "runs").mkdir(exist_ok=True)
    for seed in range(3):
        for arm in arms:
            mean = means[arm] + 0.01 * seed * (arm == "token_weights")
            runs.append({"arm": arm, "seed": seed, "final": {"test/nll": mean}})
            figures = [mean] * 6
            if items and arm == "random_feedback":
                figures = [mean + each for each in items]
            path = out / "runs" / f"{arm}-{seed}.items.json"
            path.write_text(json.dumps({"test/nll": figures}))
    return judged(runs, METRICS, arms, out)


def test_a_control_is_worse_only_where_the_held_out_items_bear_it_out(tmp_path):
    result = table(tmp_path)
    pair = result["control_pairs"]["token_weights"]["random_feedback"]["test/nll"]
    assert pair["verdict"] == "worse" and pair["items"]["ci95"][0] > 0
    pair = table(tmp_path, items=[-9, 9, -9, 9, -9, 9])["control_pairs"]["token_weights"][
        "random_feedback"
    ]["test/nll"]
    low, high = pair["items"]["ci95"]
    assert low < 0 < high and pair["verdict"] == "undecided" and pair["p_holm"] < 0.05


def test_without_a_steered_arm_or_a_control_there_are_no_pairs(tmp_path):
    for arms in (
        ["onehot"],
        ["onehot", "token_weights"],
        ["onehot", "random_feedback"],
        ["token_weights", "onehot", "random_feedback"],
    ):
        assert table(tmp_path, arms={arm: ARMS[arm] for arm in arms})["control_pairs"] == {}


def test_a_metric_that_some_runs_lack_is_not_paired_over_items(tmp_path):
    """The evaluation was changed between two runs, and the change accepted."""
    arms = {arm: ARMS[arm] for arm in ("onehot", "token_weights")}
    table(tmp_path, arms=arms)
    (tmp_path / "runs" / "token_weights-2.items.json").write_text(json.dumps({"dev/nll": [1.0]}))
    runs = [
        {"arm": arm, "seed": seed, "final": {"test/nll": 0.1 * seed}}
        for arm in arms
        for seed in range(3)
    ]
    runs[-1]["final"] = {"dev/nll": 1.0}
    pair = judged(runs, METRICS, arms, tmp_path)["paired"]["token_weights"]["test/nll"]
    assert pair["difference"] == 0 and "items" not in pair
