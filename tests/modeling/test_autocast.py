"""Under autocast the network computes in 16 bits, and boxes, scores and losses have all of float32's digits."""

from __future__ import annotations

import pytest
import torch
from tiny_models import thin_twin
from torch import Tensor

import fpg_zoo
from fpg_zoo.modeling.detectors import TwoStageDetector
from fpg_zoo.training import Criterion

NAMES = [*fpg_zoo.list_models("*_r50_*"), *fpg_zoo.list_models("*_nano_*")]
DTYPES = [torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures("one_thread")


def images_of(number: int) -> Tensor:
    return torch.randn(number, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_maps_have_16_bits_and_detections_32(name: str, dtype: torch.dtype) -> None:
    model = thin_twin(name).eval()
    with torch.autocast("cpu", dtype):
        with torch.no_grad():
            maps = [level for levels in model.run_dense(images_of(1)) for level in levels]
        (found,) = model.detect(images_of(1), [(128, 100)])
    assert {level.dtype for level in maps} == {dtype}
    assert len(maps) >= 10
    assert all(bool(level.isfinite().all()) for level in maps)
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert len(found) > 0
    assert (found.masks is None) == (not model.config.has_masks)
    # As fine as float32: 16 bits have coordinates of a quarter of a pixel at best.
    assert len(found.boxes.mul(8).frac().unique()) > 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_losses_have_32_bits_and_are_numbers(name: str, dtype: torch.dtype) -> None:
    model = thin_twin(name).train()
    boxes = torch.tensor([[10.0, 10, 60, 60], [30, 40, 120, 100]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 1]), "masks": torch.ones(2, 128, 128, dtype=torch.bool)}
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype):
        losses = Criterion(model, frozen_stages=0)(images_of(2), [(128, 128)] * 2, [target] * 2)
    assert len(losses) == (2 if not isinstance(model, TwoStageDetector) else 5 if model.config.has_masks else 4)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(bool(loss.isfinite()) for loss in losses.values())
