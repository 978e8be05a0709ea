"""How often 95 % intervals hold the AP of other images: `python benchmarks/interval_coverage.py`.

A random detector stands for a model: it finds objects with a chance that differs from image to image, moves their
boxes, and invents others. So thousands of images cost nothing. Intervals are of many sets of few images.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from harness.measure import Row, command_line, commit, write

from fpg_zoo.evaluation.coco_metrics import Scores, coco_scores
from fpg_zoo.evaluation.intervals import intervals

CLASSES, OBJECTS, INVENTED = 10, 7, 20  # the latter two of an image, on average
SIDE = 640
UNITS = {
    "images": "images of a set",
    "sets": "sets",
    "held": "sets whose interval held the AP of the other images",
    "ap": "share, of the other images",
    "mean_ap": "share, of the sets",
    "mean_width": "share",
    "resamples": "draws",
    "seconds": "s for an interval of that many images",
}


def scores_of(images: int, seed: int, *, classes: int = CLASSES, invented: int = INVENTED) -> Scores:
    """What pycocotools says of a random detector on random images."""
    random = np.random.default_rng(seed)
    objects: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []

    def box() -> list[float]:
        return [float(value) for value in (*random.uniform(0, 500, 2), *random.uniform(20, 140, 2))]

    for image in range(1, images + 1):
        hardness = random.normal(0, 0.5)
        for _ in range(random.poisson(OBJECTS)):
            one, category = box(), int(random.integers(1, classes + 1))
            row = {"image_id": image, "category_id": category, "bbox": one}
            objects.append({**row, "id": len(objects) + 1, "area": one[2] * one[3], "iscrowd": 0})
            if random.random() < 1 / (1 + np.exp(-1.2 - hardness)):
                moved = [value + random.normal(0, 0.06) * side for value, side in zip(one, 2 * one[2:], strict=True)]
                rows.append({**row, "bbox": moved, "score": float(random.beta(4, 2))})
        for _ in range(random.poisson(invented)):
            category = int(random.integers(1, classes + 1))
            rows.append(
                {"image_id": image, "category_id": category, "bbox": box(), "score": float(random.beta(1.5, 4))}
            )
    content = {
        "images": [{"id": image, "width": SIDE, "height": SIDE} for image in range(1, images + 1)],
        "annotations": objects,
        "categories": [{"id": category, "name": str(category)} for category in range(1, classes + 1)],
    }
    return coco_scores(content, rows, "bbox", range(1, images + 1))


def coverage(images: int, sets: int, others: int, resamples: int) -> Row:
    """How many sets' intervals hold the AP of other images."""
    true = scores_of(others, 10**6).metrics["AP"]
    assert true is not None
    held, widths, values = 0, [], []
    for seed in range(sets):
        scores = scores_of(images, seed)
        assert scores.matches is not None
        interval = intervals({"bbox": scores.matches}, resamples=resamples, seed=seed)["bbox"]["AP"]
        held += interval.lower <= true <= interval.upper
        widths.append(interval.upper - interval.lower)
        values.append(scores.metrics["AP"] or 0.0)
    return {
        "what": "coverage",
        "images": images,
        "sets": sets,
        "resamples": resamples,
        "held": held,
        "ap": true,
        "mean_ap": float(np.mean(values)),
        "mean_width": float(np.mean(widths)),
    }


def duration(images: int, resamples: int) -> Row:
    """Of an interval of a data set as large as COCO's."""
    matches = scores_of(images, 0, classes=80, invented=90).matches
    assert matches is not None
    start = time.perf_counter()
    intervals({"bbox": matches}, resamples=resamples)
    return {"what": "duration", "images": images, "resamples": resamples, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="of a set")
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--others", type=int, default=5000, help="images whose AP is to be held")
    parser.add_argument("--resamples", type=int, default=300)
    options = parser.parse_args()
    commit()
    rows = [coverage(options.images, options.sets, options.others, options.resamples), duration(5000, 1000)]
    for row in rows:
        print(row)
    inputs = {"what": f"random detections of {CLASSES} classes, {OBJECTS} objects and {INVENTED} others an image"}
    print(write("interval_coverage", command_line(), rows, device="cpu", inputs=inputs, units=UNITS))


if __name__ == "__main__":
    main()
