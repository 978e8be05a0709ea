"""Pixels go over to a GPU while it computes, and it is waited for as often as said.

The second device is one of `elsewhere`; it refuses what is used before it is there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from elsewhere import Elsewhere, NotThereError
from PIL import Image
from tiny_models import tiny_model
from torch import Tensor

import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.evaluation.detect import detect_batches
from fpg_zoo.modeling.preprocess import preprocess
from fpg_zoo.structures import Detections
from fpg_zoo.uploads import prefetch_to_device

pytestmark = pytest.mark.usefixtures("one_thread")


def counted(taken: list[int]) -> Iterator[Tensor]:
    for number in range(3):
        taken.append(number)
        yield torch.full((2,), float(number))


def test_one_batch_is_ahead_and_none_is_used_before_it_is_there() -> None:
    taken: list[int] = []
    device = Elsewhere()
    with device.active():
        seen = []
        for batch, (tensor,) in prefetch_to_device(counted(taken), lambda one: [one], torch.device("cuda")):
            seen.append((len(taken), bool(torch.equal(tensor.cpu(), batch))))
    assert seen == [(2, True), (3, True), (3, True)]
    assert device.copies == 3


def test_a_batch_that_fails_loses_none_before_it() -> None:
    def failing() -> Iterator[Tensor]:
        yield from (torch.zeros(2), torch.ones(2))
        raise ValueError("the third")

    with Elsewhere().active():
        batches = prefetch_to_device(failing(), lambda one: [one], torch.device("cuda"))
        assert [next(batches)[0].tolist() for _ in range(2)] == [[0, 0], [1, 1]]
        with pytest.raises(ValueError, match="the third"):
            next(batches)


def test_without_a_gpu_nothing_is_taken_ahead() -> None:
    taken: list[int] = []
    seen = [
        (len(taken), tensor is batch)
        for batch, (tensor,) in prefetch_to_device(counted(taken), lambda one: [one], torch.device("cpu"))
    ]
    assert seen == [(1, True), (2, True), (3, True)]


def test_what_is_used_before_it_is_there_is_found() -> None:
    device = Elsewhere()
    with device.active():
        with torch.cuda.stream(torch.cuda.Stream("cuda")):
            tensor = torch.ones(2).to("cuda", non_blocking=True)
        with pytest.raises(NotThereError):
            tensor + 1


def images() -> list[Image.Image]:
    dataset = ShapesDataset("val", 4)
    return [Image.fromarray(dataset[index].image.permute(1, 2, 0).numpy()) for index in range(4)]


def moved(model: Any) -> tuple[Any, Elsewhere]:
    there, device = copy.deepcopy(model), Elsewhere()
    device.put_module(there)
    return there, device


def near(expected: Detections, found: Detections) -> None:
    """RoIAlign is by another kernel on a GPU, whose sums are in another order."""
    assert len(expected) == len(found) > 0
    assert (expected.boxes - found.boxes).abs().max() < 0.1
    assert torch.equal(expected.labels, found.labels)


def test_preprocessing_on_a_device_waits_for_nothing_and_gives_the_same() -> None:
    config = tiny_model().config.preprocess
    pixels = torch.randint(0, 256, (3, 90, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected, _ = preprocess([pixels], config)
    device = Elsewhere()
    with device.active():
        found, _ = preprocess([device.put(pixels.clone())], config)
        assert device.has(found)
    assert device.waits.total() == 0
    assert torch.equal(expected, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_nano_fpg", "mask_rcnn_nano_fpg"])
def test_a_predictor_on_a_gpu_moves_the_next_images_ahead(name: str) -> None:
    plain = fpg_zoo.create_model(name, pretrained=True)
    expected = fpg_zoo.Predictor(plain)(images(), score=0.5)
    model, device = moved(plain)
    with device.active():
        found = fpg_zoo.Predictor(model)(images(), score=0.5)
        assert not any(device.has(one.boxes) for one in found)
    assert device.copies == 4
    assert not any("preprocess" in place or "copy to" in place for place in device.waits)
    for before, after in zip(expected, found, strict=True):
        near(before, after)


@pytest.mark.slow
def test_masks_that_stay_elsewhere_come_as_run_lengths() -> None:
    plain = fpg_zoo.create_model("mask_rcnn_nano_fpg", pretrained=True)
    model, device = moved(plain)
    with device.active():
        (whole,) = fpg_zoo.Predictor(model)(images()[0], score=0.5)
        (kept,) = fpg_zoo.Predictor(model, masks_to_cpu=False)(images()[0], score=0.5)
        assert kept.masks is not None
        assert device.has(kept.masks)
        assert not device.has(kept.boxes)
        device.waits.clear()
        rows = kept.to_coco(1)
    assert device.waits.total() == 2
    assert rows == whole.to_coco(1)
    assert len(rows) > 0


@pytest.mark.slow
def test_an_evaluation_on_a_gpu_gives_the_same_rows() -> None:
    plain = fpg_zoo.create_model("mask_rcnn_nano_fpg", pretrained=True)
    dataset = ShapesDataset("val", 4)
    expected = list(detect_batches(plain, dataset, dataset.category_ids, batch_size=2))
    model, device = moved(plain)
    with device.active():
        found = list(detect_batches(model, dataset, dataset.category_ids, batch_size=2))
    assert device.copies == 2
    for batch, other in zip(expected, found, strict=True):
        for (image_id, rows), (other_id, other_rows) in zip(batch, other, strict=True):
            assert image_id == other_id
            best = [row["category_id"] for row in rows if row["score"] > 0.5]
            assert best == [row["category_id"] for row in other_rows if row["score"] > 0.5]
            assert len(best) > 0
