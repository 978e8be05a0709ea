"""What the page computes: a picture through a model once, and through filters as often as they are moved."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fpg_zoo.data.masks import RunLengths, decode
from fpg_zoo.errors import ImageError
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.open_model import AnyDetector
from fpg_zoo.inference.predictor import Predictor
from fpg_zoo.structures import Detections
from fpg_zoo.structures.drawing import draw_detections
from fpg_zoo.structures.images import open_image, read_image
from fpg_zoo.text import printable

MOST_SIDE = 1600  # pixels; of larger pictures masks and drawing would take seconds, and the page shows no more
MOST_PIXELS = 64_000_000  # of a picture, before it is reduced
DRAWN_SIDE = 960  # pixels; smaller pictures are enlarged up to it, as names would be too coarse to read
LEAST_SCORE = 0.05
_MODELS_KEPT = 3


@dataclass(frozen=True)
class Filters:
    """Which detections are shown, and what of them.

    Attributes:
        score: the least score, `LEAST_SCORE`..1.
        labels: indices of classes; all of them if empty.
        boxes: draw boxes with names and scores.
        masks: draw masks.
    """

    score: float = 0.3
    labels: frozenset[int] = frozenset()
    boxes: bool = True
    masks: bool = True


@dataclass(frozen=True)
class Shown:
    """What is left by filters.

    Attributes:
        picture: mode RGB, with what is drawn on it; a small one enlarged by a whole number.
        detections: without masks.
        rows: of a COCO results file.
        seconds: that drawing took.
    """

    picture: Image.Image
    detections: Detections
    rows: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True, eq=False)
class Found:
    """What a model detects in a picture, down to `LEAST_SCORE`: what a page's session keeps.

    Masks are kept as run lengths in `rows`: a megapixel of a hundred masks takes 100 MB otherwise.

    Attributes:
        name: the picture file's.
        picture: mode RGB, at most `MOST_SIDE` pixels a side.
        original_size: (height, width) before it was reduced.
        model: its name and device.
        detections: without masks, in pixels of `picture`.
        rows: of a COCO results file, one a detection.
        has_masks: whether rows have masks.
        seconds: that reading, preprocessing and the network took. An exported file's preprocessing counts as network.
    """

    name: str
    picture: Image.Image
    original_size: tuple[int, int]
    model: str
    detections: Detections
    rows: list[dict[str, Any]]
    has_masks: bool
    seconds: dict[str, float]

    @property
    def classes(self) -> list[tuple[str, int]]:
        """Names and labels of the classes that were detected, in the order of names."""
        labels = set(self.detections.labels.tolist())
        return sorted((printable(self.detections.class_names[label]), label) for label in labels)

    def shown(self, filters: Filters) -> Shown:
        """Filter and draw; no network runs."""
        start = time.perf_counter()
        keep = self.detections.scores >= filters.score
        if filters.labels:
            keep &= torch.isin(self.detections.labels, torch.tensor(sorted(filters.labels)))
        detections = self.detections[keep]
        rows = [row for row, kept in zip(self.rows, keep.tolist(), strict=True) if kept]
        picture = self.picture
        if self.has_masks and filters.masks:
            picture = draw_detections(replace(detections, masks=self._masks(rows)), picture, boxes=False)
        scale = max(DRAWN_SIDE // max(picture.size), 1)
        if scale > 1:
            picture = picture.resize((picture.width * scale, picture.height * scale))
        if filters.boxes:
            height, width = detections.size
            enlarged = replace(detections, boxes=detections.boxes * scale, size=(height * scale, width * scale))
            picture = draw_detections(enlarged, picture)
        return Shown(picture, detections, rows, time.perf_counter() - start)

    def _masks(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        masks = np.zeros((len(rows), *self.detections.size), dtype=bool)
        for mask, row in zip(masks, rows, strict=True):
            mask[:] = decode(RunLengths(self.detections.size, row["segmentation"]["counts"].encode("ascii")))
        return torch.from_numpy(masks)


class Models:
    """The models that a page offers. Each is opened when it is first used, and the last three are kept."""

    def __init__(self, openers: Mapping[str, Callable[[], AnyDetector]]) -> None:
        """Nothing is opened yet.

        Args:
            openers: by the names to choose from, at least one; the first is the page's choice.
        """
        self._openers = openers
        self._open: OrderedDict[str, AnyDetector] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._openers)

    def open(self, name: str) -> AnyDetector:
        """A model by its name.

        Raises:
            FPGZooError: as of `open_model`.
        """
        if name not in self._open:
            self._open[name] = self._openers[name]()
        self._open.move_to_end(name)
        while len(self._open) > _MODELS_KEPT:
            self._open.popitem(last=False)
        return self._open[name]

    def find(self, file: Path, name: str) -> Found:
        """Detect objects in a picture; one at a time, whatever threads ask.

        Args:
            file: of the picture.
            name: of the model, one of `names`.

        Raises:
            ImageError: it cannot be read as an image, or has more than `MOST_PIXELS`.
            FPGZooError: the model cannot be opened.
        """
        start = time.perf_counter()
        picture, original_size = _read(file)
        read = time.perf_counter()
        with self._lock:
            model = self.open(name)
            begin = time.perf_counter()
            with _start_of_network(model) as started:
                (detections,) = Predictor(model)(picture, score=LEAST_SCORE)
            end = time.perf_counter()
        seconds = {"reading": read - start}
        if started:
            seconds["preprocessing"] = started[0] - begin
        seconds["network"] = end - (started[0] if started else begin)
        return Found(
            name=file.name,
            picture=picture,
            original_size=original_size,
            model=f"{name} on {model.device}",
            detections=replace(detections, masks=None),
            rows=detections.to_coco(file.name),
            has_masks=detections.masks is not None,
            seconds=seconds,
        )


@contextlib.contextmanager
def _start_of_network(model: AnyDetector) -> Iterator[list[float]]:
    """A list that gets the time at which the network begins; it stays empty for an exported file."""
    started: list[float] = []

    def note(*_: object) -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)  # what was asked of it before is preprocessing
        started.append(time.perf_counter())

    if isinstance(model, ExportedDetector):
        yield started
        return
    with model.backbone.register_forward_pre_hook(note):
        yield started


def _read(file: Path) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, reduced if need be, and its (height, width) before."""
    try:
        with open_image(file) as opened:
            width, height = opened.size
    except Exception:  # reading it tells what is wrong with it
        width, height = 0, 0
    if width * height > MOST_PIXELS:
        raise ImageError(
            f"{printable(file.name)}: {width}x{height} pixels, and the page takes at most "
            f"{MOST_PIXELS // 1_000_000} million; reduce it, or use fpg-zoo predict"
        )
    try:
        picture = read_image(file)
    except ImageError as error:  # where the server keeps it is nobody's business
        raise ImageError(str(error).replace(printable(file), printable(file.name))) from None
    size = (picture.height, picture.width)
    picture.thumbnail((MOST_SIDE, MOST_SIDE))
    return picture, size
