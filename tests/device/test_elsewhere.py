"""Nothing of a run is left on the CPU where the learner is not."""

import subprocess
import sys

import pytest

from tests.designers import arms_of
from vpretrain.language.steering.arms import ARMS as LANGUAGE_ARMS
from vpretrain.vision.steering.arms import ARMS as VISION_ARMS

MIXED = """
import torch
from tests.device import elsewhere
with elsewhere.device() as device:
    weight = torch.ones(2, 3).to(device).requires_grad_()
    (torch.ones(4, 2).to(device) @ weight).sum().backward()
    print(weight.grad.device, weight.grad.cpu().tolist())
    try:
        weight @ torch.ones(3)
    except elsewhere.WrongDevice as error:
        print(error)
"""


def python(*arguments):
    """A process of its own: torch takes a device for good."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_the_device_computes_and_sees_what_is_left_on_the_cpu():
    ended = python("-c", MIXED)
    lines = ended.stdout.splitlines()
    assert lines[0] == "elsewhere:0 [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]", ended.stderr[-2000:]
    assert lines[1] == "aten.mv.default: (3,) on the CPU, the others elsewhere"


def assert_runs(modality, arms):
    ended = python("-m", "tests.device.runs", modality, *arms)
    assert ended.returncode == 0, f"{ended.stdout.splitlines()[-1:]}\n{ended.stderr[-3000:]}"
    assert [line for line in ended.stdout.splitlines() if line in arms] == list(arms)


@pytest.mark.parametrize(
    "arms",
    [
        ["ascent", "closed_form", "token_weights", "greats_topk"],
        pytest.param(arms_of(LANGUAGE_ARMS), marks=pytest.mark.slow),
    ],
    ids=["one of a kind", "all"],
)
def test_language_arms_step_evaluate_save_and_resume_there(arms):
    assert_runs("language", arms)


@pytest.mark.parametrize(
    "arms",
    [["ascent"], pytest.param(arms_of(VISION_ARMS, "dino"), marks=pytest.mark.slow)],
    ids=["one of a kind", "all"],
)
def test_vision_arms_step_evaluate_save_and_resume_there(arms):
    assert_runs("vision", arms)
