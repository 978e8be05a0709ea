"""What detections are compared with: the objects that were read of a data set, and nothing else of its file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from fpg_zoo.data.annotation_problems import Report
from fpg_zoo.data.dataset import Dataset, ImageInfo
from fpg_zoo.data.masks import as_coco
from fpg_zoo.errors import ConfigError


def ground_truth(
    dataset: Dataset, category_ids: Sequence[int], *, source: str = "the data", report: Report | None = None
) -> dict[str, Any]:
    """What detections in a data set's images are compared with: its own objects and crowds, all of them.

    Args:
        dataset: that was read.
        category_ids: the id of each of its classes.
        source: what an error message calls it.
        report: of the reading, which an error message quotes.

    Returns:
        `images`, `annotations` and `categories` as a file in COCO's format has them. An object without a mask has no
        `segmentation`.

    Raises:
        ConfigError: there is nothing to evaluate, as there is no object besides crowds.
    """
    infos = [dataset.image_info(index) for index in range(len(dataset))]
    rows = [row for info in infos for row in annotations_of(info, category_ids)]
    check_objects(rows, source, report)
    images = [
        {"id": info.image_id, "file_name": name, "height": info.size[0], "width": info.size[1]}
        for info, name in zip(infos, _names([info.file for info in infos]), strict=True)
    ]
    categories = [
        {"id": identity, "name": name} for identity, name in zip(category_ids, dataset.class_names, strict=True)
    ]
    return {"images": images, "annotations": rows, "categories": categories}


def annotations_of(info: ImageInfo, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Objects and crowds of an image as annotations in COCO's format, in the order of their file.

    Which of equal ones comes first decides what finds which.
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    for crowd, objects in enumerate((info.objects, info.crowds)):
        columns = (objects.places, objects.labels, objects.bboxes, objects.areas)
        masks = objects.masks or (None,) * len(objects)
        for place, label, bbox, area, identity, mask in zip(
            *(column.tolist() for column in columns), objects.ids, masks, strict=True
        ):
            row = {
                "id": identity,
                "image_id": info.image_id,
                "category_id": category_ids[label],
                "bbox": bbox,
                "area": area,
                "iscrowd": crowd,
            }
            if mask is not None:
                row["segmentation"] = as_coco(mask)
            rows.append((place, row))
    return [row for _, row in sorted(rows, key=itemgetter(0))]


def _names(files: Sequence[Path]) -> list[str]:
    """What tells files apart for people: their paths from the folder on that all of them are in."""
    folders = {file.parent for file in files}
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # on several drives
        return [file.name for file in files]
    return [file.relative_to(common).as_posix() for file in files]


def check_objects(rows: Sequence[Mapping[str, Any]], source: str, report: Report | None) -> None:
    """Whether annotations hold an object to find.

    Raises:
        ConfigError: they do not; with the cause.
    """
    if any(not row["iscrowd"] for row in rows):
        return
    cause = f"all {len(rows)} objects are crowds" if rows else "no image has an object"
    details = f" ({'; '.join(report.lines())})" if report else ""
    raise ConfigError(f"{source}: nothing to evaluate: {cause}{details}; name annotations with objects to find")
