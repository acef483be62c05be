"""Draws docs/images/vision.png: crops, masks and learned views at the end of the run that
`vpretrain demo vision` steers.

    python benchmarks/vision_picture.py [--seed 0] [--out docs/images/vision.png]

About a minute of one idle core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vision_parts import vision_recipe

from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.vision import Vision


def main() -> None:
    """Trains and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent.parent / "docs" / "images" / "vision.png"
    )
    options = parser.parse_args()
    recipe = vision_recipe(
        "demo-vision", [f"seed={options.seed}", "evaluate.probes=[segmentation]"]
    )
    vision = Vision()
    parts = vision.build(recipe, vision.load(recipe))
    result = train(Run(recipe, parts, step0={}))
    vision.picture(recipe, parts, options.out)
    print(options.out, {name: round(score.value, 4) for name, score in result.final.items()})


if __name__ == "__main__":
    main()
