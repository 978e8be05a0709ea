"""The whole way, offline: a checkpoint in the published format to safetensors to detections on a picture.

Run it in any folder; everything goes to `demo/`. The weights are not trained (the zoo has no trained small model yet),
so the boxes mean nothing: it shows that the way works, not what the published models find.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import fpg_zoo
from fpg_zoo.cli import main as command

FOLDER = Path("demo")
MODEL = "mask_rcnn_nano_fpg"


def write_checkpoint(path: Path) -> None:
    """A file as published ones are: legacy serialisation, the reference's tensor names under `state_dict`."""
    torch.manual_seed(0)
    model = fpg_zoo.create_model(MODEL)
    state_dict = fpg_zoo.reference_state_dict(model)
    # Untrained scores lie below every threshold; spread out, there is something to draw.
    state_dict["roi_head.bbox_head.fc_cls.weight"] *= 50
    torch.save({"meta": {}, "state_dict": state_dict}, path, _use_new_zipfile_serialization=False)


def write_picture(path: Path) -> None:
    """A few coloured shapes on a plain ground."""
    picture = Image.new("RGB", (480, 360), (200, 205, 210))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((60, 80, 200, 260), fill=(190, 60, 50), outline=(60, 10, 10), width=4)
    pen.ellipse((250, 60, 420, 230), fill=(60, 110, 190), outline=(10, 30, 70), width=4)
    pen.polygon(((240, 330), (330, 180), (430, 330)), fill=(80, 160, 80), outline=(20, 60, 20), width=4)
    picture.save(path)


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    write_checkpoint(FOLDER / "published_format.pth")
    write_picture(FOLDER / "shapes.png")
    steps = (
        ["convert", str(FOLDER / "published_format.pth"), str(FOLDER / "model.safetensors")],
        ["predict", str(FOLDER / "shapes.png"), "--checkpoint", str(FOLDER / "model.safetensors"), "--score", "0.1",
         "--output", str(FOLDER), "--json", str(FOLDER / "detections.json")],
    )  # fmt: skip
    for step in steps:
        print("$ fpg-zoo", *step)
        code = command(step)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
