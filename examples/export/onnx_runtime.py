"""Detect in an image by ONNX Runtime alone: `python examples/export/onnx_runtime.py model.onnx image.jpg`.

It takes onnxruntime, numpy and pillow, and a file of
`fpg-zoo export --model mask_rcnn_nano_fpg --output model.onnx --include preprocess,masks`.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model: str, image: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    description = json.loads(session.get_modelmeta().custom_metadata_map["fpg_zoo"])
    pixels = np.asarray(Image.open(image).convert("RGB")).transpose(2, 0, 1)[None]  # (1, 3, height, width) uint8
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"images": np.ascontiguousarray(pixels)}), strict=True))
    for place in range(int(found["num_detections"][0])):
        name = description["class_names"][found["labels"][0, place]]
        x1, y1, x2, y2 = found["boxes"][0, place]
        print(f"{name} {found['scores'][0, place]:.3f} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
