"""Convolutions with fewer multiplications against the plain sum in double precision, and who takes them."""

from __future__ import annotations

import copy
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fpg_zoo
from fpg_zoo.inference.optimized.convolutions import Source
from fpg_zoo.inference.optimized.winograd import WinogradConvolution, is_eligible, toom_cook

pytestmark = pytest.mark.usefixtures("one_thread")


def _random(channels: int = 5, outputs: int = 7, *, bias: bool = True) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(outputs).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 1.5)
    return nn.Conv2d(channels, outputs, 3, padding=1, bias=bias), norm


def _expected(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, x: Tensor, *, upsample: bool) -> Tensor:
    x = F.interpolate(x, scale_factor=2, mode="nearest") if upsample else x
    bias = None if conv.bias is None else conv.bias.double()
    output = F.conv2d(x.double(), conv.weight.double(), bias, padding=1)
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        output = F.batch_norm(
            output, norm.running_mean.double(), norm.running_var.double(), norm.weight.double(), norm.bias.double()
        )
    return output


def _apart(expected: Tensor, found: Tensor) -> float:
    return float((expected - found.double()).norm() / expected.norm())


def test_matrices_are_those_of_the_paper() -> None:
    # F(2, 3) of Lavin and Gray's equation 9. The first rows of B and G have the other sign here, and so have the last
    # row of B and the last column of A.
    points = [Fraction(0), Fraction(1), Fraction(-1)]
    to_outputs, of_filter, of_inputs = toom_cook(points, taps=3)
    assert to_outputs.tolist() == [[1, 1, 1, 0], [0, 1, -1, 1]]
    assert of_filter.tolist() == [[-1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    assert of_inputs.tolist() == [[-1, 0, 1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]


# Smaller than a tile, whole tiles, tiles that reach beyond the map, more tiles than are taken at a time.
SIZES = [(1, 1), (3, 2), (4, 4), (8, 12), (13, 7), (20, 171), (4, 700)]
# The last: images that are computed some at a time, as the RoIs of a mask head.
CASES = [*((images, size) for images in (1, 3) for size in SIZES), (33, (14, 14))]


@torch.no_grad()
@pytest.mark.parametrize(("images", "size"), CASES)
@pytest.mark.parametrize("upsample", [False, True], ids=["map", "upsampled"])
def test_it_is_the_convolution(upsample: bool, images: int, size: tuple[int, int]) -> None:
    conv, norm = _random()
    x = torch.randn(images, 5, *size).contiguous(memory_format=torch.channels_last)
    output = WinogradConvolution.of(conv, [norm], upsample=upsample)
    expected = _expected(conv, norm, x, upsample=upsample)
    found = output(x)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert _apart(expected, found) < 2e-6
    total = torch.randn(expected.shape)
    assert _apart((expected + total).relu(), output(x, total.clone(), relu=True)) < 2e-6


@torch.no_grad()
def test_maps_in_any_order_of_memory() -> None:
    conv, _ = _random(bias=False)
    x = torch.randn(2, 5, 9, 11)
    output = WinogradConvolution.of(conv)
    assert _apart(_expected(conv, None, x, upsample=False), output(x)) < 2e-6


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
    each = WinogradConvolution.of(conv, norms).forward_levels(maps, relu=True)
    alike = WinogradConvolution.of(conv, [norm]).forward_levels(maps)
    for x, own, with_norm, without in zip(maps, norms, each, alike, strict=True):
        assert _apart(_expected(conv, own, x, upsample=False).relu(), with_norm) < 2e-6
        assert _apart(_expected(conv, norm, x, upsample=False), without) < 2e-6


@torch.no_grad()
@pytest.mark.parametrize("upsample", [False, True], ids=["map", "upsampled"])
def test_rounding_errors_are_small_with_many_channels(upsample: bool) -> None:
    conv, _ = _random(256, 256)
    x = torch.randn(1, 256, 24, 24).relu()
    output = WinogradConvolution.of(conv, upsample=upsample)
    assert _apart(_expected(conv, None, x, upsample=upsample), output(x)) < 2e-6


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
    assert not is_eligible(Source(conv))


@pytest.mark.slow
def test_who_takes_it() -> None:
    assert is_eligible(Source(nn.Conv2d(128, 128, 3, padding=1)))
    plain = fpg_zoo.create_model("retinanet_r50_fpn").eval()

    def count(model: nn.Module) -> int:
        return sum(isinstance(module, WinogradConvolution) for module in model.modules())

    # In float32 on the CPU: 3 and 5 of the backbone's second and third stage, 2 of the pyramid, 4 of each of two
    # towers, and the layer of classes. That of boxes has 36 channels.
    assert count(fpg_zoo.optimize(plain)) == 3 + 5 + 2 + 4 * 2 + 1
    assert count(fpg_zoo.optimize(plain, dtype=torch.bfloat16)) == 0
    assert count(fpg_zoo.optimize(plain, compile=True)) == 0
    assert count(fpg_zoo.optimize(copy.deepcopy(plain).to(torch.bfloat16), dtype=torch.float32)) == 0
    with torch.device("meta"):  # the default for new tensors is not for these
        assert count(fpg_zoo.optimize(plain)) > 0


PRECISION = """
import torch
from fpg_zoo.inference.optimized.winograd import has_full_precision_matmul
print(has_full_precision_matmul(torch.device("cpu"), torch.float32))
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # of another device
print(has_full_precision_matmul(torch.device("cpu"), torch.float32))
"""
LOWER = """
import torch
from fpg_zoo.inference.optimized.winograd import has_full_precision_matmul
torch.set_float32_matmul_precision("medium")  # whose few digits these sums cannot do with
print(has_full_precision_matmul(torch.device("cpu"), torch.float32))
"""


@pytest.mark.parametrize(("script", "expected"), [(PRECISION, ["True", "True"]), (LOWER, ["False"])])
@pytest.mark.slow
def test_the_precision_of_products_decides(script: str, expected: list[str]) -> None:
    # In a process of its own: one way of setting it forbids the other.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == expected, done.stderr


def test_a_form_is_neither_moved_nor_converted() -> None:
    form = fpg_zoo.optimize(fpg_zoo.create_model("retinanet_r50_fpn").eval())
    assert form.to(torch.float32).to("cpu") is form
    with pytest.raises(ValueError, match=r"cannot be converted to torch.bfloat16 on cpu: use the one it was made of"):
        form.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"cannot be converted to torch.float32 on meta"):
        form.to("meta")


@pytest.mark.slow
def test_a_grid_upsamples_so_at_its_finest_level_alone() -> None:
    form = fpg_zoo.optimize(fpg_zoo.create_model("faster_rcnn_r50_fpg").eval())
    pathways = form.neck.get_submodule("pathways")
    # Of nine pathways, five reach the finest level, which each takes from the next.
    assert sum(isinstance(module, WinogradConvolution) for module in pathways.modules()) == 5
    narrow = fpg_zoo.optimize(fpg_zoo.create_model("faster_rcnn_r50_fpg_chn128").eval())
    assert not any(
        isinstance(module, WinogradConvolution) for module in narrow.neck.get_submodule("pathways").modules()
    )
    outputs = form.neck.get_submodule("outputs").children()
    assert [isinstance(module, WinogradConvolution) for module in outputs] == [True, True, False, False, False]
