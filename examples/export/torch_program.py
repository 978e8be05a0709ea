"""Detect in an image by torch alone: `python examples/export/torch_program.py model.pt2 image.jpg`.

It takes torch, numpy and pillow, and a file of
`fpg-zoo export --model mask_rcnn_nano_fpg --output model.pt2 --include preprocess,masks`. Open only files that you
trust: torch runs what they hold. `fpg_zoo.Predictor` looks at them first.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from PIL import Image


def main(path: str, image: str) -> None:
    extra = {"fpg_zoo": ""}
    module = torch.export.load(path, extra_files=extra).module()
    description = json.loads(extra["fpg_zoo"])
    pixels = torch.from_numpy(np.array(Image.open(image).convert("RGB"))).permute(2, 0, 1)[
        None
    ]  # (1, 3, height, width)
    with torch.no_grad():
        found = dict(zip(description["outputs"], module(pixels), strict=True))
    for place in range(int(found["num_detections"][0])):
        name = description["class_names"][found["labels"][0, place]]
        x1, y1, x2, y2 = found["boxes"][0, place].tolist()
        print(f"{name} {found['scores'][0, place]:.3f} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
