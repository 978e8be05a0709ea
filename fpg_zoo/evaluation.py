"""Average precision by pycocotools: COCO's twelve figures and AP per class, for boxes and for masks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from fpg_zoo.data.loader import evaluation_batches, evaluation_loader
from fpg_zoo.data.samples import Dataset
from fpg_zoo.files import on_terminal
from fpg_zoo.modeling.detectors import Detector, TwoStageDetector

Kind = Literal["bbox", "segm"]
KINDS: dict[Kind, str] = {"bbox": "box", "segm": "mask"}  # pycocotools' names, and ours in figures
Row = Mapping[str, Any]  # of a COCO results file
# What pycocotools prints, in its order. AP and AR are over IoU 0.5..0.95 unless they name one, and over 100 detections
# of a picture unless they name a number; small, medium and large are by area in pixels, parted at 32^2 and 96^2.
FIGURES = (
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
    """COCO's figures of detections, of one kind.

    Attributes:
        figures: `FIGURES` by name, each 0..1, or -1 where there is no ground truth of that size.
        classes: AP by the class's name, in the order of category ids; 0..1, or -1 where there is no ground truth of it.
        precisions: (10, 101, C) float64 as pycocotools interpolates them: at IoU 0.5, 0.55, ..., 0.95 and recall 0,
            0.01, ..., 1, of each class, over objects of all sizes; 0..1, or -1 where there is no ground truth of it.
    """

    figures: dict[str, float]
    classes: dict[str, float]
    precisions: np.ndarray


def coco_scores(
    annotations: Mapping[str, Any], results: Sequence[Row], kind: Kind, image_ids: Sequence[int | str]
) -> Scores:
    """COCO's figures of detections, over all classes and of each.

    Args:
        annotations: the content of a COCO annotation file; not changed.
        results: the rows of a COCO results file (`Detections.to_coco`). May be empty.
        kind: `bbox` for boxes, `segm` for masks. Of rows that have both, the other is not looked at.
        image_ids: the pictures that count; those without detections, too.
    """
    # pycocotools takes the annotation id 0 for "not matched" and confuses ids of several types, so all are numbered
    # from 1 on. Pictures keep their order, which decides between equal scores.
    order = sorted(set(image_ids), key=lambda identity: (isinstance(identity, str), identity))
    numbers = {identity: number for number, identity in enumerate(order, 1)}
    images = [
        {**image, "id": numbers[image["id"]]} for image in annotations["images"] if image["id"] in numbers
    ]  # with their sizes, which masks need
    key = "bbox" if kind == "bbox" else "segmentation"
    objects = _numbered(annotations["annotations"], numbers, ("category_id", "area", "iscrowd", key))
    found = _numbered(results, numbers, ("category_id", "score", key))
    for row in found:
        row["area"] = row[key][2] * row[key][3] if kind == "bbox" else mask_api.area(row[key])
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of every step
        evaluation = COCOeval(
            _indexed(images, annotations["categories"], objects),
            _indexed(images, annotations["categories"], found),
            kind,
        )
        with _progress(evaluation, f"{KINDS[kind]} AP"):
            evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {category["id"]: str(category["name"]) for category in annotations["categories"]}
    # (IoU thresholds, recalls, classes, areas, numbers of detections): of all areas and 100 detections.
    precisions = evaluation.eval["precision"][:, :, :, 0, -1]
    return Scores(
        figures={name: float(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)},
        classes={
            names[identity]: float(precisions[:, :, place].mean()) for place, identity in enumerate(sorted(names))
        },
        precisions=precisions,
    )


def _numbered(rows: Sequence[Row], numbers: Mapping[int | str, int], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Copies of the rows of these pictures, with these keys, numbered from 1 on."""
    counted = (row for row in rows if row["image_id"] in numbers)
    return [
        {"id": number, "image_id": numbers[row["image_id"]], **{key: row[key] for key in keys}}
        for number, row in enumerate(counted, 1)
    ]


def _indexed(images: Sequence[Any], categories: Sequence[Any], rows: Sequence[Any]) -> Any:
    index = COCO()
    index.dataset = {"images": images, "categories": categories, "annotations": rows}
    index.createIndex()
    return index


@contextlib.contextmanager
def _progress(evaluation: Any, label: str) -> Iterator[None]:
    """Show on a terminal how far pycocotools is, which takes a minute for COCO's 5000 pictures."""
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


def coco_figures(
    annotations: Mapping[str, Any], results: Sequence[Row], kind: Kind, image_ids: Sequence[int | str]
) -> dict[str, float]:
    """COCO's figures of detections.

    Args:
        annotations, results, kind, image_ids: as of `coco_scores`.

    Returns:
        `FIGURES` by name, each 0..1, or -1 where there is no ground truth of that size.
    """
    return coco_scores(annotations, results, kind, image_ids).figures


def usable(content: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """An annotation file's content, less what the data set reported as unusable.

    Args:
        content: of a COCO annotation file. What many tools leave out is put in: `iscrowd`, and the box's area for
            `area`.
        dataset: what was read of it.
    """
    kept: set[int | str] = set()
    pictures: set[int | str] = set()
    for index in range(len(dataset)):
        picture = dataset.picture(index)
        pictures.add(picture.image_id)
        kept.update(picture.objects.ids, picture.crowds.ids)
    rows = [
        {"iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], **row}
        for row in content["annotations"]
        if isinstance(row, dict) and row.get("id") in kept and row.get("image_id") in pictures
    ]
    images = [image for image in content["images"] if isinstance(image, dict) and image.get("id") in pictures]
    return {**content, "images": images, "annotations": rows}


def detected(
    model: Detector,
    dataset: Dataset,
    category_ids: Sequence[int],
    *,
    batch_size: int = 1,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    done: Collection[int | str] = (),
) -> Iterator[list[tuple[int | str, list[dict[str, Any]]]]]:
    """What a model detects in the pictures of a data set, batch by batch.

    Args:
        model: in eval mode.
        dataset: its pictures; its annotations are not looked at.
        category_ids: the data's id of each class of the model.
        batch_size: pictures in a pass, at most; those of a pass are of equal padded size.
        workers: processes that read pictures ahead.
        rank, world_size: this process among those that share the pictures.
        done: ids of pictures to leave out.

    Yields:
        For each picture of a batch its id and the rows of a COCO results file.

    Raises:
        ConfigError: a number out of range.
        ImageError: a picture cannot be read.
    """
    shares: dict[str, Any] = {"batch_size": batch_size, "rank": rank, "world_size": world_size, "done": done}
    total = sum(map(len, evaluation_batches(dataset, model.config.preprocess, **shares)))
    with tqdm(total=total, unit="image", disable=rank > 0 or not on_terminal(), leave=False) as bar:
        for batch in evaluation_loader(dataset, model.config.preprocess, workers=workers, **shares):
            images = batch.images.to(model.device, model.dtype)
            found = model.detect(images, batch.sizes, batch.original_sizes)
            yield [
                (image_id, detections.to_coco(image_id, category_ids))
                for image_id, detections in zip(batch.image_ids, found, strict=True)
            ]
            bar.update(len(found))


def detections_of(
    model: Detector, dataset: Dataset, category_ids: Sequence[int], *, batch_size: int = 1, workers: int = 0
) -> list[dict[str, Any]]:
    """What a model detects in every picture of a data set, as the rows of a COCO results file.

    Args:
        model, dataset, category_ids, batch_size, workers: as of `detected`.
    """
    batches = detected(model, dataset, category_ids, batch_size=batch_size, workers=workers)
    return [row for batch in batches for _, rows in batch for row in rows]


def kinds_of(model: Detector) -> tuple[Kind, ...]:
    """What a model's detections are judged by: boxes, and masks if it has them."""
    with_masks = isinstance(model, TwoStageDetector) and model.mask_head is not None
    return ("bbox", "segm") if with_masks else ("bbox",)


def image_ids_of(dataset: Dataset) -> list[int | str]:
    """In the order of the data set."""
    return [dataset.picture(index).image_id for index in range(len(dataset))]


def evaluate(
    model: Detector,
    dataset: Dataset,
    annotations: Mapping[str, Any],
    category_ids: Sequence[int],
    *,
    batch_size: int = 1,
    workers: int = 0,
) -> dict[str, float]:
    """COCO's figures of a model on a data set.

    Args:
        model: in eval mode, for the data's classes.
        dataset: its pictures, those without objects included.
        annotations: the content of its annotation file, as of `usable`.
        category_ids: the file's id of each class of the model.
        batch_size, workers: as of `detected`.

    Returns:
        `FIGURES` by name, with `box_` before it, and for a model with masks again with `mask_`; each 0..1 or -1.
    """
    rows = detections_of(model, dataset, category_ids, batch_size=batch_size, workers=workers)
    return figures_of(model, rows, dataset, annotations)


def figures_of(
    model: Detector, rows: Sequence[Row], dataset: Dataset, annotations: Mapping[str, Any]
) -> dict[str, float]:
    """COCO's figures of what a model detected.

    Args:
        model: that detected.
        rows: of a COCO results file.
        dataset, annotations: as of `evaluate`.

    Returns:
        As `evaluate`.
    """
    ids = image_ids_of(dataset)
    return {
        f"{KINDS[kind]}_{name}": value
        for kind in kinds_of(model)
        for name, value in coco_figures(annotations, rows, kind, ids).items()
    }
