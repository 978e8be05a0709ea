"""What the report of an evaluation shows, gathered from annotations, detections and metrics."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import Params

from fpg_zoo.evaluation.coco_metrics import IOU_TYPES, IouType, Scores, annotations_for
from fpg_zoo.evaluation.report.coco_rows import Row, overlaps, size_of
from fpg_zoo.evaluation.report.confusion import (
    Confusion,
    ConfusionCounter,
    Matches,
    match,
    rates,
    steps_of,
    thresholds_of,
)
from fpg_zoo.evaluation.report.worst_images import MatchedImage, Pixels, WorstImage, drawn
from fpg_zoo.files import on_terminal
from fpg_zoo.progress import tqdm

MOST_IMAGES = 12


@dataclass(frozen=True)
class ReportInfo:
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
class ReportData:
    """Everything that the page shows.

    Attributes:
        info: what was evaluated.
        scores: COCO's metrics by kind.
        class_names: in the order of labels.
        sizes: numbers of objects by COCO's size: small, medium, large. One on a border is of both, as in its metrics.
        images, objects, crowds, detections: their numbers.
        matched_by: what IoU is of in the confusion: boxes, or masks where there are no boxes.
        thresholds: as of `thresholds_of`.
        confusion: what is taken for what.
        worst_images: the images with most mistakes, most first, then in the order of the data; none without any.
    """

    info: ReportInfo
    scores: Mapping[IouType, Scores]
    class_names: tuple[str, ...]
    sizes: Mapping[str, int]
    image_count: int
    objects: int
    crowds: int
    detections: int
    matched_by: IouType
    thresholds: np.ndarray
    confusion: Confusion
    worst_images: tuple[WorstImage, ...]

    def threshold_texts(self) -> list[str]:
        """The thresholds for people."""
        values: list[float] = self.thresholds.tolist()
        within = (values[0], values[-1]) == (0, 1)
        return [f"{value:.2f}" if within else f"{value:.4g}" for value in values]

    def rates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F1 of all classes together, (101,) each: at each threshold."""
        right, wrong = self.confusion.at_least()
        return rates(right.sum(axis=0), wrong.sum(axis=0), self.confusion.object_counts.sum())


def gather(
    info: ReportInfo,
    annotations: Mapping[str, Any],
    rows: Sequence[Row],
    scores: Mapping[IouType, Scores],
    image_ids: Sequence[int | str],
    pixels: Pixels | None,
) -> ReportData:
    """Compare detections with annotations once more, for what COCO's metrics leave out.

    Args:
        info: what was evaluated.
        annotations, rows, image_ids: as of `coco_metrics.coco_scores`. Objects without a mask count as crowds where
            the detections have masks alone.
        scores: its answer, by kind; boxes, masks or both.
        pixels: reads an image by its id, as of `fpg_zoo.evaluation.report.worst_images.drawn`. None: without images.
    """
    kind: IouType = "bbox" if "bbox" in scores else "segm"
    categories = sorted(annotations["categories"], key=lambda category: category["id"])
    class_names = tuple(str(category["name"]) for category in categories)
    labels = {category["id"]: label for label, category in enumerate(categories)}
    counted = set(image_ids)
    objects = [row for row in annotations_for(kind, annotations) if row["image_id"] in counted]
    detections = [row for row in rows if row["image_id"] in counted]
    thresholds = thresholds_of(np.array([row["score"] for row in detections], dtype=np.float64))
    tally = ConfusionCounter(len(class_names))
    worst_images: list[
        tuple[int, int, MatchedImage]
    ] = []  # a heap: mistakes, the earlier the better, and no two places are equal
    for place, matched_image in enumerate(
        _matched_images(annotations, objects, detections, labels, image_ids, kind, thresholds)
    ):
        tally.add(matched_image.matches)
        mistakes = matched_image.matches.mistakes()
        if mistakes:
            keep = heapq.heappush if len(worst_images) < MOST_IMAGES else heapq.heappushpop
            keep(worst_images, (mistakes, -place, matched_image))
    crowds = sum(bool(row["iscrowd"]) for row in objects)
    return ReportData(
        info=info,
        scores=scores,
        class_names=class_names,
        sizes=_sizes(objects),
        image_count=len(counted),
        objects=len(objects) - crowds,
        crowds=crowds,
        detections=len(detections),
        matched_by=kind,
        thresholds=thresholds,
        confusion=tally.confusion(),
        worst_images=tuple(
            drawn(matched_image, class_names, pixels, masks="segm" in scores)
            for _, _, matched_image in sorted(worst_images, reverse=True)
        ),
    )


def _matched_images(
    annotations: Mapping[str, Any],
    objects: Sequence[Row],
    detections: Sequence[Row],
    labels: Mapping[int, int],
    image_ids: Sequence[int | str],
    kind: IouType,
    thresholds: np.ndarray,
) -> Iterator[MatchedImage]:
    """The images in their order."""
    images = {image["id"]: image for image in annotations["images"]}
    objects_of, detections_of = _by_image(objects), _by_image(detections)
    label = f"{IOU_TYPES[kind]} confusion"
    with tqdm(image_ids, desc=label, unit="image", disable=not on_terminal(), leave=False) as bar:
        for identity in bar:
            here, there, image = objects_of.get(identity, []), detections_of.get(identity, []), images[identity]
            scores = np.array([row["score"] for row in there], dtype=np.float64)
            own = np.array([labels[row["category_id"]] for row in there], dtype=np.int64)
            object_labels = np.array([labels[row["category_id"]] for row in here], dtype=np.int64)
            crowds = np.array([bool(row["iscrowd"]) for row in here], dtype=bool)
            matches = match(overlaps(kind, there, here, size_of(image)), scores, own, object_labels, crowds)
            yield MatchedImage(
                image, here, there, Matches(steps_of(scores, thresholds), own, matches, object_labels, crowds)
            )


def _by_image(rows: Sequence[Row]) -> dict[int | str, list[Row]]:
    by_image: dict[int | str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row["image_id"], []).append(row)
    return by_image


def _sizes(objects: Sequence[Row]) -> dict[str, int]:
    """Objects of each of pycocotools' ranges of areas but that of all."""
    ranges = Params()
    areas = np.array([row["area"] for row in objects if not row["iscrowd"]], dtype=np.float64)
    return {
        name: int(((areas >= low) & (areas <= high)).sum())
        for name, (low, high) in zip(ranges.areaRngLbl, ranges.areaRng, strict=True)
        if name != "all"
    }
