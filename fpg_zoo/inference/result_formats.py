"""One image's detections as the formats have them: COCO's, JSON lines, CSV, YOLO's, labelme's."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fpg_zoo.structures import Detections
from fpg_zoo.structures.images import is_url, label_of

_COLUMNS = ("file", "frame", "time", "label", "class", "score", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Source:
    """Where an image is from.

    Attributes:
        file: the path or URL as given; of a frame, the video's.
        image_id: of COCO's results.
        stem: begins the names of its files; of no input or other image.
        frame: its number in a video, from 0; None for an image.
        time: of a frame, in seconds from the video's beginning.
    """

    file: str
    image_id: int | str
    stem: str
    frame: int | None = None
    time: float | None = None


def yolo_labels(detections: Detections) -> str:
    """Lines of class, center x, center y, width and height, each as a share of the image's side."""
    height, width = detections.size
    lines = []
    for (x1, y1, x2, y2), label in zip(detections.boxes.tolist(), detections.labels.tolist(), strict=True):
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{label} " + " ".join(f"{share:.6f}" for share in shares) + "\n")
    return "".join(lines)


def labelme_content(detections: Detections, image_path: str, folder: Path) -> dict[str, Any]:
    """What a labelme file of `folder` holds: rectangles, or masks within their boxes where there are masks."""
    shapes = []
    for place, (box, name, score) in enumerate(
        zip(detections.boxes.tolist(), detections.names, detections.scores.tolist(), strict=True)
    ):
        shape: dict[str, Any] = {
            "label": name,
            "points": [box[:2], box[2:]],
            "group_id": None,
            "description": f"score {score:.4f}",
            "shape_type": "rectangle",
            "flags": {},
            "mask": None,
        }
        if detections.masks is not None and bool(detections.masks[place].any()):
            shape |= _labelme_mask(detections.masks[place].numpy())
        shapes.append(shape)
    if not is_url(image_path):
        with contextlib.suppress(ValueError):  # on another drive of Windows
            image_path = os.path.relpath(os.path.expanduser(image_path), folder)
    height, width = detections.size
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _labelme_mask(mask: np.ndarray) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    (top, bottom), (left, right) = (rows[0], rows[-1]), (columns[0], columns[-1])
    encoded = io.BytesIO()
    Image.fromarray(mask[top : bottom + 1, left : right + 1]).save(encoded, "PNG")
    return {
        "points": [[float(left), float(top)], [float(right), float(bottom)]],
        "shape_type": "mask",
        "mask": base64.b64encode(encoded.getvalue()).decode("ascii"),
    }


def coco_rows(source: Source, detections: Detections) -> bytes:
    """A line of the part of a COCO results file: an image's rows."""
    rows = detections.to_coco(source.image_id)
    if source.frame is not None:
        rows = [row | {"frame": source.frame, "time": source.time} for row in rows]
    return json.dumps(rows).encode() + b"\n"


def json_line(source: Source, detections: Detections) -> bytes:
    """A line of JSON about an image."""
    height, width = detections.size
    found = []
    for row, name, label, box in zip(
        detections.to_coco(source.image_id),
        detections.names,
        detections.labels.tolist(),
        detections.boxes.tolist(),
        strict=True,
    ):
        found.append({"label": label, "class": name, "score": row["score"], "box": box})
        if "segmentation" in row:
            found[-1]["segmentation"] = row["segmentation"]
    frame = {} if source.frame is None else {"frame": source.frame, "time": source.time}
    content = {"file": label_of(source.file), "image_id": source.image_id, **frame, "height": height, "width": width}
    return json.dumps(content | {"detections": found}).encode() + b"\n"


def table_rows(source: Source, detections: Detections) -> bytes:
    """Rows of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    start = (
        label_of(source.file),
        "" if source.frame is None else source.frame,
        "" if source.time is None else f"{source.time:.4f}",
    )
    for box, label, name, score in zip(
        detections.boxes.tolist(), detections.labels.tolist(), detections.names, detections.scores.tolist(), strict=True
    ):
        writer.writerow((*start, label, name, f"{score:.5f}", *(f"{side:.2f}" for side in box)))
    return text.getvalue().encode(errors="surrogateescape")


# Of the files of all images, by the format: what is written of an image, and what the file begins with.
ROWS = {"json": coco_rows, "jsonl": json_line, "csv": table_rows}
HEADS = {"csv": (",".join(_COLUMNS) + "\n").encode()}
