"""How often 95 % intervals hold the AP of other images: `python benchmarks/interval_coverage.py [--model NAME]`.

Intervals are of many sets of few images. Without a model, a random detector stands for one: it finds objects with a
chance that differs from image to image, moves their boxes, and invents others. So thousands of images cost nothing. A
model detects in as many drawn scenes, each of which is in one set or among the others.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from harness.measure import Row, command_line, commit, write

import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.evaluation.coco_metrics import Scores, coco_scores
from fpg_zoo.evaluation.detect import detect_all
from fpg_zoo.evaluation.intervals import intervals

CLASSES, OBJECTS, INVENTED = 10, 7, 20  # the latter two of an image, on average
SIDE = 640
RANDOM = "random"
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


def drawn(name: str, images: int, sets: int, others: int) -> Iterator[Scores]:
    """What pycocotools says of a model on held-out scenes: on the others, then on each set."""
    model = fpg_zoo.create_model(name, pretrained=True)
    scenes = ShapesDataset("val", others + sets * images)
    content = scenes.annotations()
    rows = detect_all(model, scenes, scenes.category_ids, batch_size=8, workers=1)
    objects_of, rows_of = by_image(content["annotations"]), by_image(rows)
    bounds = [0, *range(others, len(scenes) + 1, images)]
    for first, last in itertools.pairwise(bounds):
        entries = content["images"][first:last]
        ids = [entry["id"] for entry in entries]
        part = {**content, "images": entries, "annotations": [one for key in ids for one in objects_of.get(key, [])]}
        yield coco_scores(part, [row for key in ids for row in rows_of.get(key, [])], "bbox", ids)


def by_image(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Rows by their image's id."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["image_id"], []).append(row)
    return groups


def random_scores(images: int, sets: int, others: int) -> Iterator[Scores]:
    """The same of a random detector."""
    yield scores_of(others, 10**6)
    for seed in range(sets):
        yield scores_of(images, seed)


def coverage(detector: str, all_scores: Iterator[Scores], images: int, sets: int, resamples: int) -> Row:
    """How many sets' intervals hold the AP of other images."""
    true = next(all_scores).metrics["AP"]
    assert true is not None
    held, widths, values = 0, [], []
    for seed, scores in enumerate(all_scores):
        assert scores.matches is not None
        interval = intervals({"bbox": scores.matches}, resamples=resamples, seed=seed)["bbox"]["AP"]
        held += interval.lower <= true <= interval.upper
        widths.append(interval.upper - interval.lower)
        values.append(scores.metrics["AP"] or 0.0)
    return {
        "what": "coverage",
        "detector": detector,
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
    parser.add_argument("--model", metavar="NAME", help="that detects in drawn scenes (default: random detections)")
    options = parser.parse_args()
    commit()
    counts = (options.images, options.sets, options.others)
    every = drawn(options.model, *counts) if options.model else random_scores(*counts)
    rows = [coverage(options.model or RANDOM, every, options.images, options.sets, options.resamples)]
    if not options.model:
        rows.append(duration(5000, 1000))
    for row in rows:
        print(row)
    inputs = {
        "what": f"held-out drawn scenes; or random detections of {CLASSES} classes, {OBJECTS} objects and {INVENTED} "
        "others an image"
    }
    identified_by = ("what", "detector")
    print(
        write(
            "interval_coverage",
            command_line(),
            rows,
            device="cpu",
            inputs=inputs,
            units=UNITS,
            identified_by=identified_by,
        )
    )


if __name__ == "__main__":
    main()
