"""A program may change torch's default dtype or device: models, detections and losses stay what they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo.data.augment import Crop
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.heads.anchors import cell_anchors, level_anchors
from fpg_zoo.modeling.preprocess import preprocess
from fpg_zoo.structures import Detections
from fpg_zoo.training.criterion import Criterion

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("retinanet_nano_fpg", "mask_rcnn_nano_fpg")
IMAGE = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)
CPU = torch.device("cpu")


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype, "it is the program's, and to be left as it was"
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {
    "float64": lambda: _default_dtype(torch.float64),
    "float16": lambda: _default_dtype(torch.float16),
    "bfloat16": lambda: _default_dtype(torch.bfloat16),
    "meta": lambda: _default_device("meta"),
    "with meta": lambda: torch.device("meta"),
}
each_default = pytest.mark.parametrize("default", DEFAULTS)


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / f"{request.param}.safetensors"
    tiny_model(request.param).save_pretrained(path)
    return path


def _detections(model: Detector) -> Detections:
    (found,) = fpg_zoo.Predictor(model)(IMAGE)
    assert len(found) > 10
    return found


def _assert_same(found: Detections, expected: Detections) -> None:
    for name in ("boxes", "scores", "labels", "masks"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert (one.dtype, one.device) == (other.dtype, other.device)
            assert torch.equal(one, other)


@pytest.mark.parametrize("form", ["plain", "optimized"])
@each_default
@pytest.mark.slow
def test_detections_do_not_follow_it(default: str, form: str, checkpoint: Path) -> None:
    def made() -> Detector:
        model = fpg_zoo.create_model(checkpoint=checkpoint)
        return model if form == "plain" else fpg_zoo.optimize(model)

    before = made()
    expected = _detections(before)
    with DEFAULTS[default]():
        _assert_same(_detections(before), expected)
        _assert_same(_detections(made()), expected)


@each_default
@pytest.mark.slow
def test_losses_do_not_follow_it(default: str) -> None:
    random = np.random.default_rng(1)
    images = torch.from_numpy(random.standard_normal((2, 3, 128, 128), dtype=np.float32))
    masks = torch.zeros(2, 128, 128, dtype=torch.bool)
    masks[0, 5:70, 5:60] = masks[1, 30:120, 30:100] = True
    targets = [
        {"boxes": torch.tensor([[5.0, 5, 60, 70], [30, 30, 100, 120]]), "labels": torch.tensor([1, 2]), "masks": masks},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": masks[:0]},
    ]

    def losses(name: str) -> dict[str, torch.Tensor]:
        criterion = Criterion(fpg_zoo.create_model(name, pretrained=True), sample_all=True)
        return {key: loss.detach() for key, loss in criterion(images, [(128, 128), (100, 128)], targets).items()}

    for name in NAMES:
        expected = losses(name)
        with DEFAULTS[default]():
            found = losses(name)
        assert all(float(loss) > 0 for loss in expected.values())
        assert {key: loss.dtype for key, loss in found.items()} == dict.fromkeys(expected, torch.float32)
        assert {key: float(loss) for key, loss in found.items()} == {key: float(loss) for key, loss in expected.items()}


@pytest.mark.parametrize("default", ["float64", "with meta"])
def test_new_models_are_of_float32_on_the_cpu(default: str, tmp_path: Path) -> None:
    with DEFAULTS[default]():
        model = fpg_zoo.create_model(NAMES[0])
        for tensor in model.state_dict().values():
            assert tensor.device == CPU
            assert tensor.dtype in (torch.float32, torch.int64)  # the latter of BatchNorm's counters
        model.save_pretrained(tmp_path)
        again = fpg_zoo.create_model(f"local-dir:{tmp_path}")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@each_default
def test_what_is_computed_around_the_network_does_not_follow_it(default: str) -> None:
    config = fpg_zoo.model_info(NAMES[0]).config
    image = torch.full((3, 1, 2), 128, dtype=torch.uint8)
    with DEFAULTS[default]():
        cells = cell_anchors(8, config.head.anchors)
        anchors = level_anchors(2, 3, 8, config.head.anchors, CPU)
        batch, _ = preprocess([image], config.preprocess)
        view = Crop(original=(4, 4), resized=(4, 4), corner=(0, 0), size=(4, 4), flipped=False)
        masks = view.masks([])
    assert {tensor.dtype for tensor in (cells, anchors, batch)} == {torch.float32}
    assert {tensor.device for tensor in (cells, anchors, batch, masks)} == {CPU}
    # The cell in row 1 and column 2 is centerd at (16, 8).
    torch.testing.assert_close(anchors.reshape(2, 3, -1, 4)[1, 2], cells + torch.tensor([16.0, 8, 16, 8]))
    means = torch.tensor(config.preprocess.mean), torch.tensor(config.preprocess.std)
    torch.testing.assert_close(batch[0, :, 0, 0], (128 - means[0]) / means[1])
