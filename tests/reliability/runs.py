"""Tiny runs of both modalities, to be killed and gone on with."""

import hashlib
import json
import sys

from tests.run import test_train as language
from tests.vision import conftest as vision
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES
from vpretrain.system.files import write_json

FEW = ["budget.steps=7", "value.meta_period=3", "value.memory=0.5", "evaluate.every=0"]


def language_recipe(*overrides):
    return language.tiny_recipe(*FEW, *overrides)


def vision_recipe(*overrides, kind="dino"):
    return vision.tiny_recipe(*FEW, *overrides, kind=kind)


def build(recipe, materials):
    return MODALITIES[recipe.modality]().build(recipe, materials)


def weights_hash(parts):
    """Over all that the learner is: parameters and buffers of the model, and what it holds beside
    them.
    """
    digest = hashlib.sha256()

    def add(name, value):
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{name}/{key}", item)
        else:
            digest.update(name.encode() + value.detach().contiguous().view(-1).numpy().tobytes())

    add("model", dict(parts.learner.model.state_dict()))
    add(
        "learner",
        {k: v for k, v in parts.learner.state_dict().items() if not isinstance(v, (int, float))},
    )
    return digest.hexdigest()


def record(figures, out, part=None):
    """Prints figures with the command, machine and versions that they come from; writes them too
    where ``out`` is a path.

    Of several parts of one file each has a key of its own, and the others stay as they are.
    """
    command = " ".join(["python -m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]])
    whole = {**figures, "environment": {**environment(), "command": command}}
    print(json.dumps(whole, indent=1))
    if out is not None and part is not None:
        whole = {**(json.loads(out.read_text()) if out.is_file() else {}), part: whole}
    if out is not None:
        write_json(out, whole)
