"""Boxes and masks of annotations and detections, as their files have them, and how far they overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fpg_zoo.data.masks import Mask, RunLengths, compressed, from_coco, pycocotools_mask
from fpg_zoo.evaluation.coco_metrics import IouType

Row = Mapping[str, Any]  # of an annotation or a results file

_FEWEST = (1, 1)  # pixels; of an image whose entry has no size, which has no masks either


def size_of(entry: Row) -> tuple[int, int] | None:
    """(height, width) in pixels of an entry of `images`; None where it does not say."""
    sides = (entry.get("height"), entry.get("width"))
    return (sides[0], sides[1]) if all(type(side) is int and side > 0 for side in sides) else None  # type: ignore[return-value]


def mask_of(row: Row, size: tuple[int, int] | None) -> Mask | None:
    """The mask of a row, which was checked when it was read, in an image of (height, width); None if it has none."""
    segmentation = row.get("segmentation")
    return from_coco(segmentation) if size is not None and segmentation else None


def box_of(row: Row, size: tuple[int, int] | None) -> tuple[float, float, float, float]:
    """x, y, width, height in pixels; around the mask where a row has no box."""
    box = row.get("bbox")
    if box is None:
        box = pycocotools_mask().toBbox(_run_lengths(row, size))
    x, y, width, height = (float(side) for side in box)
    return x, y, width, height


def overlaps(kind: IouType, rows: Sequence[Row], objects: Sequence[Row], size: tuple[int, int] | None) -> np.ndarray:
    """IoU of detections with annotations of an image by pycocotools.

    Args:
        kind: of boxes or of masks.
        rows, truth: D detections and G annotations.
        size: (height, width) of the image in pixels.

    Returns:
        (D, G) float64, 0..1; for a crowd the share of the detection that lies in it.
    """
    if not rows or not objects:
        return np.zeros((len(rows), len(objects)))
    shapes: list[Any] = (
        [np.array([box_of(row, size) for row in some]) for some in (rows, objects)]
        if kind == "bbox"
        else [[_run_lengths(row, size) for row in some] for some in (rows, objects)]
    )
    ious: np.ndarray = pycocotools_mask().iou(*shapes, [int(row["iscrowd"]) for row in objects])
    return ious


def _run_lengths(row: Row, size: tuple[int, int] | None) -> dict[str, Any]:
    mask = mask_of(row, size)
    size = size or _FEWEST
    return compressed(mask or RunLengths(size, b"1"), size)  # the text of one pixel outside
