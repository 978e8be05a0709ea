"""Each object once, of what was found in several views of an image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fpg_zoo.inference.views import Found
from fpg_zoo.structures import Detections
from fpg_zoo.structures.boxes import clip, nms_within

SAME_IOU = 0.5  # from here on, two boxes of a class are of one object
INSIDE = 0.7  # of a cut box's area within a whole one of its class: it is a part of that object
_ROWS = 256  # boxes that are compared with all others at a time


def merge(found: Found, size: tuple[int, int], class_names: tuple[str, ...]) -> Detections:
    """Each object once, best score first.

    1. Boxes that no tile cuts go through non-maximum suppression within their class.
    2. A cut box is dropped for a whole one of its class that covers most of it. So it is for one of any class that
       covers nearly the same part of its tile: a part of an object may look like something else.
    3. Cut boxes of a class that are left and agree where their tiles overlap are parts of one object: its box encloses
       theirs, and its mask is theirs together.

    An object's score is the best of those of its class that were joined or dropped for it in 2 and 3.

    Args:
        found: in all views, in the image's frame.
        size: (height, width) of the image in pixels.
        class_names: what labels stand for.

    Returns:
        Detections on the CPU, in the image's frame.
    """
    groups = _groups(found)
    boxes, scores = torch.zeros(len(groups), 4, dtype=torch.float64), torch.zeros(len(groups))
    crops = found.masks
    masks = None if crops is None else torch.zeros(len(groups), *size, dtype=torch.bool)
    groups.sort(key=lambda group: -max(float(found.scores[member]) for member in group.members))
    for place, group in enumerate(groups):
        boxes[place, :2] = found.boxes[group.shape, :2].amin(dim=0)
        boxes[place, 2:] = found.boxes[group.shape, 2:].amax(dim=0)
        scores[place] = found.scores[group.members].max()
        if masks is not None and crops is not None:
            for crop in (crops[member] for member in group.shape):
                (top, left), (height, width) = crop.corner, crop.mask.shape
                masks[place, top : top + height, left : left + width] |= torch.from_numpy(crop.mask)
    labels = torch.tensor([int(found.labels[group.shape[0]]) for group in groups], dtype=torch.int64)
    return Detections(clip(boxes.float(), size), scores, labels, masks, class_names, size)


class _Group:
    """Boxes of one object: those that its box and mask are made of, and all of them."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape
        self.members = list(shape)


def _groups(found: Found) -> list[_Group]:
    whole = (~found.cut).nonzero().squeeze(1)
    kept = whole[nms_within(found.boxes[whole], found.scores[whole].double(), found.labels[whole], SAME_IOU)]
    groups = [_Group([index]) for index in kept.tolist()]
    pieces = found.cut.nonzero().squeeze(1)
    owners = _owners(found, pieces, kept)
    for piece, owner in zip(pieces.tolist(), owners.tolist(), strict=True):
        if owner >= 0 and found.labels[piece] == found.labels[groups[owner].shape[0]]:
            groups[owner].members.append(piece)
    return groups + _joined(found, pieces[owners < 0])


def _owners(found: Found, pieces: Tensor, whole: Tensor) -> Tensor:
    """(P,) int64: for which of the whole boxes each cut one is dropped, by its place among them; -1 for none."""
    owners = torch.full((len(pieces),), -1, dtype=torch.int64)
    if not len(whole):
        return owners
    for first in range(0, len(pieces), _ROWS):
        rows = pieces[first : first + _ROWS]
        boxes, tiles = found.boxes[rows], found.tiles[rows]
        seen = _common(found.boxes[whole][None], tiles[:, None])  # of each whole box, what the tile shows
        shared = _area(_common(boxes[:, None], seen))
        areas = _area(boxes)[:, None].clamp(min=1e-9)
        iou = shared / (areas + _area(seen) - shared).clamp(min=1e-9)
        same_class = found.labels[rows][:, None] == found.labels[whole][None]
        likeness = torch.where((iou >= SAME_IOU) | (same_class & (shared / areas >= INSIDE)), iou + same_class, -1.0)
        best, place = likeness.max(dim=1)
        owners[first : first + _ROWS] = torch.where(best >= 0, place, -1)
    return owners


def _joined(found: Found, pieces: Tensor) -> list[_Group]:
    """Cut boxes that are parts of one object, together; no two of one view."""
    groups = {piece: _Group([piece]) for piece in pieces.tolist()}
    views = {piece: {int(found.views[piece])} for piece in groups}
    for one, other in _pairs(found, pieces):
        first, second = groups[one], groups[other]
        if first is second or views[first.shape[0]] & views[second.shape[0]]:
            continue
        views[first.shape[0]] |= views[second.shape[0]]
        first.shape += second.shape
        first.members += second.members
        for member in second.shape:
            groups[member] = first
    return list({id(group): group for group in groups.values()}.values())


def _pairs(found: Found, pieces: Tensor) -> Iterator[tuple[int, int]]:
    """Cut boxes of one class and different views that agree where their tiles overlap; what agrees most comes first."""
    boxes, tiles, labels, views = found.boxes[pieces], found.tiles[pieces], found.labels[pieces], found.views[pieces]
    pairs: list[tuple[float, int, int]] = []
    for first in range(0, len(pieces), _ROWS):
        rows = slice(first, first + _ROWS)
        common = _common(tiles[rows, None], tiles[None])
        one, other = _common(boxes[rows, None], common), _common(boxes[None], common)
        shared = _area(_common(one, other))
        iou = shared / (_area(one) + _area(other) - shared).clamp(min=1e-9)
        agree = (iou >= SAME_IOU) & (labels[rows, None] == labels[None]) & (views[rows, None] < views[None])
        for row, column in agree.nonzero().tolist():
            pairs.append((float(iou[row, column]), int(pieces[first + row]), int(pieces[column])))
    return ((one, other) for _, one, other in sorted(pairs, key=lambda pair: -pair[0]))


def _common(one: Tensor, other: Tensor) -> Tensor:
    """The boxes (..., 4) that two share; where they share nothing, one without area."""
    return torch.cat((torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])), dim=-1)


def _area(boxes: Tensor) -> Tensor:
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]
