"""Average precision by pycocotools: COCO's twelve metrics and AP per class, for boxes and for masks."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fpg_zoo.data.masks import can_have_masks, filled, pycocotools_mask
from fpg_zoo.errors import ConfigError
from fpg_zoo.evaluation.intervals import Matches, matches_of
from fpg_zoo.files import on_terminal
from fpg_zoo.progress import tqdm

mask_api = pycocotools_mask()  # tells what is missing before the imports below would

from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

IouType = Literal["bbox", "segm"]
IOU_TYPES: dict[IouType, str] = {"bbox": "box", "segm": "mask"}  # pycocotools' names, and ours in metrics
Backend = Literal["pycocotools", "faster"]
Row = Mapping[str, Any]  # of a COCO results file
# What pycocotools prints, in its order. AP and AR are over IoU 0.5..0.95 unless they name one, and over 100 detections
# of an image unless they name a number; small, medium and large are by area in pixels, parted at 32^2 and 96^2.
METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


@dataclass(frozen=True, eq=False)
class Scores:
    """COCO's metrics of detections, of one kind.

    Attributes:
        metrics: `METRICS` by name, each 0..1, or None where there is no ground truth of that size.
        classes: AP by the class's name, in the order of category ids; 0..1, or None where there is no ground truth of
            it.
        precisions: (10, 101, C) float64, interpolated by pycocotools: at IoU 0.5, 0.55, ..., 0.95, at recall 0, 0.01,
            ..., 1, of each class. They are of objects of all sizes, 0..1; NaN for a class without ground truth.
        matches: what was matched, in the order of the images' ids; None by `faster`, which does not tell.
    """

    metrics: dict[str, float | None]
    classes: dict[str, float | None]
    precisions: np.ndarray
    matches: Matches | None


def iou_types_with_objects(iou_types: Sequence[IouType], annotations: Mapping[str, Any]) -> tuple[IouType, ...]:
    """Of kinds, those that some object can be found by: boxes, and masks if one has a mask."""
    masks = any(row.get("segmentation") and not row["iscrowd"] for row in annotations["annotations"])
    return tuple(iou_type for iou_type in iou_types if iou_type == "bbox" or masks)


def no_mask_note(iou_types: Sequence[IouType], annotations: Mapping[str, Any]) -> str | None:
    """Why detections that have masks are not judged by them; None where they are, or have none."""
    if "segm" not in iou_types or "segm" in iou_types_with_objects(iou_types, annotations):
        return None
    objects = sum(not row["iscrowd"] for row in annotations["annotations"])
    return f"no mask AP, as none of the {objects} objects has a mask"


def annotations_for(iou_type: IouType, annotations: Mapping[str, Any]) -> list[Row]:
    """Annotations as detections of a kind are compared with them.

    Masks cannot be compared with an object that has none. It is not to be found then, and what lies on it does not
    count, as if a crowd filled its box.

    Args:
        iou_type: of the detections.
        annotations: as of `coco_scores`; not changed.
    """
    rows: list[Row] = annotations["annotations"]
    if iou_type == "bbox":
        return rows
    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
    counted: list[Row] = []
    for row in rows:
        if row.get("segmentation"):
            counted.append(row)
        elif can_have_masks(size := sizes[row["image_id"]]):  # else no detection has one there either
            counted.append({**row, "iscrowd": 1, "segmentation": filled(row["bbox"], size)})
    return counted


def in_order(image_ids: Iterable[int | str]) -> list[int | str]:
    """Images in the order that decides between equal scores: numbers, then texts, each once."""
    return sorted(set(image_ids), key=lambda identity: (isinstance(identity, str), identity))


def evaluator_of(backend: Backend) -> tuple[Any, Any]:
    """The classes `COCO` and `COCOeval` of a back end.

    Raises:
        ConfigError: it is not installed.
    """
    if backend == "pycocotools":
        return COCO, COCOeval
    try:
        package = importlib.import_module("faster_coco_eval")
    except ImportError:
        raise ConfigError(
            f"backend {backend!r}: faster-coco-eval is not installed: pip install 'fpg-zoo[fast-eval]', or leave it out"
        ) from None
    return package.COCO, package.COCOeval_faster


def coco_scores(
    annotations: Mapping[str, Any],
    results: Sequence[Row],
    iou_type: IouType,
    image_ids: Sequence[int | str],
    *,
    backend: Backend = "pycocotools",
) -> Scores:
    """COCO's metrics of detections, over all classes and of each.

    Args:
        annotations: `images`, `annotations` and `categories` as `ground_truth` gives them; not changed. An annotation
            without `segmentation` neither is to be found by masks nor do those on it count.
        results: the rows of a COCO results file (`Detections.to_coco`). May be empty.
        iou_type: `bbox` for boxes, `segm` for masks. Of rows that have both, the other is not looked at.
        image_ids: the images that count; those without detections, too.
        backend: what computes them: pycocotools, or faster-coco-eval for the same in less time.

    Raises:
        ConfigError: the back end is not installed.
    """
    index, evaluator = evaluator_of(backend)
    # pycocotools takes the annotation id 0 for "not matched" and confuses ids of several types, so all are numbered
    # from 1 on. Images keep their order, which decides between equal scores.
    numbers = {identity: number for number, identity in enumerate(in_order(image_ids), 1)}
    images = [
        {**image, "id": numbers[image["id"]]} for image in annotations["images"] if image["id"] in numbers
    ]  # with their sizes, which masks need
    key = "bbox" if iou_type == "bbox" else "segmentation"
    objects = _numbered(annotations_for(iou_type, annotations), numbers, ("category_id", "area", "iscrowd", key))
    detections = _numbered(results, numbers, ("category_id", "score", key))
    for row in detections:
        row["area"] = row[key][2] * row[key][3] if iou_type == "bbox" else mask_api.area(row[key])
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of every step
        evaluation = evaluator(
            _indexed(index(), images, annotations["categories"], objects),
            _indexed(index(), images, annotations["categories"], detections),
            iou_type,
        )
        with (
            _progress(evaluation, f"{IOU_TYPES[iou_type]} AP") if backend == "pycocotools" else contextlib.nullcontext()
        ):
            evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {category["id"]: str(category["name"]) for category in annotations["categories"]}
    # (IoU thresholds, recalls, classes, areas, numbers of detections): of all areas and 100 detections.
    precisions = evaluation.eval["precision"][:, :, :, 0, -1]
    return Scores(
        metrics={name: _metric(value) for name, value in zip(METRICS, evaluation.stats[: len(METRICS)], strict=True)},
        classes={
            names[identity]: _metric(precisions[:, :, place].mean()) for place, identity in enumerate(sorted(names))
        },
        precisions=np.where(precisions < 0, np.nan, precisions),
        matches=matches_of(evaluation) if backend == "pycocotools" else None,
    )


def _metric(value: float) -> float | None:
    """pycocotools' -1 stands for no metric."""
    return None if value < 0 else float(value)


def _numbered(rows: Sequence[Row], numbers: Mapping[int | str, int], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Copies of the rows of these images, with these keys, numbered from 1 on."""
    counted = (row for row in rows if row["image_id"] in numbers)
    return [
        {"id": number, "image_id": numbers[row["image_id"]], **{key: row[key] for key in keys}}
        for number, row in enumerate(counted, 1)
    ]


def _indexed(index: Any, images: Sequence[Any], categories: Sequence[Any], rows: Sequence[Any]) -> Any:
    index.dataset = {"images": images, "categories": categories, "annotations": rows}
    index.createIndex()
    return index


@contextlib.contextmanager
def _progress(evaluation: Any, label: str) -> Iterator[None]:
    """Show on a terminal how far pycocotools is, which takes a minute for COCO's 5000 images."""
    pairs = len(evaluation.params.imgIds) * len(evaluation.params.catIds)
    steps = pairs * (1 + len(evaluation.params.areaRng))
    with tqdm(total=steps, desc=label, disable=not on_terminal(), leave=False) as bar:

        def counting(step: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any) -> Any:
                bar.update()
                return step(*arguments)

            return counted

        evaluation.computeIoU = counting(evaluation.computeIoU)
        evaluation.evaluateImg = counting(evaluation.evaluateImg)
        yield


def scores_by_type(
    iou_types: Sequence[IouType],
    annotations: Mapping[str, Any],
    results: Sequence[Row],
    *,
    backend: Backend = "pycocotools",
) -> dict[IouType, Scores]:
    """COCO's metrics of detections in all images of the annotations, by each kind that an object can be found by.

    Args:
        iou_types: kinds that the detections have.
        annotations, results, backend: as of `coco_scores`.
    """
    ids = [image["id"] for image in annotations["images"]]
    return {
        iou_type: coco_scores(annotations, results, iou_type, ids, backend=backend)
        for iou_type in iou_types_with_objects(iou_types, annotations)
    }


def metrics_by_name(scores: Mapping[IouType, Scores]) -> dict[str, float | None]:
    """The metrics of all kinds, as `box_AP` and `mask_AP50`."""
    return {
        f"{IOU_TYPES[iou_type]}_{name}": value
        for iou_type, one in scores.items()
        for name, value in one.metrics.items()
    }
