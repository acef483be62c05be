"""Sets of pictures that are decoded when they are drawn, such as ImageNet's."""

from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.vision.conftest import tiny_recipe
from vpretrain.system.errors import UserError
from vpretrain.vision import Vision
from vpretrain.vision.data.files import Folder


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A recipe whose feedback is of 36 pictures in three categories, and bad ones are left out."""
    draw = numpy.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (tmp_path / name).mkdir()
        for at in range(12):
            values = draw.integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
            Image.fromarray(values).save(tmp_path / name / f"{at:02}.png")
    return [
        f"data.root={tmp_path}",
        "data.feedback.sets.0.pictures={kind: imagenet, path: .}",
        "data.feedback.tasks={classification: 1}",
        "data.on_bad_row=skip",
    ]


def test_a_bad_labelled_picture_is_left_out(options: list[str]) -> None:
    recipe = tiny_recipe(*options)
    before = Vision().load(recipe).sets.train
    Path(before[0].name).write_bytes(b"x")
    sets = Vision().load(recipe).sets
    assert [picture.name for picture in sets.train[:5]] == [each.name for each in before[1:]]
    assert [problem.where for problem in sets.skipped] == [before[0].name]
    with pytest.raises(UserError, match=Path(before[0].name).name):
        Vision().load(tiny_recipe(*options[:-1]))


def test_only_the_feedback_pictures_that_are_drawn_are_decoded(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    identified = Folder.identified
    monkeypatch.setattr(
        Folder, "identified", lambda self, at: decoded.append(at) or identified(self, at)
    )
    sets = Vision().load(tiny_recipe(*options)).sets
    assert len(sets.train) == len(sets.meta) == 6
    assert len(decoded) == len({*decoded}) == 12


def test_a_link_that_leads_nowhere_is_named_before_the_run(
    options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "ant/lost.png").symlink_to(tmp_path / "nothing.png")
    stream = "data.stream.0.pictures={kind: imagenet, path: .}"
    with pytest.raises(UserError, match=r"lost\.png: .*leads nowhere"):
        Vision().load(tiny_recipe(options[0], stream))
