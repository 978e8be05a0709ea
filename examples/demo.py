"""The main job, offline: images in, annotated images out, by the trained small model that comes with the package.

Run it in any folder; everything goes to `demo/`. The images are of the kind that the model was trained on, from the
half that it has not seen; what it finds is compared with what was drawn.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

import fpg_zoo
from fpg_zoo.cli import main as command
from fpg_zoo.data.shapes import ShapesDataset

FOLDER = Path("demo")
MODEL = "mask_rcnn_nano_fpg"
IMAGES = 4
SCORE = 0.7


def main() -> int:
    scenes = ShapesDataset("val", num_images=IMAGES)
    originals = FOLDER / "pictures"
    originals.mkdir(parents=True, exist_ok=True)
    for index in range(IMAGES):
        Image.fromarray(scenes[index].image.permute(1, 2, 0).numpy()).save(originals / f"{index}.png")
    results_file = FOLDER / "detections.json"
    steps = (
        ["list", "*nano*", "--pretrained"],
        ["predict", str(originals), "--model", MODEL, "--score", str(SCORE), "--output", str(FOLDER),
         "--json", str(results_file)],
    )  # fmt: skip
    for step in steps:
        print("$ fpg-zoo", *step)
        code = command(step)
        if code:
            return code
    drawn = sum(len(scenes.image_info(index).objects) for index in range(IMAGES))
    print(f"{len(json.loads(results_file.read_text()))} found, {drawn} drawn; fpg_zoo {fpg_zoo.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
