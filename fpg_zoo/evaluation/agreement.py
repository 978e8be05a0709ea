"""Whether two sets of detections in the same images agree: a converted model's with those of where it came from."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpg_zoo.data.masks import can_have_masks, pycocotools_mask, read_mask
from fpg_zoo.data.text_files import read_json
from fpg_zoo.errors import ConfigError
from fpg_zoo.evaluation.results_file import box_fault, is_number
from fpg_zoo.inference.predictor import Predictor
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.text import printable, quoted

BOX_IOU, MASK_IOU, SCORE = 0.98, 0.95, 0.01
LEAST_SHARE = 0.97  # of detections that agree
MOST_MORE = 3  # detections of an image on one side
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Agreement:
    """How two sets of detections of an image agree.

    Attributes:
        image_id: the image.
        expected, found: the numbers of detections.
        matched: of those expected, how many have one of the same category with an IoU over 0.98 (masks: 0.95) and a
            score within 0.01; each of those found stands for one at most.
    """

    image_id: int | str
    expected: int
    found: int
    matched: int

    @property
    def agrees(self) -> bool:
        """At least 97 of 100 are matched, and the numbers differ by 3 at most."""
        return self.matched >= LEAST_SHARE * self.expected and abs(self.expected - self.found) <= MOST_MORE


def read_detections(file: Path) -> dict[int | str, list[Row]]:
    """The rows of a COCO results file, by image, as mmdetection writes them for boxes or for masks.

    Raises:
        ConfigError: it cannot be read, or a row has not `image_id`, `category_id`, `score` and `bbox` or
            `segmentation`.
    """
    rows = read_json(file, "mmdetection's *.bbox.json or *.segm.json")
    if not isinstance(rows, list):
        raise ConfigError(f"{printable(file)}: no list of detections, as mmdetection's *.bbox.json and *.segm.json are")
    by_image: dict[int | str, list[Row]] = collections.defaultdict(list)
    for place, row in enumerate(rows):
        if problem := _problem_of(row):
            raise ConfigError(f"{printable(file)}: entry {place}: {problem}")
        by_image[row["image_id"]].append(row)
    if len({"segmentation" in row for row in rows}) > 1:
        raise ConfigError(f"{printable(file)}: some entries have masks and some have not; give a file of one kind")
    return dict(by_image)


def _problem_of(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"{quoted(row)} is no detection"
    if type(row.get("image_id")) not in (int, str) or type(row.get("category_id")) is not int:
        return f"image_id={quoted(row.get('image_id'))}, category_id={quoted(row.get('category_id'))}: of no detection"
    if not is_number(row.get("score")):
        return f"has score {quoted(row.get('score'))}, which is no number"
    box, mask = row.get("bbox"), row.get("segmentation")
    if isinstance(mask, dict):
        size = mask.get("size")
        if not (isinstance(size, list) and len(size) == 2 and all(type(one) is int for one in size)):
            return f"segmentation: size={quoted(size)}, it takes [height, width]"
        problems: list[str] = []
        # pycocotools trusts run lengths, and dies of wrong ones.
        if not can_have_masks((size[0], size[1])) or read_mask(mask, (size[0], size[1]), problems.append) is None:
            return f"segmentation: no run lengths of its size ({', '.join(problems)})"
        return None
    return box_fault(box)


def agreement(image_id: int | str, expected: Sequence[Row], found: Sequence[Row]) -> Agreement:
    """Match an image's detections, the best first.

    Args:
        image_id: the image.
        expected: rows of `read_detections`; those with `segmentation` are compared by their masks, others by boxes.
        found: rows of a results file, with masks where those expected have them.
    """
    masks = any("segmentation" in row for row in expected)
    key, least = ("segmentation", MASK_IOU) if masks else ("bbox", BOX_IOU)
    rows = sorted(expected, key=lambda row: -row["score"])
    matched = 0
    if rows and found and all(key in row for row in found):
        overlaps = pycocotools_mask().iou([row[key] for row in rows], [row[key] for row in found], [0] * len(found))
        free = set(range(len(found)))
        for place, row in enumerate(rows):
            near = [
                other
                for other in free
                if overlaps[place, other] > least
                and found[other]["category_id"] == row["category_id"]
                and abs(found[other]["score"] - row["score"]) <= SCORE
            ]
            if near:
                free.remove(max(near, key=lambda other: overlaps[place, other]))
                matched += 1
    return Agreement(image_id, len(expected), len(found), matched)


def compare(
    model: Detector,
    files: Mapping[str, int | str],
    expected: Mapping[int | str, Sequence[Row]],
    category_ids: Sequence[int] | None,
) -> Iterator[Agreement]:
    """How a model agrees with given detections, image by image.

    Args:
        model: in eval mode.
        files: the id of each image, by its path.
        expected: of `read_detections`.
        category_ids: as of `Detections.to_coco`.
    """
    predictor = Predictor(model)
    for file, image_id in files.items():
        (detections,) = predictor(file)
        yield agreement(image_id, expected.get(image_id, []), detections.to_coco(image_id, category_ids))
