"""The entries of an annotation file in COCO's format, checked one by one and gathered by image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np

from fpg_zoo.data import annotation_problems as problems
from fpg_zoo.data.annotation_problems import Report
from fpg_zoo.data.coco_images import ambiguous_files, expected_path, find_image, image_sizes, name_of, size_of
from fpg_zoo.data.dataset import ImageInfo, Objects, no_objects
from fpg_zoo.data.masks import Mask, box_around, is_empty, read_mask
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import on_terminal
from fpg_zoo.progress import tqdm

_LEAST_BOX = 0.01  # pixels; of a side. Less is lost in float32 at the far end of large images.
_FAR = 1e9  # pixels; no coordinate is as large
_CLIPPED_SILENTLY = 1.0  # pixel that a box may reach out of its image, as rounding makes it
_MOST_AREA = 1e10  # pixels; COCO's metrics leave out what is larger, of objects of any size, too
_CROWD_TEXTS = {"0": False, "1": True, "false": False, "true": True}

_MOST_DIGITS = 18  # of a text that is read as a number

Box = tuple[float, float, float, float]
_Value = TypeVar("_Value")


@dataclass
class _Columns:
    """Objects of one image, one entry each; `masks` stays empty where masks are not asked for."""

    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    masks: list[Mask | None] = field(default_factory=list)
    ids: list[int | str] = field(default_factory=list)
    bboxes: list[list[float]] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def objects(self, masks: bool) -> Objects:
        if not self.boxes:
            return no_objects(masks=masks)
        return Objects(
            boxes=np.array(self.boxes, dtype=np.float32),
            labels=np.array(self.labels, dtype=np.int64),
            masks=tuple(self.masks) if masks else None,
            ids=tuple(self.ids),
            bboxes=np.array(self.bboxes, dtype=np.float64),
            areas=np.array(self.areas, dtype=np.float64),
            places=np.array(self.places, dtype=np.int64),
        )


@dataclass
class _Entry:
    file: Path
    size: tuple[int, int] | None  # None where the file does not say, which masks need
    objects: _Columns = field(default_factory=_Columns)
    crowds: _Columns = field(default_factory=_Columns)
    lost: bool = False  # whether an annotation of it could not be used


class _UnusableError(Exception):
    """An entry of `images` cannot be used: of what kind that is, and more about it."""

    def __init__(self, kind: str, example: str | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.example = example


class AnnotationReader:
    """Images and annotations as they are added; what cannot be used goes to the report and is left out."""

    def __init__(self, folder: Path, category_ids: Sequence[int], report: Report, *, masks: bool) -> None:
        """Start with none.

        Args:
            folder: that the images' file names start from.
            category_ids: in the order of labels.
            report: is added to. What it holds of `LEFT_OUT` already counts as annotations that cannot be used.
            masks: read masks, too.
        """
        self._folder = folder
        self._labels: dict[int | str, int] = {identity: label for label, identity in enumerate(category_ids)}
        self._report = report
        self._masks = masks
        self._entries: dict[int | str, _Entry] = {}
        self._left_out: set[int | str] = set()  # images whose objects need no report of their own
        counts = report.counts
        self._lost = sum(counts.get(problem, 0) for problem in problems.LEFT_OUT)
        self._listed = self._lost  # annotations, without those of images that are left out

    def add_images(self, images: Sequence[Any], least_side: int, *, in_files: bool = True) -> None:
        """Entries of `images`.

        Args:
            images: the entries.
            least_side: those with a side of fewer pixels are left out.
            in_files: look for their files. Else a name is a name, and the entry must have the size.
        """
        names = [name_of(image) if isinstance(image, dict) else None for image in images]
        if in_files:
            files = [None if name is None else find_image(self._folder, name) for name in names]
        else:
            files = [None if name is None else self._folder / name for name in names]
        ambiguous = ambiguous_files(self._folder, names, files) if in_files else set()
        with tqdm(images, unit="image", disable=not on_terminal(), leave=False) as bar:
            for place, image in enumerate(bar):
                identity = image.get("id") if isinstance(image, dict) else None
                if not _is_identity(identity):
                    self._report.add(problems.IMAGE_MALFORMED, f"images[{place}]")
                    continue
                if identity in self._entries or identity in self._left_out:
                    self._report.add(problems.IMAGE_TWICE, identity)
                    continue
                try:
                    file = self._image_file(names[place], files[place], ambiguous)
                    size = self._image_size(identity, size_of(image), file if in_files else None, least_side)
                except _UnusableError as reason:
                    self._report.add(reason.kind, identity, reason.example)
                    self._left_out.add(identity)
                    continue
                if file != self._folder / str(names[place]):
                    self._report.add(problems.IMAGE_FOUND, identity, f"{names[place]} as {file}")
                self._entries[identity] = _Entry(file, size)

    def _image_file(self, name: str | None, file: Path | None, ambiguous: Container[Path]) -> Path:
        if name is None:
            raise _UnusableError(problems.IMAGE_MALFORMED)
        if file is None:
            raise _UnusableError(problems.IMAGE_MISSING, f"looked for {expected_path(self._folder, name)}")
        if file in ambiguous and file != self._folder / name:
            raise _UnusableError(problems.IMAGE_AMBIGUOUS, f"{name} as {file}")
        return file

    def _image_size(
        self, identity: int | str, size: tuple[int, int] | None, file: Path | None, least_side: int
    ) -> tuple[int, int]:
        if size is None:
            sizes = [] if file is None else image_sizes(file)
            if not sizes:
                raise _UnusableError(problems.IMAGE_UNREADABLE)
            size = sizes[0]
            self._report.add(problems.SIZE_READ, identity)
        if min(size) < least_side:
            raise _UnusableError(problems.IMAGE_SMALL)
        return size

    def add_frame(self, identity: int | str, size: tuple[int, int] | None) -> None:
        """An image whose file need not be there, of (height, width) pixels; None where its size is not known."""
        self._entries[identity] = _Entry(Path(), size)

    def add_annotations(self, annotations: Sequence[Any]) -> None:
        """Entries of `annotations`, after the images. Their ids name them in the report, and need not be unique."""
        for place, annotation in enumerate(annotations):
            content = annotation if isinstance(annotation, dict) else {}
            image_id, entry = _find(self._entries, content.get("image_id"), self._left_out)
            if image_id in self._left_out:
                continue
            self._listed += 1
            if not self._add_annotation(place, content, image_id, entry):
                self._lost += 1
                if entry is not None:
                    entry.lost = True

    def _add_annotation(
        self, place: int, annotation: dict[str, Any], image_id: int | str | None, entry: _Entry | None
    ) -> bool:
        """Whether it can be used; the report says why not."""
        identity = annotation.get("id")
        name = identity if _is_identity(identity) else f"annotations[{place}]"

        def complain(kind: str) -> None:
            self._report.add(kind, name)

        category_id, label = _find(self._labels, annotation.get("category_id"))
        if entry is None or label is None:
            complain(problems.UNKNOWN_IMAGE if entry is None else problems.UNKNOWN_CATEGORY)
            return False
        crowd = _read_crowd(annotation, complain)
        if crowd is None:
            return False
        bbox = _bbox_of(annotation, entry.size, complain)
        box = read_box(bbox, entry.size, complain)
        if box is None:
            return False
        if image_id != annotation["image_id"]:
            complain(problems.IMAGE_ID_TYPE)
        if category_id != annotation["category_id"]:
            complain(problems.CATEGORY_ID_TYPE)
        columns = entry.crowds if crowd else entry.objects
        if self._masks and entry.size is not None:
            columns.masks.append(_mask_of(annotation, entry.size, complain))
        columns.boxes.append(box)
        columns.bboxes.append(bbox)
        columns.areas.append(_read_area(annotation, bbox, complain))
        columns.labels.append(label)
        columns.ids.append(name)
        columns.places.append(place)
        return True

    def images(self, *, keep_empty: bool, keep_lost: bool = True) -> list[ImageInfo]:
        """Those that were added, in their order.

        Args:
            keep_empty: also those that have no object besides crowds.
            keep_lost: of these, also those of which an annotation could not be used, which may show an object.
        """
        images = []
        for identity, entry in self._entries.items():
            if entry.objects.boxes or (keep_empty and (keep_lost or not entry.lost)):
                objects, crowds = entry.objects.objects(self._masks), entry.crowds.objects(self._masks)
                images.append(ImageInfo(identity, entry.file, entry.size or (0, 0), objects, crowds))
            else:
                self._report.add(problems.IMAGE_EMPTY, identity)
        return images

    def check_losses(self, file: Path) -> None:
        """Whether nearly all annotations can be used.

        Annotations of images that are left out themselves are not counted; crowds are.

        Raises:
            ConfigError: more than one in ten cannot.
        """
        if 10 * self._lost > self._listed:
            raise ConfigError(
                f"{file}: {self._lost} of {self._listed} annotations cannot be used, more than one in ten "
                f"({'; '.join(self._report.lines(problems.LEFT_OUT))}); correct them, or go on without them "
                "(--allow-losses, in Python allow_losses=True)"
            )

    def only_crowds(self) -> int:
        """How many crowds there are, where there are no other objects; else 0."""
        if any(entry.objects.boxes for entry in self._entries.values()):
            return 0
        return sum(len(entry.crowds.boxes) for entry in self._entries.values())


def plain_ids(images: Sequence[Any]) -> list[Any]:
    """Entries of `images` whose ids that are whole are whole numbers, as 3.0 is 3 in JSON."""
    return [
        {**image, "id": int(image["id"])} if isinstance(image, dict) and _is_whole(image.get("id")) else image
        for image in images
    ]


def _find(
    values: Mapping[int | str, _Value], identity: object, others: Collection[int | str] = ()
) -> tuple[int | str | None, _Value | None]:
    """The key that an id of an annotation means, and its value; `others` are keys without a value.

    3.0 is 3. An id may be a number in one place and its text in the other: where the id itself is no key, its other
    form is looked up.
    """
    if isinstance(identity, float) and _is_whole(identity):
        identity = int(identity)
    if not _is_identity(identity):
        return None, None
    if identity in values or identity in others:
        return identity, values.get(identity)
    other = str(identity) if isinstance(identity, int) else _as_number(identity)
    return (other, values.get(other)) if other is not None else (None, None)


def _as_number(text: str) -> int | None:
    """The whole number that a text is the usual form of: 3 of "3", none of "03" or " 3"."""
    digits = text.removeprefix("-")
    if len(digits) > _MOST_DIGITS or not (digits.isascii() and digits.isdigit()):
        return None
    return int(text) if str(int(text)) == text else None


def read_category_id(value: object) -> int | None:
    """A category's id: a whole number, one written as 3.0, or the text of one. None for anything else."""
    if isinstance(value, str):
        return _as_number(value)
    if isinstance(value, float):
        return int(value) if _is_whole(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()


def _is_identity(value: object) -> TypeGuard[int | str]:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_coordinate(value: object) -> bool:
    # Written so that NaN fails it.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_FAR < value < _FAR


def read_box(bbox: Any, size: tuple[int, int] | None, complain: Callable[[str], None]) -> Box | None:
    """[x, y, width, height] in pixels as xyxy clipped to an image of `size` (height, width); None if that is none.

    Where the size is not known (None), it is not clipped.
    """
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_coordinate, bbox)):
        complain(problems.BOX_MALFORMED)
        return None
    x, y, across, down = bbox
    if min(across, down) < _LEAST_BOX:
        complain(problems.BOX_NO_SIZE)
        return None
    if size is None:
        return x, y, x + across, y + down
    height, width = size
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + across, width), min(y + down, height)
    if x2 - x1 < _LEAST_BOX or y2 - y1 < _LEAST_BOX:
        complain(problems.BOX_OUTSIDE)
        return None
    if max(x1 - x, y1 - y, x + across - x2, y + down - y2) > _CLIPPED_SILENTLY:
        complain(problems.BOX_CLIPPED)
    return x1, y1, x2, y2


def _mask_of(annotation: dict[str, Any], size: tuple[int, int], complain: Callable[[str], None]) -> Mask | None:
    """What stands under `segmentation`; a mask without a pixel, which a detection may have, shows no object."""
    mask = read_mask(annotation.get("segmentation"), size, complain)
    if mask is not None and is_empty(mask):
        complain(problems.MASK_MALFORMED)
        return None
    return mask


def _bbox_of(annotation: dict[str, Any], size: tuple[int, int] | None, complain: Callable[[str], None]) -> Any:
    """What stands under `bbox`, or the box around its mask where nothing does."""
    bbox = annotation.get("bbox")
    if bbox is None and size is not None:
        mask = _mask_of(annotation, size, lambda _: None)
        if mask is not None:
            complain(problems.BOX_OF_MASK)
            return box_around(mask, size)
    return bbox


def _read_crowd(annotation: dict[str, Any], complain: Callable[[str], None]) -> bool | None:
    """Whether it is a crowd; no if it does not say. None where that is not clear."""
    crowd = annotation.get("iscrowd", 0)
    if isinstance(crowd, (int, float)) and crowd in (0, 1):
        return bool(crowd)
    if crowd is None:
        complain(problems.CROWD_NULL)
        return False
    if isinstance(crowd, str) and crowd.strip().lower() in _CROWD_TEXTS:
        complain(problems.CROWD_TEXT)
        return _CROWD_TEXTS[crowd.strip().lower()]
    complain(problems.CROWD_UNCLEAR)
    return None


def _read_area(annotation: dict[str, Any], bbox: list[float], complain: Callable[[str], None]) -> float:
    """In pixels; the box's where the annotation has none that can be used."""
    of_box = min(float(bbox[2] * bbox[3]), _MOST_AREA)
    if "area" not in annotation:
        return of_box
    area = annotation["area"]
    if isinstance(area, (int, float)) and not isinstance(area, bool) and 0 <= area <= _MOST_AREA:  # NaN fails this
        return float(area)
    complain(problems.AREA_WRONG)
    return of_box
