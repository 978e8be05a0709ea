"""The entries of an annotation file in COCO's format, checked one by one and gathered by picture."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from tqdm import tqdm

from fpg_zoo.data import report as kinds
from fpg_zoo.data.image_entries import ambiguous_files, expected_path, find_image, image_sizes, name_of, size_of
from fpg_zoo.data.masks import Mask, read_mask
from fpg_zoo.data.report import Report
from fpg_zoo.data.samples import Objects, Picture
from fpg_zoo.files import on_terminal

_LEAST_BOX = 0.01  # pixels; of a side. Less is lost in float32 at the far end of large pictures.
_FAR = 1e9  # pixels; no coordinate is as large
_CLIPPED_SILENTLY = 1.0  # pixel that a box may reach out of its picture, as rounding makes it


@dataclass
class _Gathered:
    """Objects of one picture, one entry each; `masks` stays empty where masks are not asked for."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    ids: list[int | str] = field(default_factory=list)

    def objects(self, masks: bool) -> Objects:
        return Objects(
            boxes=np.array(self.boxes, dtype=np.float32).reshape(-1, 4),
            labels=np.array(self.labels, dtype=np.int64),
            masks=tuple(self.masks) if masks else None,
            ids=tuple(self.ids),
        )


@dataclass
class _Entry:
    file: Path
    size: tuple[int, int]
    objects: _Gathered = field(default_factory=_Gathered)
    crowds: _Gathered = field(default_factory=_Gathered)


class _UnusableError(Exception):
    """An entry of `images` cannot be used: of what kind that is, and more about it."""

    def __init__(self, kind: str, example: str | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.example = example


class Entries:
    """Pictures and annotations as they are added; what cannot be used goes to the report and is left out."""

    def __init__(self, folder: Path, category_ids: Sequence[int], report: Report, *, masks: bool) -> None:
        """Start with none.

        Args:
            folder: that the pictures' file names start from.
            category_ids: in the order of labels.
            report: is added to.
            masks: read masks, too, and leave out objects without one.
        """
        self._folder = folder
        self._labels: dict[int | str, int] = {identity: label for label, identity in enumerate(category_ids)}
        self._report = report
        self._masks = masks
        self._entries: dict[int | str, _Entry] = {}
        self._left_out: set[int | str] = set()  # pictures whose objects need no report of their own

    def add_pictures(self, images: Sequence[Any], least_side: int) -> None:
        """Entries of `images`; those with a side of fewer pixels than `least_side` are left out."""
        names = [name_of(image) if isinstance(image, dict) else None for image in images]
        files = [None if name is None else find_image(self._folder, name) for name in names]
        ambiguous = ambiguous_files(self._folder, names, files)
        with tqdm(images, unit="image", disable=not on_terminal(), leave=False) as bar:
            for place, image in enumerate(bar):
                identity = image.get("id") if isinstance(image, dict) else None
                if not _is_identity(identity):
                    self._report.add(kinds.PICTURE_MALFORMED, f"images[{place}]")
                    continue
                if identity in self._entries or identity in self._left_out:
                    self._report.add(kinds.PICTURE_TWICE, identity)
                    continue
                try:
                    file = self._image_file(names[place], files[place], ambiguous)
                    size = self._image_size(identity, size_of(image), file, least_side)
                except _UnusableError as reason:
                    self._report.add(reason.kind, identity, reason.example)
                    self._left_out.add(identity)
                    continue
                if file != self._folder / str(names[place]):
                    self._report.add(kinds.IMAGE_FOUND, identity, f"{names[place]} as {file}")
                self._entries[identity] = _Entry(file, size)

    def _image_file(self, name: str | None, file: Path | None, ambiguous: Container[Path]) -> Path:
        if name is None:
            raise _UnusableError(kinds.PICTURE_MALFORMED)
        if file is None:
            raise _UnusableError(kinds.PICTURE_MISSING, f"looked for {expected_path(self._folder, name)}")
        if file in ambiguous and file != self._folder / name:
            raise _UnusableError(kinds.IMAGE_AMBIGUOUS, f"{name} as {file}")
        return file

    def _image_size(
        self, identity: int | str, size: tuple[int, int] | None, file: Path, least_side: int
    ) -> tuple[int, int]:
        if size is None:
            sizes = image_sizes(file)
            if not sizes:
                raise _UnusableError(kinds.IMAGE_UNREADABLE)
            size = sizes[0]
            self._report.add(kinds.SIZE_READ, identity)
        if min(size) < least_side:
            raise _UnusableError(kinds.PICTURE_SMALL)
        return size

    def add_annotations(self, annotations: Sequence[Any]) -> None:
        """Entries of `annotations`, after the pictures."""
        seen: set[int | str] = set()
        for place, annotation in enumerate(annotations):
            identity = annotation.get("id") if isinstance(annotation, dict) else None
            if not _is_identity(identity):
                self._report.add(kinds.ID_MISSING, f"annotations[{place}]")
            elif identity in seen:
                self._report.add(kinds.ID_TWICE, identity)
            else:
                seen.add(identity)
                self._add_annotation(identity, annotation)

    def _add_annotation(self, identity: int | str, annotation: dict[str, Any]) -> None:
        def complain(kind: str) -> None:
            self._report.add(kind, identity)

        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        entry = self._entries.get(image_id) if _is_identity(image_id) else None
        if entry is None:
            if not (_is_identity(image_id) and image_id in self._left_out):
                complain(kinds.UNKNOWN_PICTURE)
            return
        label = self._labels.get(category_id) if _is_identity(category_id) else None
        if label is None:
            complain(kinds.UNKNOWN_CATEGORY)
            return
        box = read_box(annotation.get("bbox"), entry.size, complain)
        if box is None:
            return
        gathered = entry.crowds if annotation.get("iscrowd") else entry.objects
        if self._masks:
            mask = read_mask(annotation.get("segmentation"), entry.size, complain)
            if mask is None:
                return
            gathered.masks.append(mask)
        gathered.boxes.append(box)
        gathered.labels.append(label)
        gathered.ids.append(identity)

    def pictures(self, *, keep_empty: bool) -> list[Picture]:
        """Those that were added, in their order; without `keep_empty`, those that have an object besides crowds."""
        found = []
        for identity, entry in self._entries.items():
            if keep_empty or entry.objects.boxes:
                objects, crowds = entry.objects.objects(self._masks), entry.crowds.objects(self._masks)
                found.append(Picture(identity, entry.file, entry.size, objects, crowds))
            else:
                self._report.add(kinds.PICTURE_EMPTY, identity)
        return found


def _is_identity(value: object) -> TypeGuard[int | str]:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_coordinate(value: object) -> bool:
    # Written so that NaN fails it.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_FAR < value < _FAR


def read_box(
    bbox: Any, size: tuple[int, int], complain: Callable[[str], None]
) -> tuple[float, float, float, float] | None:
    """[x, y, width, height] in pixels as xyxy clipped to a picture of `size` (height, width); None if that is none."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_coordinate, bbox)):
        complain(kinds.BOX_MALFORMED)
        return None
    x, y, across, down = bbox
    if min(across, down) < _LEAST_BOX:
        complain(kinds.BOX_NO_SIZE)
        return None
    height, width = size
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + across, width), min(y + down, height)
    if x2 - x1 < _LEAST_BOX or y2 - y1 < _LEAST_BOX:
        complain(kinds.BOX_OUTSIDE)
        return None
    if max(x1 - x, y1 - y, x + across - x2, y + down - y2) > _CLIPPED_SILENTLY:
        complain(kinds.BOX_CLIPPED)
    return x1, y1, x2, y2
