"""Convolutions with their BatchNorm folded in, that add to a map at hand and apply ReLU in the same pass.

Legend: N images, maps (N, C, H, W) in channels-last order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OUTPUTS_AT_ONCE = 64  # whose weights are in double precision at a time
_FUSED_DTYPES = (torch.float32, torch.bfloat16)


def scale_and_shift(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> tuple[Tensor, Tensor]:
    """What a convolution without its bias is multiplied by, and what is added then, for its bias and the BatchNorm
    after it, in eval mode; both (out,) in double precision on the CPU."""
    none = torch.zeros(conv.out_channels, dtype=torch.float64, device="cpu")
    bias = none if conv.bias is None else in_double(conv.bias)
    if norm is None:
        return torch.ones_like(bias), bias
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = in_double(norm.weight) / (in_double(norm.running_var) + norm.eps).sqrt()
    return scale, (bias - in_double(norm.running_mean)) * scale + in_double(norm.bias)


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> tuple[Tensor, Tensor]:
    """Weight (out, in, k, k) and bias (out,) of a convolution and the BatchNorm after it, in eval mode; both new."""
    scale, shift = scale_and_shift(conv, norm)
    weight = conv.weight.detach().clone()
    if norm is not None:
        for part, factors in zip(
            torch.split(weight, OUTPUTS_AT_ONCE), torch.split(scale, OUTPUTS_AT_ONCE), strict=True
        ):
            part.copy_(in_double(part) * factors.view(-1, 1, 1, 1))
    return weight, shift.to(conv.weight)


def in_double(tensor: Tensor) -> Tensor:
    """A copy in double precision, on the CPU, since not every device has that."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


class Convolution(nn.Module):
    """A convolution with bias; `forward` gives it, added to `total` (N, out, H', W') if that is given, after ReLU if
    wanted.

    `total` may be written over. One pass over the result, where the backend can: on the CPU oneDNN takes the sum
    and the ReLU along; elsewhere they are steps of their own.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.stride, self.padding = stride, padding

    @classmethod
    def of(cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> Convolution:
        """The convolution `conv`, and the BatchNorm after it if there is one."""
        assert not isinstance(conv.padding, str)
        return cls(*folded(conv, norm), stride=conv.stride[0], padding=conv.padding[0])

    def forward(self, x: Tensor, total: Tensor | None = None, *, relu: bool = False) -> Tensor:
        if _takes_more_along(x):
            return self._in_one_pass(x, total, relu)
        made = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if total is not None:
            made = total.add_(made)
        return made.relu_() if relu else made

    def on_levels(self, maps: Sequence[Tensor], *, relu: bool = False) -> list[Tensor]:
        """Each level's output."""
        return [self(x, relu=relu) for x in maps]

    def _in_one_pass(self, x: Tensor, total: Tensor | None, relu: bool) -> Tensor:
        shape = ([self.padding] * 2, [self.stride] * 2, [1, 1], 1)
        made: Tensor
        if total is None:
            made = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *shape, "relu" if relu else "none", [], ""
            )
        else:
            made = torch.ops.mkldnn._convolution_pointwise_.binary(
                total, x, self.weight, self.bias, *shape, "add", 1.0, "relu" if relu else None, [], ""
            )
        return made


class EnlargedConvolution(nn.Module):
    """Nearest-neighbour enlargement by 2 and a 3x3 convolution after it, as one transposed convolution of stride 2.

    Each pixel of the enlarged map is one of the coarse map, so that of the 3x3 taps those that fall on the same coarse
    pixel can be summed beforehand: 4x4 taps for 2x2 pixels, 16 multiplications where there were 36. Zeros beyond the
    border stay zeros.

    `forward`: (N, in, H, W) to (N, out, 2H, 2W).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Of the 3x3 convolution's weight (out, in, 3, 3) and bias (out,)."""
        super().__init__()
        taps = in_double(weight)
        for dim in (2, 3):
            first, second, third = taps.unbind(dim)
            taps = torch.stack((third, second + third, first + second, first), dim)
        transposed = taps.transpose(0, 1).to(weight)
        self.register_buffer("weight", transposed.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


def _takes_more_along(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in _FUSED_DTYPES
        and bool(torch.backends.mkldnn.enabled)
        and _has_fused_kernels()
        and not torch.compiler.is_compiling()  # which fuses by itself
    )


@functools.cache
def _has_fused_kernels() -> bool:
    """Whether this build of torch has oneDNN's convolutions with more in the same pass."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
