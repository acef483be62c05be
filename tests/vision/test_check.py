"""What a check of a vision recipe finds, and pictures that cannot be read."""

import pytest

from tests.vision.conftest import IJEPA, SCENES, SMALL, tiny_recipe
from vpretrain.studies.check import check
from vpretrain.system.errors import UserError
from vpretrain.vision import Vision


def problems(*overrides):
    return {
        problem.where: problem.message
        for problem in check("demo-vision", [*SMALL, *SCENES, *overrides])
    }


def test_check_finds_nothing_wrong_where_nothing_is():
    assert problems() == {} and problems(*IJEPA) == {}


def test_check_names_every_problem_at_once():
    found = problems(
        "arm=patch_weights",
        "learner.crops.local_size=15",
        "data.feedback.sets.0.train=300",
        "evaluate.neighbours=90",
    )
    assert set(found) == {"arm", "learner.crops.local_size", "data.feedback.sets.0.train"}
    found = problems(
        "evaluate.neighbours=90",
        "data.feedback.batch_size=20",
        "arm=ascent",
        "designer.keep_ratio=1",
    )
    assert set(found) == {"evaluate.neighbours", "data.feedback.batch_size", "designer.keep_ratio"}
    found = problems(
        "evaluate.blocks=7",
        "data.feedback.head.blocks=3",
        "designers.closed_form.candidates=99",
        "arm=closed_form",
        "data.image_size=28",
    )
    assert {"evaluate.blocks", "data.feedback.head.blocks"}.isdisjoint(
        found
    ) and "data.evaluation.test.0.size" in found
    found = problems(
        "evaluate.blocks=7",
        "data.feedback.head.blocks=3",
        "designers.closed_form.candidates=99",
        "arm=closed_form",
    )
    assert set(found) == {"evaluate.blocks", "data.feedback.head.blocks", "designer.candidates"}


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
    found = check("demo-vision", [*SMALL, *SCENES, override])
    shown = "\n".join(str(problem) for problem in found)
    assert found and where in shown and description in shown


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
