"""What of an image the network sees at a time: all of it, tiles of it, at several scales, mirrored."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fpg_zoo.config import PreprocessConfig
from fpg_zoo.structures import Detections

TTA_SCALES = (0.8, 1.0, 1.25)  # of the network's input, beside the config's own size
_BORDER = 0.01  # of a tile's side: a box that ends nearer to it is taken for cut


@dataclass(frozen=True)
class View:
    """A part of an image as the network sees it.

    Attributes:
        tile: (left, top, right, bottom) in whole pixels of the image.
        scale: of the network's input beside the config's size.
        mirrored: left and right are exchanged.
    """

    tile: tuple[int, int, int, int]
    scale: float = 1.0
    mirrored: bool = False

    def of(self, image: Image.Image) -> Image.Image:
        """Its pixels."""
        part = image if self.tile == (0, 0, *image.size) else image.crop(self.tile)
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else part


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side of `length` pixels: at equal distances, so that the last one ends with it.

    Args:
        length: of the image's side in pixels.
        tile: of a tile's side in pixels.
        overlap: the least share of a tile that its neighbor covers, too, 0..1.
    """
    if length <= tile:
        return [0]
    steps = -(-(length - tile) // max(int(tile * (1 - overlap)), 1))
    return [round(step * (length - tile) / steps) for step in range(steps + 1)]


def views_of(size: tuple[int, int], *, slice: int | None, overlap: float, whole_image: bool, tta: bool) -> list[View]:
    """What is to be looked at in an image of `size` (height, width); see `Predictor.__call__` for the rest.

    Views of one scale lie side by side.
    """
    height, width = size
    whole = (0, 0, width, height)
    tiles = [whole]
    if slice is not None:
        starts = (tile_starts(length, slice, overlap) for length in size)
        tiles = [
            (left, top, min(left + slice, width), min(top + slice, height)) for top, left in itertools.product(*starts)
        ]
        if whole_image and tiles != [whole]:
            tiles.append(whole)
    scales, mirrored = (TTA_SCALES, (False, True)) if tta else ((1.0,), (False,))
    return [View(tile, scale, flip) for scale in scales for tile in tiles for flip in mirrored]


def scaled(config: PreprocessConfig, scale: float) -> PreprocessConfig:
    """Preprocessing to a network's input of `scale` times the size."""

    def times(side: int) -> int:
        return max(round(side * scale), 1)

    return replace(
        config,
        longest_side=times(config.longest_side),
        shortest_side=None if config.shortest_side is None else times(config.shortest_side),
        fixed_size=None if config.fixed_size is None else (times(config.fixed_size[0]), times(config.fixed_size[1])),
    )


@dataclass(frozen=True, eq=False)
class Crop:
    """A mask in an image, cut to where it is: (height, width) bool, and the (top, left) pixel that it begins at."""

    mask: np.ndarray
    corner: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in all views of an image, in the image's frame.

    Attributes:
        boxes: (K, 4) float64 xyxy in pixels.
        scores: (K,) float32.
        labels: (K,) int64.
        views: (K,) int64, the number of the view.
        tiles: (K, 4) float64, the view's tile.
        cut: (K,) bool: the box ends at a side of its tile that is no side of the image.
        masks: K of them, or None for a detector without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    views: Tensor
    tiles: Tensor
    cut: Tensor
    masks: list[Crop] | None


def in_image(detections: Detections, view: View, number: int, size: tuple[int, int]) -> Found:
    """What was found in a view, taken to the frame of the image, whose `size` is (height, width)."""
    left, top, right, bottom = view.tile
    height, width = size
    boxes = detections.boxes.double()
    if view.mirrored:
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack(((right - left) - x2, y1, (right - left) - x1, y2), dim=1)
    boxes = boxes + boxes.new_tensor((left, top, left, top))
    tile = boxes.new_tensor(view.tile)
    sides = tile.new_tensor((right - left, bottom - top, right - left, bottom - top))
    inner = torch.tensor((left > 0, top > 0, right < width, bottom < height))
    cut = (((boxes - tile).abs() <= _BORDER * sides) & inner).any(dim=1)
    masks = None
    if detections.masks is not None:
        masks = [_cropped(mask, view) for mask in detections.masks.numpy()]
    return Found(
        boxes=boxes,
        scores=detections.scores,
        labels=detections.labels,
        views=torch.full_like(detections.labels, number),
        tiles=tile.expand(len(boxes), 4),
        cut=cut,
        masks=masks,
    )


def _cropped(mask: np.ndarray, view: View) -> Crop:
    """A copy, so that the memory of the view's masks is free."""
    if view.mirrored:
        mask = mask[:, ::-1]
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return Crop(np.zeros((0, 0), dtype=bool), (view.tile[1], view.tile[0]))
    cropped = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return Crop(cropped, (view.tile[1] + int(rows[0]), view.tile[0] + int(columns[0])))


def together(parts: Sequence[Found]) -> Found:
    """All of them, of at least one view."""
    masks = [one for part in parts for one in part.masks or ()] if parts[0].masks is not None else None
    boxes, scores, labels, views, tiles, cut = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("boxes", "scores", "labels", "views", "tiles", "cut")
    )
    return Found(boxes, scores, labels, views, tiles, cut, masks)
