"""Building blocks shared by necks and heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.errors import ConfigError


class ConvNorm(nn.Module):
    """A convolution, "same" padding, then BatchNorm; (N, in, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(x))
        return normed


def check_levels(start: int, levels: int, stages: int) -> None:
    """Refuse a pyramid of `levels` from backbone stage `start` of `stages` that leaves stages over.

    Raises:
        ConfigError: there is no such stage, or there are more stages from it than levels.
    """
    if not 0 <= start < stages or levels < stages - start:
        raise ConfigError(
            f"a pyramid of {levels} levels from backbone stage {start} of {stages}: choose a stage that exists and at "
            "least as many levels as there are stages from it"
        )


def upsample2(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 2H, 2W), nearest neighbor."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def subsample2(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2)): every second pixel of every second row."""
    return F.max_pool2d(x, kernel_size=1, stride=2)


def init_xavier(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every convolution below `module`, as is usual for pyramids."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def init_kaiming(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Kaiming-normal weights that keep the variance of gradients, and a zero bias (He et al., arXiv 1502.01852)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_normal(layer: nn.Conv2d | nn.Linear, std: float, *, bias: float = 0.0) -> None:
    """Normal weights of standard deviation `std` and a constant bias."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)
