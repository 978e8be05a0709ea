"""Everything is on the model's device, and the program does not wait for it more often than it says.

The second device is one of `elsewhere`: it says it is `cuda`, and computes on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from elsewhere import CUDA, Elsewhere, MixedDevicesError
from tiny_models import tiny_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import fpg_zoo
from fpg_zoo.modeling import postprocess, without_waiting
from fpg_zoo.modeling.build import build_detector
from fpg_zoo.modeling.detectors import Detector, RetinaNet
from fpg_zoo.modeling.heads import anchors, roi_align
from fpg_zoo.structures import Detections
from fpg_zoo.training import Criterion

NANO = ["retinanet_nano_fpg", "faster_rcnn_nano_fpg", "mask_rcnn_nano_fpg"]
ALL = [*(pytest.param(name, marks=pytest.mark.slow) for name in fpg_zoo.list_models("*_r50_*")), *NANO]


def on_cpu(model: Detector, images: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
    """What the model detects, with RoIAlign by the kernel that a GPU has, too."""
    with mock.patch.object(roi_align, "_aligned", roi_align.by_torchvision):
        return model.detect(images, sizes, [(2 * height, 2 * width) for height, width in sizes])


def elsewhere(model: Detector, images: Tensor, sizes: list[tuple[int, int]]) -> tuple[list[Detections], Elsewhere]:
    device = Elsewhere()
    device.put_module(model)
    with device.active():
        found = model.detect(device.put(images), sizes, [(2 * height, 2 * width) for height, width in sizes])
    return found, device


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ALL)
def test_a_second_device_finds_the_same_and_is_waited_for_as_often_as_said(name: str) -> None:
    model = tiny_model(name).eval()
    torch.manual_seed(0)
    for number in (1, 3):
        images, sizes = torch.randn(number, 3, 128, 128), [(128, 100), (96, 128), (128, 128)][:number]
        expected = on_cpu(model, images, sizes)
        found, device = elsewhere(model, images.clone(), sizes)
        in_nms, at_once = (1, 1) if isinstance(model, RetinaNet) else (2, 2)
        assert sum(device.waits.values()) == in_nms * number + at_once, device.waits
        assert sum(map(len, expected)) > 0
        for here, there in zip(expected, found, strict=True):
            assert device.has(there.boxes)
            assert torch.equal(here.boxes, there.boxes)
            assert torch.equal(here.scores, there.scores)
            assert torch.equal(here.labels, there.labels)
            assert (here.masks is None) == (there.masks is None)
            if here.masks is not None and there.masks is not None:
                # Pasted all at once, sums are made in another order: a pixel on the border may fall to the other side.
                assert (here.masks != there.masks).float().mean() < 1e-5


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NANO)
def test_nothing_is_found_in_nothing_and_no_number_is_refused(name: str) -> None:
    model = tiny_model(name).eval()
    images = torch.full((1, 3, 128, 128), torch.nan)
    with pytest.raises(ValueError, match="images holds NaN or infinite values"):
        elsewhere(model, images, [(128, 128)])
    with mock.patch.object(without_waiting, "_WAYS", without_waiting._WAYS._replace(suppress=nothing)):
        (found,), _ = elsewhere(model, torch.randn(1, 3, 128, 128), [(128, 128)])
    assert len(found) == 0
    assert found.masks is None or found.masks.shape == (0, 256, 256)


def nothing(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    return torch.zeros_like(scores, dtype=torch.bool)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NANO)
def test_losses_stay_on_the_device(name: str) -> None:
    model = copy.deepcopy(tiny_model(name)).train()
    criterion = Criterion(model, frozen_stages=0)
    device = Elsewhere()
    device.put_module(criterion)
    boxes = torch.tensor([[10.0, 10, 60, 60], [30, 40, 120, 100]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 1]), "masks": torch.ones(2, 128, 128, dtype=torch.bool)}
    torch.manual_seed(0)
    images = torch.randn(2, 3, 128, 128)
    with device.active():
        losses = criterion(device.put(images), [(128, 128)] * 2, [target] * 2)
        assert all(device.has(loss) for loss in losses.values())


# A constant that loses its device is found.
MUTATIONS: list[tuple[str, Any, str, Callable[..., Any]]] = [
    ("retinanet_nano_fpg", anchors, "level_anchors", lambda real: lambda *args: real(*args[:4], torch.device("cpu"))),
    (
        "mask_rcnn_nano_fpg",
        without_waiting,
        "_per_level",
        lambda real: lambda levels, number: (levels[:, None] == torch.arange(number)).sum(0),
    ),
    (
        "mask_rcnn_nano_fpg",
        postprocess,
        "_readings",
        lambda real: lambda length, start, *rest: real(length, start, *rest) * torch.ones(1, length, 28),
    ),
]


@pytest.mark.parametrize(("name", "module", "function", "mutate"), MUTATIONS, ids=lambda value: str(value)[:20])
def test_a_constant_without_a_device_is_found(
    name: str, module: Any, function: str, mutate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, function, mutate(getattr(module, function)))
    with pytest.raises(MixedDevicesError):
        elsewhere(tiny_model(name).eval(), torch.randn(1, 3, 128, 128), [(128, 128)])


class Devices(TorchDispatchMode):
    """The devices of the tensors that operations give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {one.device.type for one in tree_flatten(result)[0] if isinstance(one, Tensor)}
        return result


@pytest.mark.parametrize("name", fpg_zoo.list_models("*_r50_*"))
def test_the_published_networks_have_no_tensor_on_another_device(name: str) -> None:
    """torch's tensors without values have real devices, whose mixing is an error.

    Nor is there a single number on the CPU, which would keep a network from becoming a CUDA graph.
    """
    with FakeTensorMode():
        with CUDA:
            model = build_detector(fpg_zoo.model_info(name).config).eval()
            images = torch.zeros(2, 3, 640, 640)
        with Devices() as devices, torch.no_grad():
            model.run_layers(images)
        assert devices.seen == {"cuda"}
