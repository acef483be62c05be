"""What a run leaves to look at: crops with masks, and predictions before and after it."""

from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image

from tests.vision.conftest import tiny_recipe
from vpretrain.report import write_report
from vpretrain.run.launch import train_one
from vpretrain.studies.explain import explain
from vpretrain.system.errors import UserError
from vpretrain.vision.backbone import Features
from vpretrain.vision.data.images import IGNORE, IMAGENET_MEAN, IMAGENET_STD, Picture
from vpretrain.vision.drawing import class_colours
from vpretrain.vision.evaluation import prediction_pictures
from vpretrain.vision.evaluation.probes import ProbeSettings
from vpretrain.vision.feedback.tasks import Classification, Depth, Segmentation


def test_a_finished_run_shows_crops_and_predictions_in_its_report(tmp_path):
    run = tmp_path / "run"
    train_one(tiny_recipe("arm=ascent", "budget.steps=1"), run, lambda record, fraction: None)
    drawn = sorted(path.name for path in (run / "pictures").iterdir())
    assert drawn == ["predictions.png", "views.png"]
    assert numpy.asarray(Image.open(run / "pictures/predictions.png")).std() > 10
    page = write_report([run], tmp_path / "report.html").read_text("utf-8")
    assert page.count('src="data:image/png;base64,') == 2 and "views" in page
    with pytest.raises(UserError, match="vpretrain report RUN"):
        explain(run, documents=1)


def test_predictions_are_those_of_each_encoders_head(monkeypatch, tmp_path):
    labels = (torch.arange(4).view(1, 4) // 2).expand(4, 4).contiguous()
    pixels = (labels * 200).to(torch.uint8).expand(3, 4, 4).contiguous()
    pictures = [Picture(str(at), pixels, labels.roll(at % 2 * 2, 1)) for at in range(6)]
    pictures = [
        replace(p, pixels=(p.labels * 200).to(torch.uint8).expand(3, 4, 4)) for p in pictures
    ]

    class Sees:
        """Features that are the pixels themselves, or nothing."""

        model = torch.nn.Linear(1, 1)
        mean, std = IMAGENET_MEAN, IMAGENET_STD

        def __init__(self, factor):
            self.factor = factor

        def features(self, images):
            return Features(images * self.factor, images.mean(dim=(2, 3)))

    rows = {}
    monkeypatch.setattr(
        prediction_pictures, "draw_rows", lambda given, path, title: rows.update(given)
    )
    settings = ProbeSettings(steps=60, batch_size=4, learning_rate=0.1)
    encoders = {"before": Sees(0.0), "after": Sees(1.0)}
    prediction_pictures.draw_predictions(
        Segmentation(2), encoders, pictures, pictures, settings, tmp_path / "x.png"
    )
    assert list(rows) == ["picture", "label", "before", "after"]
    same = [
        [torch.equal(one, label) for one, label in zip(rows[name], rows["label"], strict=True)]
        for name in ("before", "after")
    ]
    assert all(same[1]) and not any(same[0])


def test_classes_have_colours_and_void_is_black():
    colours = class_colours(torch.tensor([[0, 1], [2, IGNORE]]))
    assert colours.shape == (3, 2, 2) and colours[:, 1, 1].tolist() == [0, 0, 0]
    assert len({tuple(colours[:, r, c].tolist()) for r, c in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_tasks_without_maps_are_not_drawn():
    assert prediction_pictures.drawable([Classification(3)]) is None
    assert prediction_pictures.drawable([Classification(3), Depth()]) == Depth()
