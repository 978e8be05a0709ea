"""The inference form against the plain one: the same pyramid, the same detections, at any size and batch."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref
from collections.abc import Sequence
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import PUBLISHED, golden_model
from elsewhere import Elsewhere
from tiny_models import tiny_model
from torch import nn

import fpg_zoo
from fpg_zoo.config import (
    DetectorConfig,
    FPGConfig,
    FPGGrid,
    FPNConfig,
    MaskHeadConfig,
    NASFPNConfig,
    ResNetConfig,
    triangle_grid,
)
from fpg_zoo.inference.optimized.convolutions import Convolution, UpsampleConvolution
from fpg_zoo.modeling.build import build_detector
from fpg_zoo.modeling.detectors import Detector, RetinaNet, TwoStageDetector
from fpg_zoo.modeling.heads import roi_align
from fpg_zoo.modeling.layers import ConvNorm
from fpg_zoo.modeling.necks.fpn import FPN

NANO = ("faster_rcnn_nano_fpg", "mask_rcnn_nano_fpg", "retinanet_nano_fpg")
pytestmark = pytest.mark.usefixtures("one_thread")


def _apart(x: torch.Tensor, y: torch.Tensor) -> float:
    """The relative L2 distance of y from x."""
    return float((x - y.float()).norm() / x.norm())


@torch.no_grad()
def _pyramid(model: Detector, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    maps: tuple[torch.Tensor, ...] = model.neck(model.backbone(images.to(model.dtype)))
    return maps


@torch.no_grad()
def _heads(model: Detector, pyramid: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """What the heads make of a pyramid, of three RoIs in each image where they look at RoIs."""
    maps = [level.contiguous(memory_format=torch.channels_last) for level in pyramid]
    if isinstance(model, RetinaNet):
        return [x for outputs in model.head(maps) for x in outputs]
    assert isinstance(model, TwoStageDetector)
    corners = torch.tensor([[0.0, 0.0, 30.0, 50.0], [10.0, 20.0, 120.0, 90.0], [64.0, 3.0, 128.0, 128.0]])
    regions = torch.cat([torch.cat((torch.full((3, 1), float(index)), corners), 1) for index in range(len(maps[0]))])
    made = [x for outputs in model.rpn(maps) for x in outputs] + list(model.box_head(maps, regions))
    return made if model.mask_head is None else [*made, model.mask_head(maps, regions)]


def _matched(expected: fpg_zoo.Detections, found: fpg_zoo.Detections) -> int:
    """How many of the expected ones are found: of the same class, box to 0.05 pixels, score to 1e-4."""
    near = (expected.boxes[:, None] - found.boxes[None]).abs().amax(-1) < 0.05
    same = (expected.labels[:, None] == found.labels[None]) & (
        (expected.scores[:, None] - found.scores[None]).abs() < 1e-4
    )
    return int((near & same).any(1).sum())


def _random_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 1.5)
    return norm


@torch.no_grad()
def test_folding_and_upsampling_are_identities() -> None:
    torch.manual_seed(0)
    conv, norm, x = nn.Conv2d(6, 8, 3, padding=1), _random_norm(8), torch.randn(2, 6, 5, 7)
    assert _apart(norm(conv(x)), Convolution.of(conv, norm)(x)) < 1e-6
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    assert _apart(norm(conv(large)), UpsampleConvolution.of(conv, norm)(x)) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False])
def test_a_sum_is_written_over(fused: bool) -> None:
    torch.manual_seed(0)
    x, total = torch.randn(1, 4, 6, 6), torch.randn(1, 8, 6, 6)
    conv = nn.Conv2d(4, 8, 1)
    expected = F.relu(total + conv(x))
    with torch.backends.mkldnn.flags(enabled=fused):
        over = Convolution.of(conv)(x, total, relu=True)
    assert over.data_ptr() == total.data_ptr()
    assert _apart(expected, over) < 1e-6


@pytest.mark.parametrize("size", [(128, 128), (128, 384), (256, 128)])
@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("name", NANO)
@pytest.mark.slow
def test_the_pyramid_and_the_detections_are_the_plain_forms(name: str, batch: int, size: tuple[int, int]) -> None:
    plain = tiny_model(name)
    made = fpg_zoo.optimize(plain)
    torch.manual_seed(batch)
    images, sizes = torch.randn(batch, 3, *size), [(size[0] - 3 * index, size[1] - index) for index in range(batch)]
    for expected, found in zip(_pyramid(plain, images), _pyramid(made, images), strict=True):
        assert _apart(expected, found) < 1e-5
    for before, after in zip(plain.detect(images, sizes), made.detect(images, sizes), strict=True):
        assert len(before) == len(after) > 50
        assert _matched(before, after) >= 0.99 * len(before)
        if before.masks is not None:
            assert after.masks is not None
            assert (before.masks ^ after.masks).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize("name", NANO)
def test_in_bfloat16_the_pyramid_is_near(name: str, dtype: torch.dtype) -> None:
    plain = tiny_model(name)
    made = fpg_zoo.optimize(plain, dtype=dtype)
    assert made.dtype == dtype
    images = torch.randn(1, 3, 128, 256, generator=torch.Generator().manual_seed(0))
    for expected, found in zip(_pyramid(plain, images), _pyramid(made, images), strict=True):
        assert found.dtype == dtype
        assert _apart(expected, found) < 2e-2
    (found,) = made.detect(images.to(dtype), [(128, 256)])
    assert found.boxes.dtype == found.scores.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in NANO), *((name, torch.bfloat16) for name in (*NANO, "retinanet_r50_nasfpn"))],
)
def test_on_a_gpu_the_form_detects_the_same_channels_last(name: str, dtype: torch.dtype) -> None:
    """The second device is computed by the CPU, without its kernels that add in a convolution's pass."""
    plain = copy.deepcopy(tiny_model(name))
    torch.manual_seed(0)
    images, sizes, device = torch.randn(2, 3, 128, 128), [(128, 100), (96, 128)], Elsewhere()
    with mock.patch.object(roi_align, "_aligned", roi_align.by_torchvision):
        expected = plain.detect(images, sizes)
    device.put_module(plain)
    outputs: list[torch.Tensor] = []
    with device.active():
        made = fpg_zoo.optimize(plain, dtype=dtype)
        for module in made.modules():
            if isinstance(module, (Convolution, UpsampleConvolution, nn.Conv2d)):
                module.register_forward_hook(lambda module, args, output: outputs.append(output))
        found = made.detect(device.put(images), sizes)
    assert len(outputs) > 40
    # Of one pixel, or one channel, the order cannot be told from another.
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in outputs)
    assert {x.dtype for x in outputs} == {dtype}
    for before, after in zip(expected, found, strict=True):
        assert device.has(after.boxes)
        assert after.boxes.dtype == after.scores.dtype == torch.float32
        if dtype == torch.float32:
            assert _matched(before, after) >= 0.97 * len(before) > 40


GRIDS = {
    "identities": FPGGrid(directions=("up", "down"), skipped=((), ()), lateral="identity", skip="identity"),
    "both across": FPGGrid(directions=("down", "up"), skipped=((), (0,)), across_from_finer=True, skip=None),
    "only along": FPGGrid(directions=("down",), skipped=((4,),), lateral=None, skip=None, across_from_coarser=False),
}


@pytest.mark.parametrize(
    "neck",
    [
        *(FPGConfig(start_level=0, out_channels=16, grid=grid) for grid in GRIDS.values()),
        FPNConfig(start_level=0, out_channels=16),
    ],
    ids=[*GRIDS, "FPN"],
)
def test_any_neck_of_ones_own(neck: FPGConfig | FPNConfig) -> None:
    config = dataclasses.replace(fpg_zoo.model_info(NANO[0]).config, neck=neck)
    _check_random(build_detector(config))


@pytest.mark.parametrize(
    "neck",
    [FPNConfig(start_level=1, out_channels=16, extra_levels="conv"), NASFPNConfig(out_channels=16, stacks=2)],
    ids=["FPN", "NAS-FPN"],
)
def test_a_dense_detectors_other_necks(neck: FPNConfig | NASFPNConfig) -> None:
    _check_random(build_detector(dataclasses.replace(fpg_zoo.model_info(NANO[2]).config, neck=neck)))


TWO_STAGE, DENSE = (fpg_zoo.model_info(name).config for name in NANO[1:])
WIDE = ResNetConfig(block="basic", depths=(1, 2, 2, 1), width=64)  # 64, 128, 256 and 512 channels
GRID = triangle_grid(pathways=4)
WINOGRAD = {
    "Mask R-CNN": dataclasses.replace(
        TWO_STAGE,
        backbone=WIDE,
        neck=FPGConfig(start_level=0, out_channels=256, grid=GRID),
        rpn=dataclasses.replace(TWO_STAGE.rpn, width=128),
        mask=MaskHeadConfig(width=128, depth=2),
    ),
    "FPN": dataclasses.replace(TWO_STAGE, neck=FPNConfig(start_level=0, out_channels=128)),
    "RetinaNet": dataclasses.replace(
        DENSE,
        backbone=WIDE,
        neck=FPGConfig(start_level=1, out_channels=128, grid=GRID, extra_levels="conv"),
        head=dataclasses.replace(DENSE.head, width=128),
    ),
    "NAS-FPN": dataclasses.replace(DENSE, neck=NASFPNConfig(out_channels=128, stacks=2)),
}


@pytest.mark.parametrize("config", WINOGRAD.values(), ids=WINOGRAD)
def test_wide_ones_with_fewer_multiplications(config: DetectorConfig) -> None:
    _check_random(build_detector(config))


def _check_random(plain: Detector) -> None:
    """With norms that are no identities."""
    torch.manual_seed(0)
    for module in plain.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.load_state_dict(_random_norm(module.num_features).state_dict())
    images = torch.randn(2, 3, 128, 128)
    before = copy.deepcopy(plain.state_dict())
    made = fpg_zoo.optimize(plain)
    with torch.no_grad():
        for expected, found in zip(plain.backbone(images), made.backbone(images), strict=True):
            assert _apart(expected, found) < 1e-5
    pyramid = _pyramid(plain, images)
    for expected, found in zip(pyramid, _pyramid(made, images), strict=True):
        assert _apart(expected, found) < 1e-5
    for expected, found in zip(_heads(plain, pyramid), _heads(made, pyramid), strict=True):
        assert _apart(expected, found) < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_all_ten_are_the_plain_forms(name: str) -> None:
    plain = golden_model(name)
    made = fpg_zoo.optimize(plain)
    images = torch.randn(1, 3, 256, 384, generator=torch.Generator().manual_seed(0))
    for expected, found in zip(_pyramid(plain, images), _pyramid(made, images), strict=True):
        assert _apart(expected, found) < 1e-5
    (before,), (after,) = plain.detect(images, [(250, 380)]), made.detect(images, [(250, 380)])
    assert _matched(before, after) >= 0.99 * len(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_r50_nasfpn", "retinanet_r50_fpg_chn128", "faster_rcnn_r50_fpn"])
@pytest.mark.parametrize("size", [(64, 1200), (1200, 64), (32, 32)])
def test_on_odd_sizes_the_form_is_as_near_to_double_precision_as_the_plain_model(
    name: str, size: tuple[int, int]
) -> None:
    """Where two scores nearly tie, either rounding may choose the other box: so the measure is double precision."""
    plain = golden_model(name)
    divisor = plain.config.preprocess.pad_divisor
    images = torch.zeros(1, 3, *(-(-side // divisor) * divisor for side in size))
    images[..., : size[0], : size[1]] = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    exact = copy.deepcopy(plain).double().detect(images.double(), [size])[0]
    form = fpg_zoo.optimize(plain)
    for before, after in zip(_pyramid(plain, images), _pyramid(form, images), strict=True):
        assert _apart(before, after) < 1e-5
    rounded = _matched(exact, plain.detect(images, [size])[0])
    assert _matched(exact, form.detect(images, [size])[0]) >= min(rounded, len(exact)) - 3


def test_pictures_go_through_a_predictor() -> None:
    scene = fpg_zoo.Predictor(tiny_model(NANO[1]))
    picture = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (before,) = scene([picture])
    (after,) = fpg_zoo.Predictor(fpg_zoo.optimize(tiny_model(NANO[1])))([picture])
    assert _matched(before, after) >= 0.99 * len(before) > 0


class PooledNeck(nn.Module):
    """A neck of one's own: each level is the one before at half the size."""

    def __init__(self, config: FPNConfig, channels: Sequence[int]) -> None:
        super().__init__()
        self.lateral = ConvNorm(channels[1], config.out_channels, 3)
        self.levels = config.levels

    def forward(self, stages: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        maps = [self.lateral(stages[1])]
        while len(maps) < self.levels:
            maps.append(F.max_pool2d(maps[-1], 2))
        return tuple(maps)


class NegatedFPN(FPN):
    """A subclass of a neck with a fused form, which does not compute the same."""

    def forward(self, stages: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(-x for x in super().forward(stages))


@pytest.mark.parametrize("neck_class", [PooledNeck, NegatedFPN])
def test_a_neck_without_a_fused_form_stays_plain(neck_class: type[nn.Module]) -> None:
    plain = build_detector(DENSE)
    config = FPNConfig(start_level=1, out_channels=DENSE.neck.out_channels, extra_levels="conv")
    plain.neck = neck_class(config, plain.backbone.channels)
    _check_random(plain)
    form = fpg_zoo.optimize(plain)
    assert type(form.neck) is neck_class
    assert form.neck is not plain.neck
    assert not any(isinstance(module, nn.BatchNorm2d) for module in form.neck.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in plain.neck.modules())
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    (expected,), (output,) = (model.detect(images, [(128, 128)]) for model in (plain, form))
    assert _matched(expected, output) >= 0.99 * len(expected)


def test_a_detector_class_without_a_form_is_refused_by_name() -> None:
    class Unknown(RetinaNet):
        pass

    plain = build_detector(DENSE)
    unknown = Unknown(DENSE, plain.backbone, plain.neck, plain.head, "unknown").eval()
    with pytest.raises(TypeError, match="Unknown has no inference form"):
        fpg_zoo.optimize(unknown)


def test_a_form_does_not_keep_the_plain_model_in_memory() -> None:
    plain = build_detector(WINOGRAD["NAS-FPN"]).eval()
    layers = [weakref.ref(module) for module in plain.modules()]
    form = fpg_zoo.optimize(plain)
    del plain
    gc.collect()
    assert form.neck is not None
    assert not any(layer() for layer in layers)


def test_what_an_optimized_form_cannot_is_said() -> None:
    made = fpg_zoo.optimize(tiny_model(NANO[2]))
    assert made.eval() is made
    assert not made.training
    with pytest.raises(ValueError, match="cannot be trained: use the one it was made of"):
        made.train()
    with pytest.raises(ValueError, match="cannot be saved to out"):
        made.save_pretrained("out")
    with pytest.raises(ValueError, match="already optimized"):
        fpg_zoo.optimize(made)
    with pytest.raises(ValueError, match=r"dtype=torch.int8: the network computes in one of"):
        fpg_zoo.optimize(tiny_model(NANO[2]), dtype=torch.int8)
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        fpg_zoo.optimize(fpg_zoo.create_model(NANO[2]).train())


@pytest.mark.parametrize("name", NANO)
def test_the_form_has_weights_of_its_own_and_takes_no_random_number(name: str) -> None:
    plain = tiny_model(name)
    before = torch.get_rng_state()
    made = fpg_zoo.optimize(plain)
    assert torch.equal(torch.get_rng_state(), before)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in plain.state_dict().values()}
    assert not theirs & {tensor.untyped_storage().data_ptr() for tensor in made.state_dict().values()}
