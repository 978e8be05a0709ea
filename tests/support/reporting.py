"""Annotations and detections for reports: two hostile classes by hand, eighty classes at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from coco_folders import draw_picture

from fpg_zoo.config.coco_classes import COCO_CLASSES

HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\">",
    "'\"><svg onload=document.title='owned'></title><!--\u202e\ud800\x00",
)
SIDES = (100, 80)  # width, height of the images by hand


def write_hostile(folder: Path) -> list[Any]:
    """Options of `fpg-zoo eval` for two classes and two images whose names are markup.

    By hand, at 0.5: of three objects of the first class one is found, one taken for the second class (score 0.8), one
    missed until 0.3; one detection of nothing (0.6), one in a crowd.
    """
    names = [f"{HOSTILE[0].replace('/', '')}.png", "plain.png"]
    width, height = SIDES
    images = [{"id": place, "file_name": name, "width": width, "height": height} for place, name in enumerate(names, 1)]
    truth = [
        (1, 1, [0, 0, 20, 20], 0),
        (1, 1, [30, 0, 20, 20], 0),
        (1, 1, [60, 0, 20, 20], 0),
        (1, 2, [0, 40, 60, 40], 1),
        (2, 2, [10, 10, 20, 20], 0),
    ]
    found = [
        (1, 1, [0, 0, 20, 20], 0.9),
        (1, 2, [30, 0, 20, 20], 0.8),
        (1, 1, [60, 60, 20, 20], 0.6),
        (1, 2, [5, 45, 10, 10], 0.7),
        (1, 1, [60, 0, 20, 20], 0.3),
        (2, 2, [10, 10, 20, 20], 1.0),
    ]
    content = {
        "images": images,
        "categories": [{"id": place, "name": name} for place, name in enumerate(HOSTILE, 1)],
        "annotations": [
            {
                "id": place,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
            for place, (image, label, box, crowd) in enumerate(truth, 1)
        ],
    }
    rows = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score} for image, label, box, score in found
    ]
    for name in names:
        draw_picture(folder / "pictures" / name, width, height)
    return _written(folder, content, rows)


def write_eighty(folder: Path) -> list[Any]:
    """Options for COCO's classes: 60 images without files, each with eight objects, of which most are found."""
    random = np.random.default_rng(0)
    content: dict[str, Any] = {
        "images": [{"id": place, "file_name": f"{place}.jpg"} for place in range(60)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(COCO_CLASSES)],
        "annotations": [],
    }
    rows = []
    for place in range(60):
        for _ in range(8):
            label = int(random.integers(79))  # no toothbrush
            box = np.concatenate([random.uniform(0, 400, 2), random.uniform(10, 150, 2)])
            content["annotations"].append(
                {"id": len(content["annotations"]), "image_id": place, "category_id": label, "bbox": box.tolist()}
            )
            for _ in range(int(random.integers(3))):
                label = label if random.random() < 0.7 else int(random.integers(80))
                moved = box + random.normal(0, 4, 4)
                rows.append(
                    {"image_id": place, "category_id": label, "bbox": moved.clip(1).tolist(), "score": random.random()}
                )
    return _written(folder, content, rows)


def _written(folder: Path, content: Any, rows: Any) -> list[Any]:
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(rows))
    return ["eval", "--results", folder / "results.json", "--annotations", folder / "annotations.json"]
