"""Small datasets in COCO's format, written for a test."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = ({"id": 7, "name": "cell"}, {"id": 2, "name": "dot"})


def picture(identity: Any, width: int = 40, height: int = 48) -> dict[str, Any]:
    return {"id": identity, "file_name": f"{identity}.png", "width": width, "height": height}


def annotation(identity: Any, image_id: Any, bbox: Any, **rest: Any) -> dict[str, Any]:
    return {"id": identity, "image_id": image_id, "category_id": 7, "bbox": bbox, "iscrowd": 0} | rest


def rectangle(x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    """As a polygon."""
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def draw_picture(file: Path, width: int, height: int) -> None:
    """Noise, other noise for other sizes and names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([width, height, *file.name.encode()])
    Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)


def write_folder(
    folder: Path,
    images: Sequence[Any],
    annotations: Iterable[Any],
    categories: Sequence[Any] = CATEGORIES,
    *,
    split: str = "train",
    pictures: str = "train",
) -> Path:
    """A dataset's folder, with noise for the images whose entries have a name and a size."""
    content = {"images": images, "annotations": list(annotations), "categories": categories}
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    for entry in images:
        if isinstance(entry, dict) and {"file_name", "width", "height"} <= entry.keys():
            draw_picture(folder / pictures / entry["file_name"], entry["width"], entry["height"])
    return folder
