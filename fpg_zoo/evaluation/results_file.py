"""Anybody's detections: a COCO results file, every row checked, and the annotation file it belongs to."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as abbreviated  # the beginning of what may be long
from typing import Any, NamedTuple

from fpg_zoo.data.annotation_problems import MASK_TOO_LARGE, Report
from fpg_zoo.data.coco import read_annotations
from fpg_zoo.data.coco_annotations import AnnotationReader, plain_ids
from fpg_zoo.data.ground_truth import annotations_of, check_objects
from fpg_zoo.data.masks import MAX_PIXELS, MAX_SIDE, can_have_masks, compressed, read_mask
from fpg_zoo.data.text_files import read_json
from fpg_zoo.errors import ConfigError
from fpg_zoo.evaluation.coco_metrics import IouType, iou_types_with_objects, no_mask_note
from fpg_zoo.files import on_terminal
from fpg_zoo.progress import tqdm

_KEYS: dict[IouType, str] = {"bbox": "bbox", "segm": "segmentation"}
_FAR = 1e9  # pixels; no coordinate is as large
_LARGEST = sys.float_info.max
_MOST_SHOWN = 5  # entries that are wrong

_Sizes = Mapping[int | str, tuple[int, int] | None]  # (height, width) in pixels by image


class Results(NamedTuple):
    """Detections that `fpg_zoo.evaluation.coco_metrics.coco_scores` takes.

    Attributes:
        annotations: what they are compared with, as of `fpg_zoo.data.ground_truth.ground_truth`.
        rows: those of the results file, masks as compressed RLE.
        iou_types: what they can be judged by, one at least: boxes, masks.
        report: what was left out or repaired of the annotations.
    """

    annotations: dict[str, Any]
    rows: list[dict[str, Any]]
    iou_types: tuple[IouType, ...]
    report: Report


def read_results(results_file: Path, annotation_file: Path, *, allow_losses: bool = False) -> Results:
    """Read detections and the ground truth they are compared with.

    Args:
        results_file: JSON, a list of rows with `image_id`, `category_id`, `score`, and `bbox` [x, y, width, height] in
            pixels, `segmentation` as RLE or polygons in pixels, or both. Every row must have what any has. May be
            empty.
        annotation_file: JSON in COCO's format. Its images are those that count; annotations are read as
            `fpg_zoo.data.coco.CocoDataset` reads them.
        allow_losses: go on where more than one annotation in ten cannot be used.

    Raises:
        ConfigError: a file cannot be read, or there is nothing to evaluate. A row, an image or a category cannot be
            used: the message has their number and names the first ones by their place, counted from 0.
    """
    rows = read_json(results_file, "a COCO results file")
    if not isinstance(rows, list):
        raise ConfigError(
            f"{results_file}: holds {_kind_of(rows)}, not a list; name a COCO results file, a list of detections"
        )
    report = Report()
    content, class_names, category_ids = read_annotations(annotation_file, report)
    iou_types = _iou_types(rows, content["annotations"])
    masks = "segm" in iou_types
    images = plain_ids(content["images"])
    sizes = _sizes(annotation_file, images, masks=masks)
    reader = AnnotationReader(annotation_file.parent, category_ids, report, masks=masks)
    for identity, size in sizes.items():
        reader.add_frame(identity, size)
    reader.add_annotations(content["annotations"])
    objects = [row for info in reader.images(keep_empty=True) for row in annotations_of(info, category_ids)]
    check_objects(objects, str(annotation_file), report)
    if not allow_losses:
        reader.check_losses(annotation_file)
    names = [image.get("file_name") for image in images]
    annotations = {
        "images": [
            {"id": identity}
            | ({"file_name": name} if isinstance(name, str) else {})
            | ({"height": size[0], "width": size[1]} if size else {})
            for (identity, size), name in zip(sizes.items(), names, strict=True)
        ],
        "annotations": objects,
        "categories": [
            {"id": identity, "name": name} for identity, name in zip(category_ids, class_names, strict=True)
        ],
    }
    if not iou_types_with_objects(iou_types, annotations):
        raise ConfigError(
            f"{annotation_file}: nothing to evaluate: {no_mask_note(iou_types, annotations)}, and no detection a box; "
            "give the detections boxes, or the annotations masks"
        )
    checked = _checked_rows(results_file, rows, annotation_file.name, sizes, category_ids, iou_types)
    return Results(annotations, checked, iou_types, report)


def _kind_of(value: object) -> str:
    names: Mapping[type, str] = {dict: "an object", str: "a text", type(None): "null"}
    return names.get(type(value), "a number")


def _iou_types(rows: list[Any], annotations: list[Any]) -> tuple[IouType, ...]:
    """What any row has; where there are no rows, what any ground truth has. Boxes if nobody has anything."""
    source = rows or annotations
    return tuple(
        iou_type for iou_type, key in _KEYS.items() if any(isinstance(row, dict) and key in row for row in source)
    ) or ("bbox",)


def _refuse(file: Path, what: str, faults: Iterable[tuple[int, str]], total: int) -> None:
    """Raise if there are any."""
    iterator = iter(faults)
    first = list(itertools.islice(iterator, _MOST_SHOWN))
    if not first:
        return
    rest = sum(1 for _ in iterator)
    listed = "; ".join(f"{what}[{place}] {fault}" for place, fault in first)
    raise ConfigError(
        f"{file}: {len(first) + rest} of {total} {what} cannot be used: {listed}{'; ...' if rest else ''}; "
        "correct them or leave them out"
    )


def _sizes(file: Path, images: Sequence[Any], *, masks: bool) -> dict[int | str, tuple[int, int] | None]:
    """(height, width) of each image by its id; None where it does not say, which masks need.

    Raises:
        ConfigError: there are no images, or one cannot be used.
    """
    if not images:
        raise ConfigError(f"{file}: no images in it; name the annotation file that the detections belong to")
    sizes: dict[int | str, tuple[int, int] | None] = {}

    def fault_of(entry: Any) -> str | None:
        if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str):
            return "is without an id"
        if entry["id"] in sizes:
            return f"has an id that is there before: {abbreviated(entry['id'])}"
        sides = [_side(entry.get(side)) for side in ("height", "width")]
        size = (sides[0], sides[1]) if all(sides) else None
        sizes[entry["id"]] = size
        if masks and size is None:
            return "is without height and width in pixels, which masks need"
        if masks and size is not None and not can_have_masks(size):
            return f"has {size[1]}x{size[0]} pixels; masks take at most {MAX_SIDE} a side and {MAX_PIXELS} in all"
        return None

    _refuse(file, "images", _faults(images, fault_of), len(images))
    return sizes


def _side(value: object) -> int:
    """A side in pixels; 0 for what is none."""
    return int(value) if type(value) in (int, float) and 0 < value < _FAR and value == int(value) else 0  # type: ignore


def _faults(rows: Iterable[Any], fault_of: Callable[[Any], str | None]) -> Iterable[tuple[int, str]]:
    for place, entry in enumerate(rows):
        fault = fault_of(entry)
        if fault:
            yield place, fault


def _checked_rows(
    file: Path,
    rows: list[Any],
    annotations_name: str,
    sizes: _Sizes,
    category_ids: Sequence[int],
    iou_types: tuple[IouType, ...],
) -> list[dict[str, Any]]:
    """The rows with what is needed of them; `annotations_name` is the name of the annotation file."""
    required = ("image_id", "category_id", "score", *(_KEYS[iou_type] for iou_type in iou_types))
    known = set(category_ids)
    checked: list[dict[str, Any]] = []

    def fault_of(row: Any) -> str | None:
        if not isinstance(row, dict):
            return f"is {_kind_of(row)}, no detection"
        missing = [key for key in required if key not in row]
        if missing:
            return f"is without {', '.join(missing)}"
        image_id, category = row["image_id"], row["category_id"]
        if type(image_id) not in (int, str) or image_id not in sizes:
            return f"has image_id {abbreviated(image_id)}, which is not in {annotations_name}"
        if type(category) is not int or category not in known:
            return f"has category_id {abbreviated(category)}, which is not in {annotations_name}"
        if not is_number(row["score"]):
            return f"has score {abbreviated(row['score'])}, which is no number"
        kept = {key: row[key] for key in required}
        if "bbox" in iou_types and (fault := box_fault(row["bbox"])):
            return fault
        size = sizes[image_id]
        if "segm" in iou_types and size is not None:
            complaints: list[str] = []
            mask = read_mask(row["segmentation"], size, complaints.append)
            if mask is None:
                what = (
                    "whose outline is too long for" if MASK_TOO_LARGE in complaints else "that is no RLE or polygons of"
                )
                return f"has a segmentation {what} its {size[1]}x{size[0]} pixels"
            kept["segmentation"] = compressed(mask, size)
        checked.append(kept)
        return None

    with tqdm(rows, desc="checking", unit="row", disable=not on_terminal(), leave=False) as bar:
        _refuse(file, "rows", _faults(bar, fault_of), len(rows))
    return checked


def is_number(value: object) -> bool:
    """Whether a score or a coordinate is a number that float64 holds."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def box_fault(box: object) -> str | None:
    """What is wrong with a row's `bbox`; None if it is [x, y, width, height]."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f"has bbox {abbreviated(box)}, which is not four numbers"
    if min(box[2:]) < 0:
        return f"has bbox {abbreviated(box)}, whose width or height is negative"
    if max(map(abs, box)) >= _FAR:
        return f"has bbox {abbreviated(box)}, which lies in no image"
    return None
