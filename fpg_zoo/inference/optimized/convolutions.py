"""Convolutions with their BatchNorm folded in; sums and ReLU are computed in the same pass.

Legend: N images, maps (N, C, H, W) in channels-last order.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.modeling.layers import ConvNorm

CHANNELS_PER_CHUNK = 64  # output channels whose weights are in double precision at a time
_FUSED_DTYPES = (torch.float32, torch.bfloat16)


def to_double(tensor: Tensor) -> Tensor:
    """A copy in double precision, on the CPU, since not every device has that."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def compute_scale_shift(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> tuple[Tensor, Tensor]:
    """The scale and shift that stand for a convolution's bias and the BatchNorm after it, in eval mode.

    Returns:
        Two tensors (out,) in double precision on the CPU. They apply to the convolution's output without its bias.
    """
    zeros = torch.zeros(conv.out_channels, dtype=torch.float64, device="cpu")
    bias = zeros if conv.bias is None else to_double(conv.bias)
    if norm is None:
        return torch.ones_like(bias), bias
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = to_double(norm.weight) / (to_double(norm.running_var) + norm.eps).sqrt()
    return scale, (bias - to_double(norm.running_mean)) * scale + to_double(norm.bias)


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> tuple[Tensor, Tensor]:
    """Weight (out, in, k, k) and bias (out,) of a convolution and the BatchNorm after it, in eval mode; both new."""
    scale, shift = compute_scale_shift(conv, norm)
    weight = conv.weight.detach().clone()
    if norm is not None:
        chunks, scales = torch.split(weight, CHANNELS_PER_CHUNK), torch.split(scale, CHANNELS_PER_CHUNK)
        for chunk, factor in zip(chunks, scales, strict=True):
            chunk.copy_(to_double(chunk) * factor.view(-1, 1, 1, 1))
    return weight, shift.to(conv.weight)


def fold_conv_norms(module: nn.Module) -> None:
    """Fold the BatchNorm of every `ConvNorm` in `module` into its convolution, in place."""
    for child in module.modules():
        if isinstance(child, ConvNorm):
            weight, bias = fold_batch_norm(child.conv, child.norm)
            child.conv.weight, child.conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            child.norm = nn.Identity()  # type: ignore[assignment]


def copy_with_folded_norms(plain: nn.Module) -> nn.Module:
    """A copy in which the BatchNorm of every `ConvNorm` is folded: the form of a part without a fused one."""
    part = copy.deepcopy(plain)
    fold_conv_norms(part)
    return part


class Source(NamedTuple):
    """The plain model's layers that a convolution was folded from.

    Attributes:
        conv: the convolution.
        norms: the BatchNorm after it, or one for each level.
        upsample: whether the map is upsampled by 2 (nearest neighbor) before it.
    """

    conv: nn.Conv2d
    norms: Sequence[nn.BatchNorm2d | None] = (None,)
    upsample: bool = False


class FoldedConvolution(nn.Module):
    """What the folded convolutions share.

    Attributes:
        source: the layers that it stands for, until `release_sources`. Another algorithm starts from their weights,
            which were not yet rounded after folding. Not registered: they are the plain model's.
    """

    source: Source | None = None


def release_sources(model: nn.Module) -> None:
    """Forget the plain model's layers, so that nothing keeps that model in memory."""
    for module in model.modules():
        if isinstance(module, FoldedConvolution):
            module.source = None


class Convolution(FoldedConvolution):
    """A convolution with bias.

    `forward`: (N, in, H, W) to (N, out, H', W'), added to `total` if that is given, then after ReLU with `relu`.
    `total`, (N, out, H', W'), may be written over. On the CPU oneDNN computes the sum and the ReLU in the convolution's
    pass; elsewhere they are steps of their own.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.stride, self.padding, self.groups = stride, padding, groups

    @classmethod
    def of(cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> Convolution:
        """The convolution `conv`, and the BatchNorm after it if there is one."""
        assert not isinstance(conv.padding, str)
        weight, bias = fold_batch_norm(conv, norm)
        folded = cls(weight, bias, stride=conv.stride[0], padding=conv.padding[0], groups=conv.groups)
        folded.source = Source(conv, [norm])
        return folded

    def forward(self, x: Tensor, total: Tensor | None = None, *, relu: bool = False) -> Tensor:
        if _has_fused_kernel(x):
            return self._forward_in_one_pass(x, total, relu)
        return _add_relu_(F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups), total, relu)

    def forward_levels(self, maps: Sequence[Tensor], *, relu: bool = False) -> list[Tensor]:
        """Each level's output."""
        return [self(x, relu=relu) for x in maps]

    def _forward_in_one_pass(self, x: Tensor, total: Tensor | None, relu: bool) -> Tensor:
        geometry = ([self.padding] * 2, [self.stride] * 2, [1, 1], self.groups)
        output: Tensor
        if total is None:
            output = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *geometry, "relu" if relu else "none", [], ""
            )
        else:
            output = torch.ops.mkldnn._convolution_pointwise_.binary(
                total, x, self.weight, self.bias, *geometry, "add", 1.0, "relu" if relu else None, [], ""
            )
        return output


class LevelConvolution(FoldedConvolution):
    """A convolution that all levels share, with a BatchNorm for each level: folded, they are one for each level."""

    def __init__(self, convs: Sequence[Convolution]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)

    @classmethod
    def of(cls, conv: nn.Conv2d, norms: Sequence[nn.BatchNorm2d]) -> LevelConvolution:
        """The convolution `conv`, and a BatchNorm after it for each level."""
        folded = cls([Convolution.of(conv, norm) for norm in norms])
        release_sources(folded)  # its parts are not to be looked at by themselves
        folded.source = Source(conv, norms)
        return folded

    def forward_levels(self, maps: Sequence[Tensor], *, relu: bool = False) -> list[Tensor]:
        """Each level's map (N, in, H_l, W_l) to (N, out, H_l, W_l)."""
        return [conv(x, relu=relu) for conv, x in zip(self.convs, maps, strict=True)]


class UpsampleConvolution(FoldedConvolution):
    """Nearest-neighbor upsampling by 2 and a 3x3 convolution after it, as one transposed convolution of stride 2.

    Each pixel of the upsampled map is one of the coarse map. Those of the 3x3 taps that fall on the same coarse pixel
    are summed beforehand: 4x4 taps for 2x2 pixels, 16 multiplications where there were 36. Zeros beyond the border
    stay zeros.

    `forward`: (N, in, H, W) to (N, out, 2H, 2W), added to `total` and after ReLU as of `Convolution`.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Args: weight (out, in, 3, 3) and bias (out,) of the 3x3 convolution."""
        super().__init__()
        taps = to_double(weight)
        for dim in (2, 3):
            first, second, third = taps.unbind(dim)
            taps = torch.stack((third, second + third, first + second, first), dim)
        transposed = taps.transpose(0, 1).to(weight)
        self.register_buffer("weight", transposed.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> UpsampleConvolution:
        """The 3x3 convolution `conv` on the upsampled map, and the BatchNorm after it if there is one."""
        folded = cls(*fold_batch_norm(conv, norm))
        folded.source = Source(conv, [norm], upsample=True)
        return folded

    def forward(self, x: Tensor, total: Tensor | None = None, *, relu: bool = False) -> Tensor:
        return _add_relu_(F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1), total, relu)


def _add_relu_(output: Tensor, total: Tensor | None, relu: bool) -> Tensor:
    """The sum with `total`, which is written over, then ReLU."""
    if total is not None:
        output = total.add_(output)
    return output.relu_() if relu else output


def _has_fused_kernel(x: Tensor) -> bool:
    """Whether a convolution of `x` can add and apply ReLU in the same pass."""
    return (
        x.device.type == "cpu"
        and x.dtype in _FUSED_DTYPES
        and bool(torch.backends.mkldnn.enabled)
        and _has_onednn_kernels()
        and not torch.compiler.is_compiling()  # which fuses by itself
    )


@functools.cache
def _has_onednn_kernels() -> bool:
    """Whether this build of torch has oneDNN's convolutions with sum and ReLU."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
