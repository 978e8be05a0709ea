"""Average precision by pycocotools: COCO's twelve figures, for boxes and for masks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from fpg_zoo.data.loader import evaluation_loader
from fpg_zoo.data.samples import Dataset
from fpg_zoo.files import on_terminal
from fpg_zoo.modeling.detectors import Detector, TwoStageDetector

Kind = Literal["bbox", "segm"]
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


def coco_figures(
    annotations: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind, image_ids: Sequence[int | str]
) -> dict[str, float]:
    """COCO's figures of detections.

    Args:
        annotations: the content of a COCO annotation file.
        results: the rows of a COCO results file (`Detections.to_coco`). May be empty.
        kind: `bbox` for boxes, `segm` for masks.
        image_ids: the pictures that count; those without detections, too.

    Returns:
        `FIGURES` by name, each 0..1, or -1 where there is no ground truth of that size.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of every step
        truth = COCO()
        truth.dataset = dict(annotations)
        truth.createIndex()
        evaluation = COCOeval(truth, _found(truth, results, kind), kind)
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)}


def _found(truth: Any, results: Sequence[Mapping[str, Any]], kind: Kind) -> Any:
    if results:
        # Where a row has a box, too, pycocotools takes the object's size from that.
        left_out = "bbox" if kind == "segm" else "segmentation"
        return truth.loadRes([{key: value for key, value in row.items() if key != left_out} for row in results])
    empty = COCO()  # loadRes takes no empty list
    empty.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
    empty.createIndex()
    return empty


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


@torch.no_grad()
def detections_of(
    model: Detector, dataset: Dataset, category_ids: Sequence[int], *, batch_size: int = 1, workers: int = 0
) -> list[dict[str, Any]]:
    """What a model detects in every picture of a data set, as the rows of a COCO results file.

    Args:
        model: in eval mode.
        dataset: its pictures; its annotations are not looked at.
        category_ids: the data's id of each class of the model.
        batch_size: pictures in a pass, at most; those of a pass are of equal padded size.
        workers: processes that read pictures ahead.
    """
    rows = []
    with tqdm(total=len(dataset), unit="image", disable=not on_terminal(), leave=False) as bar:
        for batch in evaluation_loader(dataset, model.config.preprocess, batch_size=batch_size, workers=workers):
            images = batch.images.to(model.device, model.dtype)
            found = model.detect(images, batch.sizes, batch.original_sizes)
            for image_id, detections in zip(batch.image_ids, found, strict=True):
                rows += detections.to_coco(image_id, category_ids)
            bar.update(len(found))
    return rows


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
        model: in eval mode, for the data's classes in the data's order.
        dataset: its pictures, those without objects included.
        annotations: the content of its annotation file, as of `usable`.
        category_ids: the file's id of each class.
        batch_size, workers: as of `detections_of`.

    Returns:
        `FIGURES` by name, with `box_` before it, and for a model with masks again with `mask_`; each 0..1 or -1.
    """
    rows = detections_of(model, dataset, category_ids, batch_size=batch_size, workers=workers)
    ids = [dataset.picture(index).image_id for index in range(len(dataset))]
    kinds: tuple[tuple[str, Kind], ...] = (("box", "bbox"), ("mask", "segm"))
    with_masks = isinstance(model, TwoStageDetector) and model.mask_head is not None
    return {
        f"{label}_{name}": value
        for label, kind in kinds[: 2 if with_masks else 1]
        for name, value in coco_figures(annotations, rows, kind, ids).items()
    }
