"""What the report of an evaluation shows, gathered from annotations, detections and figures."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import Params
from tqdm import tqdm

from fpg_zoo.evaluation.coco_metrics import IOU_TYPES, IouType, Scores, judged_by
from fpg_zoo.evaluation.report.coco_rows import Row, overlaps, size_of
from fpg_zoo.evaluation.report.confusion import Confusion, Matched, Tally, match, rates, steps_of, thresholds_of
from fpg_zoo.evaluation.report.worst_images import Judged, Pixels, Worst, drawn
from fpg_zoo.files import on_terminal

MOST_PICTURES = 12


@dataclass(frozen=True)
class About:
    """What was evaluated.

    Attributes:
        title: of the page.
        facts: name and value of each, for people.
        command: that made the page.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    command: str


@dataclass(frozen=True, eq=False)
class Contents:
    """Everything that the page shows.

    Attributes:
        about: what was evaluated.
        scores: COCO's figures by kind.
        class_names: in the order of labels.
        sizes: numbers of objects by COCO's size: small, medium, large. One on a border is of both, as in its figures.
        pictures, objects, crowds, detections: their numbers.
        matched_by: what IoU is of in the confusion: boxes, or masks where there are no boxes.
        thresholds: as of `thresholds_of`.
        confusion: what is taken for what.
        worst: the pictures with most mistakes, most first, then in the order of the data; none without any.
    """

    about: About
    scores: Mapping[IouType, Scores]
    class_names: tuple[str, ...]
    sizes: Mapping[str, int]
    pictures: int
    objects: int
    crowds: int
    detections: int
    matched_by: IouType
    thresholds: np.ndarray
    confusion: Confusion
    worst: tuple[Worst, ...]

    def threshold_texts(self) -> list[str]:
        """The thresholds for people."""
        values: list[float] = self.thresholds.tolist()
        within = (values[0], values[-1]) == (0, 1)
        return [f"{value:.2f}" if within else f"{value:.4g}" for value in values]

    def rates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F1 of all classes together, (101,) each: at each threshold."""
        right, wrong = self.confusion.at_least()
        return rates(right.sum(axis=0), wrong.sum(axis=0), self.confusion.truth.sum())


def gather(
    about: About,
    annotations: Mapping[str, Any],
    rows: Sequence[Row],
    scores: Mapping[IouType, Scores],
    image_ids: Sequence[int | str],
    pixels: Pixels | None,
) -> Contents:
    """Compare detections with annotations once more, for what COCO's figures leave out.

    Args:
        about: what was evaluated.
        annotations, rows, image_ids: as of `coco_metrics.coco_scores`. Objects without a mask count as crowds where
            the detections have masks alone.
        scores: its answer, by kind; boxes, masks or both.
        pixels: reads a picture by its id, as of `fpg_zoo.evaluation.report.worst_images.drawn`. None: without pictures.
    """
    kind: IouType = "bbox" if "bbox" in scores else "segm"
    categories = sorted(annotations["categories"], key=lambda category: category["id"])
    class_names = tuple(str(category["name"]) for category in categories)
    labels = {category["id"]: label for label, category in enumerate(categories)}
    counted = set(image_ids)
    truth = [row for row in judged_by(kind, annotations) if row["image_id"] in counted]
    found = [row for row in rows if row["image_id"] in counted]
    thresholds = thresholds_of(np.array([row["score"] for row in found], dtype=np.float64))
    tally = Tally(len(class_names))
    worst: list[tuple[int, int, Judged]] = []  # a heap: mistakes, the earlier the better, and no two places are equal
    for place, judged in enumerate(_judged(annotations, truth, found, labels, image_ids, kind, thresholds)):
        tally.add(judged.matched)
        mistakes = judged.matched.mistakes()
        if mistakes:
            keep = heapq.heappush if len(worst) < MOST_PICTURES else heapq.heappushpop
            keep(worst, (mistakes, -place, judged))
    crowds = sum(bool(row["iscrowd"]) for row in truth)
    return Contents(
        about=about,
        scores=scores,
        class_names=class_names,
        sizes=_sizes(truth),
        pictures=len(counted),
        objects=len(truth) - crowds,
        crowds=crowds,
        detections=len(found),
        matched_by=kind,
        thresholds=thresholds,
        confusion=tally.confusion(),
        worst=tuple(
            drawn(judged, class_names, pixels, masks="segm" in scores) for _, _, judged in sorted(worst, reverse=True)
        ),
    )


def _judged(
    annotations: Mapping[str, Any],
    truth: Sequence[Row],
    found: Sequence[Row],
    labels: Mapping[int, int],
    image_ids: Sequence[int | str],
    kind: IouType,
    thresholds: np.ndarray,
) -> Iterator[Judged]:
    """The pictures in their order."""
    entries = {entry["id"]: entry for entry in annotations["images"]}
    truth_of, found_of = _by_picture(truth), _by_picture(found)
    label = f"{IOU_TYPES[kind]} confusion"
    with tqdm(image_ids, desc=label, unit="image", disable=not on_terminal(), leave=False) as bar:
        for identity in bar:
            here, there, entry = truth_of.get(identity, []), found_of.get(identity, []), entries[identity]
            scores = np.array([row["score"] for row in there], dtype=np.float64)
            own = np.array([labels[row["category_id"]] for row in there], dtype=np.int64)
            truth_labels = np.array([labels[row["category_id"]] for row in here], dtype=np.int64)
            crowds = np.array([bool(row["iscrowd"]) for row in here], dtype=bool)
            matches = match(overlaps(kind, there, here, size_of(entry)), scores, own, truth_labels, crowds)
            yield Judged(entry, here, there, Matched(steps_of(scores, thresholds), own, matches, truth_labels, crowds))


def _by_picture(rows: Sequence[Row]) -> dict[int | str, list[Row]]:
    by_picture: dict[int | str, list[Row]] = {}
    for row in rows:
        by_picture.setdefault(row["image_id"], []).append(row)
    return by_picture


def _sizes(truth: Sequence[Row]) -> dict[str, int]:
    """Objects of each of pycocotools' ranges of areas but that of all."""
    ranges = Params()
    areas = np.array([row["area"] for row in truth if not row["iscrowd"]], dtype=np.float64)
    return {
        name: int(((areas >= low) & (areas <= high)).sum())
        for name, (low, high) in zip(ranges.areaRngLbl, ranges.areaRng, strict=True)
        if name != "all"
    }
