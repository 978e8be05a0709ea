"""Real photographs, JPEG file to detections, against the reference's; the photographs come from FPG_ZOO_DATA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_model
from pycocotools import mask as mask_api
from torchvision.ops import box_iou

from fpg_zoo import Predictor
from fpg_zoo.modeling.preprocess import preprocess
from fpg_zoo.structures.images import read_image, to_pixels

ENTRIES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "end_to_end.json").read_text())
# Another JPEG decoder may differ by a gray level here and there, and random weights make much of it; the decoder
# that Pillow's wheels carry gives 100 of 100 and the same pixels.
SAME_BOX_IOU = 0.9
SAME_SCORE = 0.02
MATCHED = 97
MASK_IOU = 0.9
GREY_LEVEL = 1 / 57  # one level after division by the smallest standard deviation
WRITTEN = 1e-4  # the file has four decimals


@pytest.fixture(scope="module", params=ENTRIES)
def key(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def photograph(data_folder: Path, key: str) -> Path:
    return data_folder / "coco" / "val2017" / key.split("/")[1]


@pytest.mark.slow
def test_input_pixels_equal_the_reference(key: str, data_folder: Path) -> None:
    entry = ENTRIES[key]
    image = to_pixels(read_image(photograph(data_folder, key)))
    batch, sizes = preprocess([image], golden_model(key.split("/")[0]).config.preprocess)
    assert list(image.shape[1:]) == entry["original"]
    assert list(sizes[0]) == entry["resized"]
    assert list(batch.shape[2:]) == entry["padded"]
    height_factor, width_factor = (new / old for new, old in zip(sizes[0], image.shape[1:], strict=True))
    assert [width_factor, height_factor] == pytest.approx(entry["scale_factor"])
    pixels = batch.flatten()[torch.linspace(0, batch.numel() - 1, 256).long()]
    differences = (pixels - torch.tensor(entry["pixels"])).abs()
    assert float(differences.max()) < GREY_LEVEL + WRITTEN
    assert int((differences > WRITTEN).sum()) <= 5


@pytest.mark.slow
def test_detections_equal_the_reference(key: str, data_folder: Path) -> None:
    entry = ENTRIES[key]
    found = Predictor(golden_model(key.split("/")[0]))(photograph(data_folder, key))[0]
    overlaps = box_iou(torch.tensor(entry["boxes"]), found.boxes)
    same = overlaps > SAME_BOX_IOU
    same &= torch.tensor(entry["labels"])[:, None] == found.labels[None]
    same &= (torch.tensor(entry["scores"])[:, None] - found.scores[None]).abs() < SAME_SCORE
    assert int(same.any(dim=1).sum()) >= MATCHED
    if "masks" not in entry:
        assert found.masks is None
        return
    assert found.masks is not None
    equal = 0
    for index, rle in enumerate(entry["masks"]):
        expected = mask_api.decode({"size": rle["size"], "counts": rle["counts"].encode()}).astype(bool)
        candidates = found.masks[same[index]].numpy()
        ious = [(mask & expected).sum() / max(np.logical_or(mask, expected).sum(), 1) for mask in candidates]
        equal += bool(ious) and max(ious) > MASK_IOU
    assert equal >= len(entry["masks"]) * MATCHED / 100
