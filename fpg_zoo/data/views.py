"""How a picture is seen in training: resized, cropped, flipped; and its image, boxes and masks seen so.

Frames: the picture's pixels; the resized picture's; the view's, whose origin is the crop's corner, mirrored if flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fpg_zoo.data.masks import Mask, Polygons, RunLengths, decode, rasterise
from fpg_zoo.structures.boxes import clip


@dataclass(frozen=True)
class View:
    """One way of seeing a picture.

    Attributes:
        given: (height, width) of the picture.
        resized: (height, width) it is scaled to.
        corner: (top, left) of the crop in the resized picture.
        size: (height, width) of the crop, which lies within the resized picture.
        flipped: the crop is mirrored left to right.
    """

    given: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    flipped: bool

    def image(self, image: Tensor) -> Tensor:
        """The pixels seen.

        Resized bilinearly with half-pixel centres and without antialiasing, as `fpg_zoo.modeling.preprocess.resize` does to a
        grey level, by torch's own arithmetic: it takes a twentieth of the time, and what is trained on is scaled at
        random anyway.

        Args:
            image: (3, H, W) uint8, of size `given`.

        Returns:
            (3, height, width) uint8, of `size`.
        """
        (top, left), (height, width) = self.corner, self.size
        if self.resized != self.given:
            image = functional.interpolate(image[None], self.resized, mode="bilinear", align_corners=False)[0]
        seen = image[:, top : top + height, left : left + width]
        return seen.flip(-1) if self.flipped else seen.contiguous()

    def boxes(self, boxes: np.ndarray) -> Tensor:
        """(G, 4) float32 xyxy in pixels of the picture to those of the view, clipped to it; some may have no area."""
        moved = torch.from_numpy(self._points(boxes.reshape(-1, 2, 2)).reshape(-1, 4).astype(np.float32))
        if self.flipped:
            moved = moved[:, [2, 1, 0, 3]]
        return clip(moved, self.size)

    def masks(self, masks: Sequence[Mask | None]) -> Tensor:
        """G masks of the picture as (G, height, width) bool, of `size`: made inside the view only; nothing for None."""
        seen = torch.zeros(len(masks), *self.size, dtype=torch.bool, device="cpu")
        for bitmap, mask in zip(seen, masks, strict=True):
            if mask is None:
                continue
            drawn = self._drawn(mask) if isinstance(mask, Polygons) else self._sampled(mask)
            bitmap.copy_(torch.from_numpy(drawn))
        return seen

    def _points(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) float64 (x, y) in the view, of such in the picture."""
        scale = np.array([self.resized[1] / self.given[1], self.resized[0] / self.given[0]])
        moved: np.ndarray = points * scale - np.array(self.corner[::-1])
        if self.flipped:
            moved[..., 0] = self.size[1] - moved[..., 0]
        return moved

    def _drawn(self, mask: Polygons) -> np.ndarray:
        return rasterise(Polygons(tuple(self._points(part) for part in mask.parts)), self.size)

    def _sampled(self, mask: RunLengths) -> np.ndarray:
        """Each pixel of the view takes the mask's pixel under its centre."""
        rows, columns = (
            ((np.arange(first, first + number) + 0.5) * (given / resized)).astype(np.int64).clip(max=given - 1)
            for first, number, given, resized in zip(self.corner, self.size, self.given, self.resized, strict=True)
        )
        if self.flipped:
            columns = columns[::-1]
        sampled: np.ndarray = decode(mask)[rows[:, None], columns]
        return sampled
