"""Where AP is lost: kinds of errors, and the AP50 that each would give back (TIDE, Bolya et al., arXiv 2008.08115)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpg_zoo.data.masks import compressed, from_coco, pycocotools_mask
from fpg_zoo.evaluation.coco_metrics import IOU_TYPES, IouType, Row, annotations_for, in_order
from fpg_zoo.files import on_terminal
from fpg_zoo.progress import tqdm

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU: at least the former finds an object, less than the latter touches none
MOST_DETECTIONS = 100  # of a class in an image, as in COCO's metrics
_RECALLS = np.linspace(0, 1, 101)
_FIXED = ("localization", "classification")  # what becomes a right detection; the others go
_SUPPRESSED = ("duplicate", "background", "both")
KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
_RIGHT = "right"


@dataclass(frozen=True)
class Errors:
    """What goes wrong, by the names of `KINDS`.

    Attributes:
        ap50: AP at IoU 0.5, 0..1, as of `coco_scores`.
        counts: wrong detections of each kind, and objects missed.
        gains: how much greater AP50 were without this kind alone, 0..1 and seldom below 0. None where no object would
            be left to find.
    """

    ap50: float
    counts: dict[str, int]
    gains: dict[str, float | None]


@dataclass(frozen=True, eq=False)
class _Judged:
    """Detections that count, in the order of images and then of scores; N of them, G objects.

    Attributes:
        scores: (N,) float64.
        labels: (N,) int64.
        kinds: (N,), `_RIGHT` or one of `KINDS`.
        targets: (N,) int64, the object that is found or was meant; -1 for none.
        object_labels: (G,) int64.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    kinds: NDArray[np.str_]
    targets: NDArray[np.int64]
    object_labels: NDArray[np.int64]


def error_breakdown(
    annotations: Mapping[str, Any], results: Sequence[Row], iou_type: IouType, image_ids: Sequence[int | str]
) -> Errors:
    """The kinds of errors of detections, and what each costs.

    Detections find objects as in COCO's AP50: of their class, with an IoU of at least 0.5, the best scores first. One
    that finds none is, looked for in this order:

    - localization: its greatest IoU with an object of its class is from 0.1 to below 0.5. Fixed, it finds that object.
    - classification: it has an IoU of at least 0.5 with an object of another class. Fixed, it is of that class.
    - duplicate: it has one of at least 0.5 with an object of its class, which another has found. Fixed, it is gone.
    - both: its greatest IoU is from 0.1 to below 0.5, with an object of another class. Fixed, it is gone.
    - background: it touches no object by as much as 0.1. Fixed, it is gone.

    Of several that find one object after a fix, the best score stays. An object is missed where no detection found it,
    nor meant it by an error of localization or classification. Fixed, it need not be found; a class without any other
    does not count then. What lies on crowds does not count.

    Args:
        annotations, results, iou_type, image_ids: as of `coco_scores`; there is at least one object.
    """
    judged = _judged(annotations, results, iou_type, image_ids)
    number = len(annotations["categories"])
    objects = np.bincount(judged.object_labels, minlength=number)
    right = judged.kinds == _RIGHT
    ap50 = _ap(judged.scores, judged.labels, right, objects)
    assert ap50 is not None
    meant = judged.targets[np.isin(judged.kinds, (_RIGHT, *_FIXED))]
    missed = np.setdiff1d(np.arange(len(judged.object_labels)), meant)
    counts = {kind: int((judged.kinds == kind).sum()) for kind in KINDS} | {"missed": len(missed)}
    fixed: dict[str, float | None] = {kind: _ap_if_right(judged, kind, objects) for kind in _FIXED}
    for kind in _SUPPRESSED:
        kept = judged.kinds != kind
        fixed[kind] = _ap(judged.scores[kept], judged.labels[kept], right[kept], objects)
    left = objects - np.bincount(judged.object_labels[missed], minlength=number)
    fixed["missed"] = _ap(judged.scores, judged.labels, right, left)
    gains = {kind: None if (value := fixed[kind]) is None else value - ap50 for kind in KINDS}
    return Errors(ap50, counts, gains)


def _ap_if_right(judged: _Judged, kind: str, objects: NDArray[np.int64]) -> float | None:
    """AP50 if errors of a kind found the objects they meant."""
    right = (judged.kinds == _RIGHT) | (judged.kinds == kind)
    candidates = np.flatnonzero(right)
    ranked = candidates[np.argsort(-judged.scores[candidates], kind="stable")]
    _, first = np.unique(judged.targets[ranked], return_index=True)
    best = np.zeros(len(right), dtype=bool)
    best[ranked[first]] = True
    kept = best | ~right
    labels = judged.labels.copy()
    labels[best] = judged.object_labels[judged.targets[best]]
    return _ap(judged.scores[kept], labels[kept], best[kept], objects)


def _ap(
    scores: NDArray[np.float64], labels: NDArray[np.int64], right: NDArray[np.bool_], objects: NDArray[np.int64]
) -> float | None:
    """COCO's AP of detections, over the classes that have objects (C,); None if none has."""
    values = []
    for label in np.flatnonzero(objects):
        own = np.flatnonzero(labels == label)
        found = np.cumsum(right[own[np.argsort(-scores[own], kind="stable")]])
        precision = found / np.arange(1, len(own) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(found / objects[label], _RECALLS)
        values.append(float(envelope[places[places < len(own)]].sum()) / len(_RECALLS))
    return float(np.mean(values)) if values else None


def _judged(
    annotations: Mapping[str, Any], results: Sequence[Row], iou_type: IouType, image_ids: Sequence[int | str]
) -> _Judged:
    categories = sorted(category["id"] for category in annotations["categories"])
    labels = {identity: label for label, identity in enumerate(categories)}
    objects, detections = _by_image(annotations_for(iou_type, annotations)), _by_image(results)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in annotations["images"]}
    columns: tuple[list[Any], ...] = ([], [], [], [])
    object_labels: list[int] = []
    label = f"{IOU_TYPES[iou_type]} errors"
    with tqdm(in_order(image_ids), desc=label, unit="image", disable=not on_terminal(), leave=False) as bar:
        for identity in bar:
            truth = [row for row in objects.get(identity, []) if not row["iscrowd"]]
            crowds = [row for row in objects.get(identity, []) if row["iscrowd"]]
            found = _best(detections.get(identity, []))
            own = np.array([labels[row["category_id"]] for row in found], dtype=np.int64)
            theirs = np.array([labels[row["category_id"]] for row in truth], dtype=np.int64)
            in_crowd = np.zeros(len(found), dtype=bool)
            if found and crowds:
                same = own[:, None] == np.array([labels[row["category_id"]] for row in crowds])
                shares = _ious(iou_type, found, crowds, sizes[identity], crowd=True)
                in_crowd = (same & (shares >= FOREGROUND)).any(axis=1)
            ious = _ious(iou_type, found, truth, sizes[identity], crowd=False)
            for place, (kind, target) in enumerate(_kinds(ious, own[:, None] == theirs, in_crowd)):
                if kind is not None:
                    entry = (
                        found[place]["score"],
                        own[place],
                        kind,
                        target + len(object_labels) if target >= 0 else -1,
                    )
                    for column, value in zip(columns, entry, strict=True):
                        column.append(value)
            object_labels += theirs.tolist()
    scores, found_labels, kinds, targets = columns
    return _Judged(
        scores=np.array(scores, dtype=np.float64),
        labels=np.array(found_labels, dtype=np.int64),
        kinds=np.array(kinds, dtype=np.str_),
        targets=np.array(targets, dtype=np.int64),
        object_labels=np.array(object_labels, dtype=np.int64),
    )


def _kinds(
    ious: NDArray[np.float64], same: NDArray[np.bool_], in_crowd: NDArray[np.bool_]
) -> Iterator[tuple[str | None, int]]:
    """Of detections, the best first, what they are and of which object; None for one that does not count.

    Args:
        ious, same: (D, G), of detections with objects; whether they are of one class.
        in_crowd: (D,), whether half of one lies in a crowd of its class.
    """
    taken = np.zeros(ious.shape[1], dtype=bool)
    own_ious, other_ious = np.where(same, ious, 0.0), np.where(same, 0.0, ious)
    for own, other, crowd in zip(own_ious, other_ious, in_crowd, strict=True):
        free = np.where(taken, 0.0, own)
        if free.max(initial=0.0) >= FOREGROUND:
            target = len(free) - 1 - int(free[::-1].argmax())  # of equal ones the last, as pycocotools takes it
            taken[target] = True
            yield _RIGHT, target
        elif crowd:
            yield None, -1
        elif BACKGROUND <= own.max(initial=0.0) < FOREGROUND:
            yield "localization", int(own.argmax())
        elif other.max(initial=0.0) >= FOREGROUND:
            yield "classification", int(other.argmax())
        elif own.max(initial=0.0) >= FOREGROUND:
            yield "duplicate", -1
        else:
            yield ("both" if other.max(initial=0.0) >= BACKGROUND else "background"), -1


def _best(rows: Sequence[Row]) -> list[Row]:
    """The detections of an image that count, the best first."""
    numbers: dict[int, int] = {}
    kept = []
    for row in sorted(rows, key=lambda row: -row["score"]):
        numbers[row["category_id"]] = numbers.get(row["category_id"], 0) + 1
        if numbers[row["category_id"]] <= MOST_DETECTIONS:
            kept.append(row)
    return kept


def _ious(
    iou_type: IouType, rows: Sequence[Row], others: Sequence[Row], size: tuple[int, int], *, crowd: bool
) -> NDArray[np.float64]:
    """(D, G) IoU by pycocotools, with crowds the share of the detection."""
    if not rows or not others:
        return np.zeros((len(rows), len(others)))
    shapes: list[Any] = (
        [np.array([row["bbox"] for row in some], dtype=np.float64) for some in (rows, others)]
        if iou_type == "bbox"
        else [[compressed(from_coco(row["segmentation"]), size) for row in some] for some in (rows, others)]
    )
    ious: NDArray[np.float64] = pycocotools_mask().iou(*shapes, [int(crowd)] * len(others))
    return ious


def _by_image(rows: Sequence[Row]) -> dict[int | str, list[Row]]:
    by_image: dict[int | str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row["image_id"], []).append(row)
    return by_image
