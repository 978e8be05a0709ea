"""Detect in an image by OpenVINO alone: `python examples/export/openvino_runtime.py model.xml image.jpg`.

It takes openvino, numpy and pillow, and a file of
`fpg-zoo export --model mask_rcnn_nano_fpg --output model.xml --include preprocess,masks`.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import openvino
from PIL import Image


def main(path: str, image: str) -> None:
    core = openvino.Core()
    model = core.read_model(path)
    description = json.loads(model.get_rt_info("fpg_zoo").astype(str))
    # Equal to the model; without it, a processor with AMX computes in bfloat16.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pixels = np.asarray(Image.open(image).convert("RGB")).transpose(2, 0, 1)[None]  # (1, 3, height, width) uint8
    results = compiled([np.ascontiguousarray(pixels)])
    found = {name: results[name] for name in description["outputs"]}
    for place in range(int(found["num_detections"][0])):
        name = description["class_names"][found["labels"][0, place]]
        x1, y1, x2, y2 = found["boxes"][0, place]
        print(f"{name} {found['scores'][0, place]:.3f} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
