"""What tiles and test-time augmentation find in images of many small objects, beside plain inference.

    python benchmarks/large_images.py                 # an image of 2000 x 2000 pixels, tiles of 320
    python benchmarks/large_images.py --tta --images 200   # scenes of 240 x 320, plain and augmented

Prints AP and AP of small objects (COCO's, below 32 x 32 pixels), the share of small objects that is found by class and
IoU 0.5 at a score of 0.3, and seconds per image, as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

import fpg_zoo
from fpg_zoo import Detections
from fpg_zoo.data.dataset import ImageInfo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.evaluation.coco_metrics import coco_scores

SIDE, PARTS = 500, 4  # a large image is made of PARTS x PARTS drawn scenes of SIDE x SIDE pixels
TILE, SCORE, SMALL = 320, 0.3, 32 * 32
_Annotation = dict[str, Any]


def large_image(number: int) -> tuple[np.ndarray, list[_Annotation]]:
    """(2000, 2000, 3) uint8 RGB, and COCO's annotations of its objects, of image `number` + 1."""
    count = PARTS * PARTS
    scenes = ShapesDataset("val", (number + 1) * count, size=(SIDE, SIDE))
    pixels = np.zeros((SIDE * PARTS, SIDE * PARTS, 3), dtype=np.uint8)
    rows: list[_Annotation] = []
    for place in range(count):
        top, left = place // PARTS * SIDE, place % PARTS * SIDE
        sample = scenes[number * count + place]
        pixels[top : top + SIDE, left : left + SIDE] = sample.image.permute(1, 2, 0).numpy()
        rows += annotations_of(sample.info, number + 1, (left, top))
    return pixels, rows


def annotations_of(info: ImageInfo, image_id: int, corner: tuple[int, int] = (0, 0)) -> list[_Annotation]:
    """COCO's annotations of a scene whose (left, top) pixel is at `corner` of an image."""
    objects = info.objects
    return [
        {
            "id": identity,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [x + corner[0], y + corner[1], width, height],
            "area": area,
            "iscrowd": 0,
        }
        for identity, label, (x, y, width, height), area in zip(
            objects.ids, objects.labels.tolist(), objects.bboxes.tolist(), objects.areas.tolist(), strict=True
        )
    ]


def small_found(found: Detections, annotations: Sequence[_Annotation]) -> tuple[int, int]:
    """How many small objects are found, and how many there are. A detection counts for one object."""
    small = [row for row in annotations if row["area"] < SMALL]
    found = found.above(SCORE)
    boxes = torch.tensor([row["bbox"] for row in small], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    same = torch.tensor([row["category_id"] - 1 for row in small])[:, None] == found.labels[None]
    overlap = box_iou(boxes, found.boxes) * same
    taken: set[int] = set()
    for row in overlap:
        for column in row.argsort(descending=True).tolist():
            if row[column] < 0.5:
                break
            if column not in taken:
                taken.add(column)
                break
    return len(taken), len(small)


def measure(model: str, images: int, tta: bool) -> dict[str, dict[str, float]]:
    """Figures of each way to look."""
    predictor = fpg_zoo.Predictor(fpg_zoo.create_model(model, pretrained=True))
    ways: dict[str, dict[str, Any]] = (
        {"plain": {}, "tta": {"tta": True}}
        if tta
        else {"plain": {}, "tiles": {"slice": TILE, "whole_image": False}, "tiles and whole": {"slice": TILE}}
    )
    scenes = ShapesDataset("val", images)
    rows: dict[str, list[_Annotation]] = {way: [] for way in ways}
    seconds, hits, total = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0), 0
    annotations: list[_Annotation] = []
    for number in range(images):
        if tta:
            sample = scenes[number]
            pixels, truth = sample.image.permute(1, 2, 0).numpy(), annotations_of(sample.info, number + 1)
        else:
            pixels, truth = large_image(number)
        annotations += truth
        total += sum(row["area"] < SMALL for row in truth)
        for way, arguments in ways.items():
            start = time.perf_counter()
            (found,) = predictor(pixels, 4, score=0.05, **arguments)
            seconds[way] += time.perf_counter() - start
            rows[way] += replace(found, masks=None).to_coco(number + 1)
            hits[way] += small_found(found, truth)[0]
    ids = list(range(1, images + 1))
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(scenes.class_names)]
    size = {"height": pixels.shape[0], "width": pixels.shape[1]}
    content = {"images": [{"id": one, **size} for one in ids], "annotations": annotations, "categories": categories}
    figures = {}
    for way in ways:
        metrics = coco_scores(content, rows[way], "bbox", ids).metrics
        figures[way] = {
            "AP": round(metrics["AP"] or 0.0, 4),
            "AP small": round(metrics["AP_small"] or 0.0, 4),
            "small objects found": round(hits[way] / total, 4),
            "seconds per image": round(seconds[way] / images, 2),
        }
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mask_rcnn_nano_fpg")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--tta", action="store_true")
    options = parser.parse_args()
    print(json.dumps(measure(options.model, options.images, options.tta), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
