"""The images with most mistakes, ready to be drawn: small JPEGs, and what is annotated and detected in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from fpg_zoo.errors import ImageError
from fpg_zoo.evaluation.report.coco_rows import Row, box_of, mask_of, size_of
from fpg_zoo.evaluation.report.confusion import IGNORED, NO_OBJECT, Matches
from fpg_zoo.evaluation.report.html import coordinate, printable
from fpg_zoo.evaluation.report.mask_outlines import outlines

LONGEST_SIDE = 640  # pixels of an embedded image
MOST_DETECTIONS = 100  # drawn on an image, the best
MOST_OBJECTS = 300  # drawn on it, crowds and then the first
_QUALITY = 80  # of JPEG
_MOST_LETTERS = 30  # of a class in a label

Pixels = Callable[[int | str], Image.Image]
State = Literal["object", "crowd", "right", "wrong", "ignored"]


@dataclass(frozen=True)
class Shape:
    """An object or a detection as it is drawn.

    Attributes:
        state: what it is; the last three are detections.
        box: x, y, width, height in pixels of the image as it is drawn.
        path: the mask's outlines as SVG path data in these pixels; None without a mask.
        name: its class.
        label: its class, and the score of a detection.
        title: what it is, in words.
        step: a detection is shown up to this threshold's place; an object is found up to it, -1 if never.
    """

    state: State
    box: tuple[float, float, float, float]
    path: str | None
    name: str
    label: str
    title: str
    step: int


@dataclass(frozen=True)
class WorstImage:
    """An image ready to be drawn.

    Attributes:
        name: the file's, or the image's id.
        size: (width, height) as it is drawn, in pixels.
        jpeg: the image as a data URI; None where it could not be read.
        note: why not.
        objects: crowds first; the first ones of very many.
        detections: the best last, so that it lies on top.
    """

    name: str
    size: tuple[int, int]
    jpeg: str | None
    note: str | None
    objects: tuple[Shape, ...]
    detections: tuple[Shape, ...]


class MatchedImage(NamedTuple):
    """An image's annotations and detections, and what came of comparing them.

    Attributes:
        image_entry: of `images` of the annotation file.
        annotations: its annotations, crowds included.
        rows: its detections, as of a COCO results file.
        matches: of these, in their order.
    """

    image_entry: Row
    annotations: Sequence[Row]
    rows: Sequence[Row]
    matches: Matches


def drawn(matched_image: MatchedImage, class_names: Sequence[str], pixels: Pixels | None, *, masks: bool) -> WorstImage:
    """An image ready to be drawn.

    Args:
        matched_image: the image.
        class_names: in the order of labels.
        pixels: reads an image by its id, RGB in the frame of the annotations; may raise ImageError. None: without
            images.
        masks: draw them, too.
    """
    image_entry, annotated, rows, matches = matched_image
    image, note = None, "no folder of images was given"
    if pixels is not None:
        try:
            image, note = pixels(image_entry["id"]), ""
        except ImageError as error:
            note = str(error)
    width, height = _frame(matched_image, image)
    canvas = _Canvas(min(1.0, LONGEST_SIDE / max(width, height)), size_of(image_entry), masks)
    right = matches.right()
    matched_until = dict(zip(matches.object_of[right].tolist(), matches.steps[right].tolist(), strict=True))
    objects = []
    for place in np.argsort(~matches.crowds, kind="stable")[:MOST_OBJECTS].tolist():
        crowd, name = matches.crowds[place], printable(class_names[matches.object_labels[place]], _MOST_LETTERS)
        state: State = "crowd" if crowd else "object"
        outcome = "a crowd, does not count" if crowd else "annotated"
        objects.append(canvas.shape(annotated[place], state, name, outcome, matched_until.get(place, -1)))
    order = np.argsort([-row["score"] for row in rows], kind="stable")[:MOST_DETECTIONS][::-1]
    detections = []
    for place in order.tolist():
        state, outcome = _outcome(matches, place, class_names)
        name = printable(class_names[matches.labels[place]], _MOST_LETTERS)
        detections.append(canvas.shape(rows[place], state, name, outcome, int(matches.steps[place])))
    size = (canvas.pixels(width), canvas.pixels(height))
    return WorstImage(
        name=str(image_entry.get("file_name", image_entry["id"])),
        size=size,
        jpeg=None if image is None else _jpeg(image, size),
        note=note or None,
        objects=tuple(objects),
        detections=tuple(detections),
    )


def _outcome(matches: Matches, place: int, class_names: Sequence[str]) -> tuple[State, str]:
    """What a detection is, and in words."""
    object_of = int(matches.object_of[place])
    if object_of == IGNORED:
        return "ignored", "in a crowd, does not count"
    if object_of == NO_OBJECT:
        return "wrong", "finds no object"
    label = matches.object_labels[object_of]
    if matches.labels[place] == label:
        return "right", "right"
    return "wrong", f"wrong, it is annotated as {printable(class_names[label], _MOST_LETTERS)}"


class _Canvas(NamedTuple):
    """How an image is drawn.

    Attributes:
        scale: pixels as drawn, of a pixel of the image.
        size: (height, width) of the image as annotated.
        masks: draw them, too.
    """

    scale: float
    size: tuple[int, int] | None
    masks: bool

    def pixels(self, side: float) -> int:
        return max(1, round(side * self.scale))

    def shape(self, row: Row, state: State, name: str, outcome: str, step: int) -> Shape:
        x, y, width, height = (side * self.scale for side in box_of(row, self.size))
        label = name if state in ("object", "crowd") else f"{name} {row['score']:.2f}"
        return Shape(state, (x, y, width, height), self._path(row), name, label, f"{label}: {outcome}", step)

    def _path(self, row: Row) -> str | None:
        mask = mask_of(row, self.size) if self.masks else None
        if mask is None or self.size is None:
            return None
        loops = outlines(mask, self.size)
        return "".join(
            "M" + "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in loop * self.scale) + "Z" for loop in loops
        )


def _frame(matched_image: MatchedImage, image: Image.Image | None) -> tuple[float, float]:
    """Width and height in pixels: as annotated, or else the image's, or else of all that lies in it."""
    size = size_of(matched_image.image_entry)
    if size is not None:
        return float(size[1]), float(size[0])
    if image is not None:
        return float(image.width), float(image.height)
    boxes = np.array([box_of(row, None) for row in (*matched_image.annotations, *matched_image.rows)]).reshape(-1, 4)
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0, initial=1.0)
    return float(right), float(bottom)


def _jpeg(image: Image.Image, size: tuple[int, int]) -> str:
    encoded = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getbuffer()).decode("ascii")
