"""What a check of a vision recipe finds, and pictures that cannot be read."""

import pytest
import torch

from tests.vision.conftest import IJEPA, SCENES, SMALL, tiny_recipe
from vpretrain.run import resources
from vpretrain.run.resources import memory_needed
from vpretrain.studies.check import check
from vpretrain.system.errors import UserError
from vpretrain.vision import Vision
from vpretrain.vision.fit import shape_problems
from vpretrain.vision.loading import new_model


def problems(*overrides):
    return {
        problem.where: problem.message
        for problem in check("demo-vision", [*SMALL, *SCENES, *overrides])
    }


def test_check_finds_nothing_wrong_where_nothing_is():
    assert problems() == {} and problems(*IJEPA) == {}


def test_check_names_every_problem_at_once():
    result = problems(
        "arm=patch_weights",
        "learner.crops.local_size=15",
        "data.feedback.sets.0.train=300",
        "evaluate.neighbours=90",
    )
    assert set(result) == {"arm", "learner.crops.local_size", "data.feedback.sets.0.train"}
    result = problems(
        "evaluate.neighbours=90",
        "data.feedback.batch_size=20",
        "arm=ascent",
        "designer.keep_ratio=1",
    )
    assert set(result) == {"evaluate.neighbours", "data.feedback.batch_size", "designer.keep_ratio"}
    result = problems(
        "evaluate.blocks=7",
        "data.feedback.head.blocks=3",
        "designers.closed_form.candidates=99",
        "arm=closed_form",
        "data.image_size=28",
    )
    assert {"evaluate.blocks", "data.feedback.head.blocks"}.isdisjoint(
        result
    ) and "data.evaluation.test.0.size" in result
    result = problems(
        "evaluate.blocks=7",
        "data.feedback.head.blocks=3",
        "designers.closed_form.candidates=99",
        "arm=closed_form",
    )
    assert set(result) == {"evaluate.blocks", "data.feedback.head.blocks", "designer.candidates"}


@pytest.mark.parametrize(
    ("override", "where", "description"),
    [
        (
            "data.evaluation.test.0={kind: scenes, split: feedback, count: 6}",
            "data.feedback.sets",
            "also in data.eval",
        ),
        ("data.stream.0.pictures={kind: folder, images: nowhere}", "nowhere", "no such folder"),
        ("learner.config.patch_size=7", "learner.crops.global_size", "do not tile"),
        ("learner.config.hiden_size=7", "learner.config.hiden_size", "no such key"),
        ("learner.crops.global_scale=[0.9, 0.1]", "learner.crops", "lowest <= highest"),
        ("learner.blocks.targets=0", "learner.blocks.targets", "above 0"),
        ("evaluate.split=train", "evaluate.split", "which the probes learn from"),
        ("data.feedback.tasks={colour: 1}", "data.feedback.tasks", "colour"),
    ],
)
def test_check_refuses(override, where, description):
    result = check("demo-vision", [*SMALL, *SCENES, override])
    shown = "\n".join(str(problem) for problem in result)
    assert result and where in shown and description in shown


def test_learned_masks_need_two_global_views():
    one = "learner.crops.global_count=1"
    assert set(problems(one, "arm=ascent")) == {"learner.crops.global_count"}
    assert problems(one, "arm=view_weights") == {}


def test_the_teacher_and_what_the_recipe_keeps_are_counted(monkeypatch):
    recipe = tiny_recipe()
    model = new_model(recipe.learner.config, dtype=torch.float32, attention="sdpa")
    room = memory_needed(model, followers=1)
    monkeypatch.setattr(resources, "available_memory_bytes", lambda: room)
    assert shape_problems(recipe) == []
    monkeypatch.setattr(resources, "available_memory_bytes", lambda: room - 1)
    assert [problem.where for problem in shape_problems(recipe)] == ["memory"]
    monkeypatch.setattr(resources, "available_memory_bytes", lambda: None)
    many = tiny_recipe("checkpoint.keep_last=1000000000")
    assert [problem.where for problem in shape_problems(many)] == ["disk"]


def test_bad_pictures_stop_the_run_or_are_left_out_and_named(data_root, tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (data_root / "train/images").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    description = [f"data.stream.0.pictures={{kind: folder, images: {folder}}}"]
    with pytest.raises(UserError, match="broken"):
        Vision().load(tiny_recipe(*description))
    kept = Vision().load(tiny_recipe(*description, "data.on_bad_row=skip"))
    assert len(kept.sets.stream[0].pictures) == 8
    assert "1 pictures are left out" in (said := caplog.text) and "broken.png" in said.replace(
        "\n", ""
    )
