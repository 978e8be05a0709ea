"""Masks as run lengths: COCO's text, from the CPU and from another device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere
from pycocotools import mask as mask_api
from torch import Tensor

from fpg_zoo.structures import Detections, run_lengths
from fpg_zoo.structures.run_lengths import compress, encode

# By hand: a length is 48 more as a character; 1000 is 8, 31 and 0 in groups of 5 bits, as 31 alone would be negative.
TEXTS = [
    ([[0, 1, 1], [0, 1, 0]], "231"),
    ([[1, 1, 1], [1, 1, 1]], "06"),
    ([[0, 0, 0], [0, 0, 0]], "6"),
    ([[1, 0, 0], [0, 0, 1]], "0140"),  # 0, 1, 4, 1: the last is none more than the second
    ([[0, 0, 0], [0, 0, 1]], "51"),
]


def encoded_elsewhere(masks: Tensor) -> tuple[list[str], int]:
    """From the second device, and how often it was waited for."""
    device = Elsewhere()
    with device.active():
        return [one["counts"] for one in encode(device.put(masks.clone()))], device.waits.total()


def test_texts_by_hand() -> None:
    masks = torch.tensor([mask for mask, _ in TEXTS], dtype=torch.bool)
    expected = [text for _, text in TEXTS]
    assert [one["counts"] for one in encode(masks)] == expected
    assert encoded_elsewhere(masks) == (expected, 2)
    assert next(encode(masks))["size"] == [2, 3]
    assert list(encode(masks[:0])) == encoded_elsewhere(masks[:0])[0] == []
    assert compress(np.array([1000])) == "Xo0"
    assert compress(np.array([5, 4, 3, 2])) == "543N"  # 2 is 2 less than 4


@pytest.mark.parametrize("seed", range(4))
def test_they_are_those_of_pycocotools(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise, blocks, whole columns and rows, everything and nothing; on a device some at a time, too."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(6, 130, 47, generator=generator) < torch.linspace(0.001, 0.999, 6)[:, None, None]
    odd = torch.zeros(7, 130, 47, dtype=torch.bool)
    odd[1] = True
    odd[2, :, 3:9] = True  # whole columns: one run
    odd[3, 4:9] = True
    odd[4, 5:, 2] = odd[4, :6, 3] = True  # a run over the border of two columns
    odd[5, -1, -1] = True
    odd[6, 0, 0] = True
    masks = torch.cat((noise, odd))
    rles = [mask_api.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in masks]
    expected = [rle["counts"].decode() for rle in rles]
    assert list(encode(masks)) == [{"size": [130, 47], "counts": text} for text in expected]
    assert encoded_elsewhere(masks) == (expected, 2)
    monkeypatch.setattr(run_lengths, "_COUNTED_AT_ONCE", 5 * 130 * 47)
    assert encoded_elsewhere(masks) == (expected, 6)


def test_rows_of_detections_elsewhere_have_no_bitmaps_to_bring() -> None:
    """Two waits for the masks, and one each for boxes, scores and labels."""
    device = Elsewhere()
    here = Detections(
        boxes=torch.tensor([[0.0, 0.0, 2.0, 2.0]]),
        scores=torch.tensor([0.5]),
        labels=torch.tensor([0]),
        masks=torch.tensor([[[0, 1, 1], [0, 1, 0]]], dtype=torch.bool),
        class_names=("thing",),
        size=(2, 3),
    )
    assert here.masks is not None
    there = Detections(
        *(device.put(tensor.clone()) for tensor in (here.boxes, here.scores, here.labels, here.masks)),
        class_names=("thing",),
        size=(2, 3),
    )
    with device.active():
        assert there.to_coco(1) == here.to_coco(1)
    assert here.to_coco(1)[0]["segmentation"] == {"size": [2, 3], "counts": "231"}
    assert device.waits.total() == 5
