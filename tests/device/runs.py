"""Every arm of a modality on a device that is not the CPU: a meta step and a plain one, evaluation,
save and resume. Run as ``python -m tests.device.runs language ARM ...``; ends with the first
traceback.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

from tests.device import elsewhere
from tests.reliability.runs import build, language_recipe, vision_recipe
from vpretrain.run.checkpoint import CheckpointManager
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system import devices

RECIPES = {"language": language_recipe, "vision": vision_recipe}
TWO_STEPS = ["budget.steps=2", "value.meta_period=2", "value.settle_steps=0"]
FEW_ROWS = {  # every operation counts here, its size hardly does
    "language": ["data.evaluation.test.rows=4", "evaluate.new_tokens=1"],
    "vision": [],
}


def steps_and_resumes(recipe, materials, device):
    parts = build(recipe, materials)
    assert {p.device for p in parts.learner.model.parameters()} == {device}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointManager(Path(folder), every=1, keep_last=9)
        whole = train(Run(recipe, parts, step0=parts.evaluate(), checkpoints=checkpoints))
        shutil.rmtree(checkpoints.path(2))
        step, state = checkpoints.newest()
        assert step == 1
        rest = train(Run(recipe, build(recipe, materials), checkpoints=None, resume=state))
    assert rest.history[-1]["loss"] == whole.history[-1]["loss"]


def main(modality, arms):
    materials = {}
    with (
        elsewhere.device() as device,
        mock.patch.object(devices, "device", lambda: device),
    ):
        for arm in arms:
            print(arm, flush=True)
            recipe = RECIPES[modality](f"arm={arm}", *TWO_STEPS, *FEW_ROWS[modality])
            key = recipe.data.model_dump_json() + recipe.learner.model_dump_json()
            if key not in materials:
                materials[key] = MODALITIES[modality]().load(recipe)
            steps_and_resumes(recipe, materials[key], device)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
