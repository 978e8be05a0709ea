"""Masks as COCO's compressed run lengths, counted on the device that they are on.

Legend: K masks (K, H, W) bool. Pixels are counted down the columns. A mask's ends are the pixels that differ from the
one before, where the pixel before the first is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_COUNTED_AT_ONCE = 2**28  # pixels, which take three bytes each for the moment
_GROUPS = 7  # of 5 bits; no image has as many pixels as 35 bits can count


def encode(masks: Tensor) -> Iterator[dict[str, Any]]:
    """Each mask's {"size": [H, W], "counts": text}, as `pycocotools.mask.encode` would give it, with text for bytes.

    From another device than the CPU the ends come over, not the pixels, and the program waits twice for masks of up to
    2**28 pixels together.

    Args:
        masks: (K, H, W) bool.
    """
    height, width = masks.shape[1:]
    ends = _ends_on_cpu(masks) if masks.device.type == "cpu" else _ends_on_device(masks)
    for mask_ends in ends:
        yield {"size": [height, width], "counts": compress(_counts(mask_ends, height * width))}


def _counts(ends: np.ndarray, pixels: int) -> np.ndarray:
    """The lengths of runs of zeros and ones in turn, zeros first."""
    counts = np.diff(ends, prepend=0, append=pixels)
    return counts[:-1] if len(ends) and ends[-1] == pixels else counts


def _ends_on_cpu(masks: Tensor) -> Iterator[np.ndarray]:
    """Each mask's ends; only the rows and columns that hold any are gone through."""
    height = masks.shape[1]
    for mask in masks.numpy():
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        ends = np.zeros(0, dtype=np.int64)
        if len(rows):
            top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            framed = np.zeros((right - left, bottom - top + 2), dtype=bool)  # column after column, zeros at both ends
            framed[:, 1:-1] = mask[top:bottom, left:right].T
            column, row = np.nonzero(framed[:, 1:] != framed[:, :-1])
            ends = (column + left) * height + row + top
            # A run that goes on in the next column neither ends nor begins there.
            goes_on = np.flatnonzero(ends[1:] == ends[:-1])
            ends = np.delete(ends, np.concatenate((goes_on, goes_on + 1)))
        yield ends


def _ends_on_device(masks: Tensor) -> Iterator[np.ndarray]:
    """Each mask's ends, of many masks at a time: one wait for how many there are, and one for them."""
    some = max(_COUNTED_AT_ONCE // max(masks.shape[1] * masks.shape[2], 1), 1)
    for part in torch.split(masks, some) if len(masks) else ():
        pixels = part.transpose(1, 2).flatten(1)
        differ = pixels.clone()
        differ[:, 1:] ^= pixels[:, :-1]
        which, places = differ.nonzero().T.cpu().numpy()
        yield from np.split(places, np.searchsorted(which, np.arange(1, len(part))))


def compress(counts: np.ndarray) -> str:
    """COCO's text for run lengths.

    From the fourth on, a length is written as the difference to the one before the previous. A number is written in
    groups of 5 bits, lowest first, each 48 more; 32 marks that more follow. The last one's highest bit is the sign.

    Args:
        counts: (M,) int64.
    """
    numbers = counts.astype(np.int64)
    numbers[3:] -= counts[1:-2]
    shifts = 5 * np.arange(_GROUPS)
    groups = (numbers[:, None] >> shifts) & 31
    rest = numbers[:, None] >> (shifts + 5)
    follow = rest != np.where(groups & 16, -1, 0)
    used = np.cumprod(np.concatenate((np.ones((len(numbers), 1), dtype=bool), follow[:, :-1]), 1), 1, dtype=bool)
    text: np.ndarray = (groups + 32 * follow + 48)[used].astype(np.uint8)
    return text.tobytes().decode("ascii")
