"""Convolutions with fewer multiplications against the plain sum in double precision, and who takes them."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fpg_zoo
from fpg_zoo.optimized.convolutions import Convolution
from fpg_zoo.optimized.winograd import WinogradConvolution, pays, toom_cook

pytestmark = pytest.mark.usefixtures("one_thread")


def _random(channels: int = 5, outputs: int = 7, *, bias: bool = True) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(outputs).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 1.5)
    return nn.Conv2d(channels, outputs, 3, padding=1, bias=bias), norm


def _expected(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, x: Tensor, *, enlarged: bool) -> Tensor:
    x = F.interpolate(x, scale_factor=2, mode="nearest") if enlarged else x
    bias = None if conv.bias is None else conv.bias.double()
    made = F.conv2d(x.double(), conv.weight.double(), bias, padding=1)
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        made = F.batch_norm(
            made, norm.running_mean.double(), norm.running_var.double(), norm.weight.double(), norm.bias.double()
        )
    return made


def _apart(expected: Tensor, found: Tensor) -> float:
    return float((expected - found.double()).norm() / expected.norm())


def test_matrices_are_those_of_the_paper() -> None:
    # F(2, 3) of Lavin and Gray's equation 9, of which the first and the last row of B have the other sign here and with
    # them those of G and the last column of A.
    points = [Fraction(0), Fraction(1), Fraction(-1)]
    to_outputs, of_filter, of_inputs = toom_cook(points, taps=3)
    assert to_outputs.tolist() == [[1, 1, 1, 0], [0, 1, -1, 1]]
    assert of_filter.tolist() == [[-1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    assert of_inputs.tolist() == [[-1, 0, 1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]


# Smaller than a tile, whole tiles, tiles that reach beyond the map, more tiles than are taken at a time.
SIZES = [(1, 1), (3, 2), (4, 4), (8, 12), (13, 7), (20, 171), (4, 700)]


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("enlarged", [False, True], ids=["map", "enlarged"])
def test_it_is_the_convolution(enlarged: bool, size: tuple[int, int], images: int) -> None:
    conv, norm = _random()
    x = torch.randn(images, 5, *size).contiguous(memory_format=torch.channels_last)
    made = WinogradConvolution.of(conv, [norm], enlarged=enlarged)
    expected = _expected(conv, norm, x, enlarged=enlarged)
    found = made(x)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert _apart(expected, found) < 2e-6
    total = torch.randn(expected.shape)
    before = total.clone()
    assert _apart((expected + total).relu(), made(x, total, relu=True)) < 2e-6
    assert torch.equal(total, before)


@torch.no_grad()
def test_maps_in_any_order_of_memory() -> None:
    conv, _ = _random(bias=False)
    x = torch.randn(2, 5, 9, 11)
    made = WinogradConvolution.of(conv)
    assert _apart(_expected(conv, None, x, enlarged=False), made(x)) < 2e-6


@torch.no_grad()
def test_no_image_gives_no_output() -> None:
    conv, norm = _random()
    assert WinogradConvolution.of(conv, [norm])(torch.empty(0, 5, 14, 14)).shape == (0, 7, 14, 14)


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 3])
def test_levels_go_together_each_with_its_norm(images: int) -> None:
    conv, norm = _random()
    maps = [torch.randn(images, 5, *size) for size in ((40, 171), (20, 30), (5, 7), (1, 1))]
    norms = [norm, None, norm, None]
    each = WinogradConvolution.of(conv, norms).on_levels(maps, relu=True)
    alike = WinogradConvolution.of(conv, [norm]).on_levels(maps)
    for x, own, with_norm, without in zip(maps, norms, each, alike, strict=True):
        assert _apart(_expected(conv, own, x, enlarged=False).relu(), with_norm) < 2e-6
        assert _apart(_expected(conv, norm, x, enlarged=False), without) < 2e-6


@torch.no_grad()
@pytest.mark.parametrize("enlarged", [False, True], ids=["map", "enlarged"])
def test_rounding_errors_are_small_with_many_channels(enlarged: bool) -> None:
    conv, _ = _random(256, 256)
    x = torch.randn(1, 256, 24, 24).relu()
    made = WinogradConvolution.of(conv, enlarged=enlarged)
    assert _apart(_expected(conv, None, x, enlarged=enlarged), made(x)) < 2e-6


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(128, 128, 1, padding=1),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(256, 256, 3, padding=1, groups=2),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.Conv2d(128, 36, 3, padding=1),
    ],
)
def test_others_stay_plain(conv: nn.Conv2d) -> None:
    assert not pays(conv)


def test_who_takes_it() -> None:
    assert pays(nn.Conv2d(128, 128, 3, padding=1))
    plain = fpg_zoo.create_model("retinanet_r50_fpn").eval()

    def quick(model: nn.Module) -> int:
        return sum(isinstance(module, WinogradConvolution) for module in model.modules())

    # In float32 on the CPU: 3 and 5 of the backbone's second and third stage, 2 of the pyramid, 4 of each of two
    # towers, and the layer of classes. That of boxes has 36 channels.
    assert quick(fpg_zoo.optimize(plain)) == 3 + 5 + 2 + 4 * 2 + 1
    assert quick(fpg_zoo.optimize(plain, dtype=torch.bfloat16)) == 0
    assert quick(fpg_zoo.optimize(plain, compile=True)) == 0
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")  # whose few digits these sums cannot do with
        assert quick(fpg_zoo.optimize(plain)) == 0
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_grid_enlarges_so_at_its_finest_level_alone() -> None:
    form = fpg_zoo.optimize(fpg_zoo.create_model("faster_rcnn_r50_fpg").eval())
    pathways = form.neck.get_submodule("pathways")
    # Of nine pathways, five reach the finest level, which each takes from the next.
    assert sum(isinstance(module, WinogradConvolution) for module in pathways.modules()) == 5
    narrow = fpg_zoo.optimize(fpg_zoo.create_model("faster_rcnn_r50_fpg_chn128").eval())
    assert not any(
        isinstance(module, WinogradConvolution) for module in narrow.neck.get_submodule("pathways").modules()
    )
    assert all(isinstance(module, Convolution | WinogradConvolution) for module in form.neck.get_submodule("outputs"))
