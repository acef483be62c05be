"""docs/vision.md says what works: its recipe and its retrieval section load."""

import re
from pathlib import Path

import yaml

from vpretrain.config import recipe as recipes
from vpretrain.run.modalities import SCHEMAS

PAGE = Path(__file__).parents[2] / "docs" / "vision.md"


def test_what_the_page_says_of_recipes_loads(tmp_path):
    whole, retrieval = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(whole)
    recipe = recipes.load(tmp_path / "mine.yaml", schemas=SCHEMAS)
    assert recipe.arm == "view_weights" and recipe.data.feedback.sets[0].pictures.classes == 11
    said = yaml.safe_load(retrieval)["evaluate"]["retrieval"]["oxford"]
    asked = "evaluate.retrieval.oxford=" + yaml.safe_dump(said, default_flow_style=True).strip()
    result = recipes.load(tmp_path / "mine.yaml", [asked], schemas=SCHEMAS)
    assert result.evaluate.retrieval["oxford"].size == (224, 224)
