"""What the report counts: which detection finds which object, thresholds, confusion, mistakes, outlines; by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fpg_zoo.data.masks import Polygons, RunLengths, decode, rasterize
from fpg_zoo.evaluation.report.coco_rows import overlaps
from fpg_zoo.evaluation.report.confusion import (
    IGNORED,
    NO_OBJECT,
    ConfusionCounter,
    Matches,
    match,
    rates,
    steps_of,
    thresholds_of,
)
from fpg_zoo.evaluation.report.mask_outlines import outlines

# Three classes; two objects of class 0, one of class 1, and a crowd of class 1. Boxes are x, y, width, height.
TRUTH = [([0, 0, 10, 10], 0, 0), ([20, 0, 10, 10], 1, 0), ([40, 0, 10, 10], 0, 0), ([60, 0, 40, 20], 1, 1)]
DETECTIONS = [
    ([62, 2, 10, 10], 1, 0.4),  # in the crowd of its class
    ([0, 0, 10, 9], 0, 0.8),  # IoU 0.9 with the first object, which the next one takes
    ([0, 0, 10, 10], 0, 0.9),
    ([20, 0, 10, 8], 0, 0.6),  # IoU 0.8 with the second object, which is of class 1
    ([20, 0, 10, 10], 1, 0.55),  # IoU 1 with it, which is taken
    ([62, 2, 10, 10], 0, 0.3),  # in a crowd, but not of its class
    ([40, 0, 10, 4], 2, 0.2),  # IoU 0.4 with the third object
]
FOUND = [IGNORED, NO_OBJECT, 0, 1, NO_OBJECT, NO_OBJECT, NO_OBJECT]


def _matched() -> Matches:
    rows = [{"bbox": box} for box, _, _ in DETECTIONS]
    truth = [{"bbox": box, "iscrowd": crowd} for box, _, crowd in TRUTH]
    scores = np.array([score for _, _, score in DETECTIONS])
    labels = np.array([label for _, label, _ in DETECTIONS])
    truth_labels = np.array([label for _, label, _ in TRUTH])
    crowds = np.array([bool(crowd) for _, _, crowd in TRUTH])
    ious = overlaps("bbox", rows, truth, None)
    found = match(ious, scores, labels, truth_labels, crowds)
    return Matches(steps_of(scores, thresholds_of(scores)), labels, found, truth_labels, crowds)


def test_each_detection_finds_the_best_free_object_from_the_highest_score_on() -> None:
    assert _matched().object_of.tolist() == FOUND


def test_of_equal_overlaps_the_own_class_comes_first_then_the_earlier() -> None:
    ious, crowds = np.array([[0.7, 0.7, 0.7], [0.7, 0.7, 0.7]]), np.zeros(3, dtype=bool)
    found = match(ious, np.array([0.5, 0.5]), np.array([1, 2]), np.array([0, 1, 0]), crowds)
    assert found.tolist() == [1, 0]


def test_an_overlap_of_a_half_is_enough() -> None:
    nothing = np.zeros(1, dtype=bool)
    for iou, expected in ((0.5, 0), (0.4999, NO_OBJECT)):
        found = match(np.array([[iou]]), np.array([0.1]), np.array([0]), np.array([0]), nothing)
        assert found.tolist() == [expected]


def test_confusion_by_hand() -> None:
    tally = ConfusionCounter(3)
    tally.add(_matched())
    confusion = tally.confusion()
    assert confusion.object_counts.tolist() == [2, 1, 0]
    # (class of the object, class of the detection, step, number), 3 being no object; the ignored one is in none.
    assert confusion.cells.tolist() == [
        [0, 0, 90, 1],
        [1, 0, 60, 1],
        [3, 0, 30, 1],
        [3, 0, 80, 1],
        [3, 1, 55, 1],
        [3, 2, 20, 1],
    ]
    right, wrong = confusion.at_least()
    assert right[:, [0, 50, 90, 91]].tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert wrong[:, [0, 30, 31, 50, 60, 61, 81]].tolist() == [
        [3, 3, 2, 2, 2, 1, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],
    ]
    # At 0.5 one of four detections is right, and one of three objects found: F1 = 2 / (4 + 3).
    precision, recall, f1 = rates(right.sum(axis=0), wrong.sum(axis=0), confusion.object_counts.sum())
    assert (precision[50], recall[50], f1[50]) == pytest.approx((1 / 4, 1 / 3, 2 / 7))
    assert np.isnan(precision[91])
    assert (recall[91], f1[91]) == (0, 0)


def test_two_pictures_add_up() -> None:
    tally = ConfusionCounter(3)
    tally.add(_matched())
    tally.add(_matched())
    once = ConfusionCounter(3)
    once.add(_matched())
    assert tally.confusion().object_counts.tolist() == [4, 2, 0]
    assert tally.confusion().cells[:, 3].tolist() == [2] * 6
    assert tally.confusion().cells[:, :3].tolist() == once.confusion().cells[:, :3].tolist()


def test_each_mistake_counts_once() -> None:
    # At 0.5: two detections of nothing, one object taken for another class, one missed.
    assert _matched().mistakes() == 4


def test_nothing_at_all() -> None:
    none = np.zeros(0, dtype=np.int64)
    found = match(np.zeros((0, 0)), np.zeros(0), none, none, np.zeros(0, dtype=bool))
    tally = ConfusionCounter(2)
    tally.add(Matches(none, none, found, none, np.zeros(0, dtype=bool)))
    assert tally.confusion().cells.shape == (0, 4)
    assert tally.confusion().visible_classes() == []
    assert tally.confusion().at_least()[0].tolist() == [[0] * 101] * 2


def test_of_too_many_classes_those_with_most_objects_are_shown() -> None:
    tally, none = ConfusionCounter(300), np.zeros(0, dtype=np.int64)
    truth = np.concatenate([np.arange(200), np.arange(150, 200)])  # the last fifty have two objects each
    tally.add(Matches(none, none, none, truth, np.zeros(len(truth), dtype=bool)))
    assert tally.confusion().visible_classes() == [*range(50), *range(150, 200)]


def test_thresholds_are_hundredths_where_scores_are_of_0_to_1() -> None:
    scores = np.array([0.0, 0.005, 0.01, 0.29, 0.57, 0.58, 0.999, 1.0])
    thresholds = thresholds_of(scores)
    assert thresholds.tolist() == [place / 100 for place in range(101)]
    assert steps_of(scores, thresholds).tolist() == [0, 0, 1, 29, 57, 58, 99, 100]
    assert thresholds_of(np.zeros(0)).tolist() == thresholds.tolist()


def test_thresholds_of_other_scores_go_from_the_least_to_the_greatest() -> None:
    scores = np.array([-3.0, 1.0, 97.0, -1.99])
    thresholds = thresholds_of(scores)
    assert (thresholds[0], thresholds[50], thresholds[100]) == (-3.0, 47.0, 97.0)
    assert steps_of(scores, thresholds).tolist() == [0, 4, 100, 1]
    assert steps_of(np.array([7.0]), thresholds_of(np.array([7.0]))).tolist() == [100]


@pytest.mark.parametrize("seed", range(5))
def test_of_one_class_the_right_ones_are_pycocotools(seed: int) -> None:
    random = np.random.default_rng(seed)
    boxes = np.concatenate([random.uniform(0, 60, (12, 2)), random.uniform(10, 40, (12, 2))], axis=1)
    found = np.repeat(boxes, 3, axis=0) + random.normal(0, 4, (36, 4)).clip(-8, 8)
    scores = random.permutation(36) / 36
    truth = [
        {"id": place, "image_id": 1, "category_id": 1, "bbox": box.tolist(), "area": 100.0, "iscrowd": 0}
        for place, box in enumerate(boxes, 1)
    ]
    rows: list[dict[str, Any]] = [
        {"image_id": 1, "category_id": 1, "bbox": box.tolist(), "score": float(score)}
        for box, score in zip(found, scores, strict=True)
    ]
    labels, truth_labels = np.zeros(36, dtype=np.int64), np.zeros(12, dtype=np.int64)
    mine = match(overlaps("bbox", rows, truth, None), scores, labels, truth_labels, np.zeros(12, dtype=bool))
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO()
        annotations.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": truth}
        annotations.createIndex()
        judged = COCOeval(annotations, annotations.loadRes(rows), "bbox")
        judged.evaluate()
    theirs = judged.evalImgs[0]["dtMatches"][0].astype(int)  # at IoU 0.5, the best first
    assert (mine[np.argsort(-scores)] + 1).tolist() == theirs.tolist()
    assert 3 < (theirs > 0).sum() < 36


# Masks as outlines


def _traced(mask: np.ndarray) -> list[np.ndarray]:
    height, width = mask.shape
    return outlines(RunLengths((height, width), mask_api.encode(np.asfortranarray(mask))["counts"]), (height, width))


def test_a_rectangle_with_a_hole_has_two_outlines() -> None:
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[2:12, 5:25] = 1
    mask[5:9, 10:20] = 0
    corners = [sorted(map(tuple, loop.tolist())) for loop in _traced(mask)]
    assert sorted(corners) == [[(5, 2), (5, 12), (25, 2), (25, 12)], [(10, 5), (10, 9), (20, 5), (20, 9)]]


def test_pixels_that_touch_at_a_corner_and_at_the_border() -> None:
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[:20, :20] = mask[20:, 20:] = 1
    area = sum(abs(_area(loop)) for loop in _traced(mask))
    assert area == 800
    assert _traced(np.zeros((5, 5), dtype=np.uint8)) == []


def _area(loop: np.ndarray) -> float:
    x, y = loop.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def test_a_disc_keeps_its_shape_in_few_points() -> None:
    y, x = np.mgrid[:200, :200]
    mask = ((x - 100) ** 2 + (y - 90) ** 2 < 60**2).astype(np.uint8)
    (loop,) = _traced(mask)
    assert len(loop) < 60
    again = rasterize(Polygons((loop,)), (200, 200))
    both = np.logical_and(mask, again).sum() / np.logical_or(mask, again).sum()
    assert both > 0.97


def test_a_large_mask_is_traced_on_fewer_cells_and_polygons_are_kept() -> None:
    mask = np.zeros((1280, 640), dtype=np.uint8)
    mask[400:800, 100:500] = 1
    (loop,) = _traced(mask)
    assert sorted(map(tuple, loop.tolist())) == [(100, 400), (100, 800), (500, 400), (500, 800)]
    polygons = Polygons((np.array([[1.0, 2], [3, 4], [5, 0]]),))
    assert outlines(polygons, (10, 10)) == [polygons.parts[0]]
    assert decode(RunLengths((1, 1), b"1")).tolist() == [[0]]
