"""What detectors give: instances in the network's frame, and detections in the frame of an image."""

from __future__ import annotations

import collections
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fpg_zoo.config.coco_classes import COCO_CATEGORIES, COCO_CLASSES
from fpg_zoo.structures.run_lengths import encode
from fpg_zoo.text import printable

if TYPE_CHECKING:
    import supervision
    from PIL import Image

    from fpg_zoo.structures.images import ChannelOrder, ImageLike

_MOST_ROWS = 50  # of a notebook's table


def check_score(score: float) -> None:
    """Refuse what cannot be a least score.

    Raises:
        ValueError: `score` is outside 0..1, or NaN.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score={score}: a score lies in 0..1")


@dataclass(frozen=True, eq=False)
class Instances:
    """One image's K instances in the network's frame, best first.

    Attributes:
        boxes: (K, 4) float32 xyxy in pixels of the network's input, within the image there, its padding left out.
        scores: (K,) float32 in 0..1.
        labels: (K,) int64, 0-based classes.
        mask_maps: (K, S, S) float32 probabilities over each box, 0..1; None for a detector without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask_maps: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor) -> Instances:
        """The instances chosen by K bools, or by int64 indices, on the instances' device."""
        return Instances(
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            mask_maps=None if self.mask_maps is None else self.mask_maps[index],
        )


@dataclass(frozen=True, eq=False)
class Detections:
    """One image's K detections, as the detector gives them: best score first.

    Attributes:
        boxes: (K, 4) float32 xyxy in pixels, 0 <= x1 <= x2 <= width, 0 <= y1 <= y2 <= height.
        scores: (K,) float32 in 0..1.
        labels: (K,) int64, indices into `class_names`.
        masks: (K, height, width) bool, or None for a detector without masks.
        class_names: the detector's classes.
        size: (height, width) of the frame in pixels.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None
    class_names: tuple[str, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def __getitem__(self, index: int | slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]) -> Detections:
        """The detections chosen by an index (one, still as `Detections`), a slice, several indices, or K bools.

        Raises:
            TypeError: indices that are neither whole numbers nor bools.
            IndexError: an index out of range, or another number of bools than K.
        """
        if not isinstance(index, slice):
            if isinstance(index, np.ndarray):
                index = np.ascontiguousarray(index)  # torch takes no negative strides, as of [::-1]
            try:
                index = torch.as_tensor(index, device=self.boxes.device).reshape(-1)
            except (RuntimeError, ValueError) as error:
                raise TypeError(f"index {index!r}: pass whole numbers, bools or a slice") from error
            if (index.is_floating_point() or index.is_complex()) and index.numel():
                raise TypeError(f"indices of {index.dtype}: pass whole numbers, bools or a slice")
            index = index if index.dtype == torch.bool else index.long()
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            masks=None if self.masks is None else self.masks[index],
        )

    def above(self, score: float) -> Detections:
        """Those with at least this score.

        Raises:
            ValueError: `score` is outside 0..1, or NaN.
        """
        check_score(score)
        return self[self.scores >= score]

    def sorted(self, *, descending: bool = True) -> Detections:
        """Ordered by score, the order among equal scores kept."""
        return self[self.scores.sort(descending=descending, stable=True).indices]

    def to(self, device: torch.device | str) -> Detections:
        """A copy whose tensors are on `device`."""
        return replace(
            self,
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
            masks=None if self.masks is None else self.masks.to(device),
        )

    def to_coco(self, image_id: int | str, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows of a COCO results file.

        Args:
            image_id: the image's id in the annotation file.
            category_ids: the file's id of each class, in the order of `class_names`. None: COCO's own ids for COCO's
                80 classes, 1, 2, 3... for any others.

        Returns:
            A dict per detection: `image_id`, `category_id`, `bbox` as [x, y, width, height] in pixels, `score`, and
            `segmentation` as compressed RLE where there are masks.

        Raises:
            ValueError: `category_ids` does not have one id per class.
        """
        if category_ids is None:
            is_coco = self.class_names == COCO_CLASSES
            category_ids = list(COCO_CATEGORIES.values()) if is_coco else range(1, len(self.class_names) + 1)
        if len(category_ids) != len(self.class_names):
            raise ValueError(f"{len(category_ids)} category_ids for {len(self.class_names)} classes: give one for each")
        detections = replace(self, masks=None).to("cpu")
        rows: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": int(category_ids[label]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), label, score in zip(
                detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True
            )
        ]
        if self.masks is not None:
            for row, rle in zip(rows, encode(self.masks), strict=True):
                row["segmentation"] = rle
        return rows

    def to_supervision(self) -> supervision.Detections:
        """As `supervision.Detections`, class names under `data["class_name"]`.

        Raises:
            ImportError: the package `supervision` is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs the package supervision: pip install fpg-zoo[supervision]"
            ) from error
        detections = self.to("cpu")
        return supervision.Detections(
            xyxy=detections.boxes.numpy(),
            mask=None if detections.masks is None else detections.masks.numpy(),
            confidence=detections.scores.numpy(),
            class_id=detections.labels.numpy(),
            data={"class_name": np.array(detections.names, dtype=str)},
        )

    def draw(self, image: ImageLike, *, channel_order: ChannelOrder = "rgb") -> Image.Image:
        """A copy of the image with masks, boxes, names and scores drawn on it; `image` itself is unchanged.

        Args:
            image: the image they were found in, as anything that `structures.images.read_image` takes, and read in
                the same way: an EXIF rotation is applied, 16 bits are scaled to 8.
            channel_order: of an array's colors, `rgb` or `bgr`.

        Returns:
            A PIL image in mode RGB, of this frame's size.

        Raises:
            ImageError: it cannot be read as an image.
            ValueError: it is not of this frame's size.
        """
        from fpg_zoo.structures.drawing import draw_detections

        return draw_detections(self, image, channel_order)

    def __repr__(self) -> str:
        """Such as `Detections(3 in 480x640: 2 person, 1 dog; scores 0.51..0.98; with masks)`, on one line."""
        height, width = self.size
        parts = [f"{len(self)} in {height}x{width}" + (f": {counted_names(self.names)}" if len(self) else "")]
        if len(self):
            parts.append(f"scores {float(self.scores.min()):.2f}..{float(self.scores.max()):.2f}")
        if self.masks is not None:
            parts.append("with masks")
        return f"Detections({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        """A table for notebooks, best first, of at most `_MOST_ROWS` rows."""
        head = "".join(f"<th>{name}</th>" for name in ("", "class", "score", "x1", "y1", "x2", "y2"))
        shown = replace(self, masks=None)[:_MOST_ROWS]
        rows = [
            f"<tr><td>{place}</td><td>{html.escape(printable(name))}</td><td>{score:.3f}</td>"
            + "".join(f"<td>{side:.1f}</td>" for side in box)
            + "</tr>"
            for place, (name, score, box) in enumerate(
                zip(shown.names, shown.scores.tolist(), shown.boxes.tolist(), strict=True)
            )
        ]
        rest = f"<p>and {len(self) - len(shown)} more</p>" if len(self) > len(shown) else ""
        return f"<p>{html.escape(repr(self))}</p><table><tr>{head}</tr>{''.join(rows)}</table>{rest}"


def counted_names(names: Iterable[str]) -> str:
    """How many there are of each, for people, the most frequent first: "2 cat, 1 dog"."""
    return ", ".join(f"{count} {printable(name)}" for name, count in collections.Counter(names).most_common())
