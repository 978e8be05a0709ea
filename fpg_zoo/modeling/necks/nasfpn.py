"""NAS-FPN (Ghiasi, Lin, Pang, Le; arXiv 1904.07392): the discovered cell of seven merges over P3..P7."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.checkpoints import mmdet_names
from fpg_zoo.config import NASFPNConfig
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.layers import ConvNorm, init_xavier
from fpg_zoo.modeling.parts import Neck

_STAGES = 3  # C3..C5
EXTRA_LEVELS = 2  # P6 and P7, beyond the backbone's C3..C5


def _resize_like(x: Tensor, like: Tensor) -> Tensor:
    """`x` on the size of `like`: nearest neighbor up, max-pooling down by a whole ratio."""
    size, out_size = tuple(x.shape[-2:]), tuple(like.shape[-2:])
    if size == out_size:
        return x
    if size[0] < out_size[0]:
        return F.interpolate(x, size=out_size, mode="nearest")
    if size[0] % out_size[0] or size[1] % out_size[1]:
        raise ValueError(
            f"a {size[0]}x{size[1]} map cannot be pooled to {out_size[0]}x{out_size[1]} by a whole ratio: pad the "
            "images to a multiple of the coarsest level's stride (config.preprocess.pad_divisor)"
        )
    ratio = (size[0] // out_size[0], size[1] // out_size[1])
    return F.max_pool2d(x, kernel_size=ratio, stride=ratio)


def _attend(x: Tensor, y: Tensor) -> Tensor:
    """Global-attention merge: `y`, plus `x` weighted per channel by the sigmoid of `y`'s spatial mean."""
    return y + torch.sigmoid(y.mean(dim=(-2, -1), keepdim=True)) * x


class Finish(ConvNorm):
    """What follows a merge: ReLU, 3x3 convolution with bias, BatchNorm."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x))


class Cell(nn.Module):
    """One stack: P3..P7 to P3..P7, sizes kept. Attribute names say what is made of what; `_gp` merges by attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.p4_gp_of_6_4 = Finish(width)
        self.p4_sum_of_4_4 = Finish(width)
        self.p3_sum_of_4_3 = Finish(width)
        self.p4_sum_of_3_4 = Finish(width)
        self.p5_sum_of_5_and_gp_4_3 = Finish(width)
        self.p7_sum_of_7_and_gp_5_4 = Finish(width)
        self.p6_gp_of_7_5 = Finish(width)

    def forward(self, column: Sequence[Tensor]) -> list[Tensor]:
        p3, p4, p5, p6, p7 = column
        first_p4 = self.p4_gp_of_6_4(_attend(_resize_like(p6, p4), p4))
        second_p4 = self.p4_sum_of_4_4(first_p4 + p4)
        p3 = self.p3_sum_of_4_3(_resize_like(second_p4, p3) + p3)
        p4 = self.p4_sum_of_3_4(_resize_like(p3, p4) + second_p4)
        p5 = self.p5_sum_of_5_and_gp_4_3(p5 + _attend(_resize_like(p4, p5), _resize_like(p3, p5)))
        p7 = self.p7_sum_of_7_and_gp_5_4(p7 + _attend(_resize_like(p5, p7), _resize_like(second_p4, p7)))
        p6 = self.p6_gp_of_7_5(_attend(_resize_like(p7, p6), _resize_like(p5, p6)))
        return [p3, p4, p5, p6, p7]


class NASFPN(Neck):
    """Lateral 1x1 convolutions of C3..C5, P6 and P7 by 1x1 convolution and pooling, then the cell, repeated.

    `forward`: C2..C5 to P3..P7, a tuple of five maps (N, width, H_l, W_l), fine to coarse.

    Raises:
        ConfigError: the backbone has not three stages from the start level on.
        ValueError: in `forward`, a level's size is no whole multiple of a coarser level's.
    """

    mmdet_names = mmdet_names.NASFPN

    def __init__(self, config: NASFPNConfig, channels: Sequence[int]) -> None:
        super().__init__()
        if len(channels[config.start_level :]) != _STAGES:
            raise ConfigError(
                f"NAS-FPN's cell is made for {_STAGES} stages of the backbone, and there are "
                f"{len(channels[config.start_level :])} from stage {config.start_level} on: choose another start_level "
                "or another neck"
            )
        self.out_channels = config.out_channels
        self.start_level = config.start_level
        self.laterals = nn.ModuleList(
            ConvNorm(stage, config.out_channels, 1) for stage in channels[config.start_level :]
        )
        self.extra = nn.ModuleList(ConvNorm(config.out_channels, config.out_channels, 1) for _ in range(EXTRA_LEVELS))
        self.stacks = nn.ModuleList(Cell(config.out_channels) for _ in range(config.stacks))
        init_xavier(self)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        column = [lateral(stage) for lateral, stage in zip(self.laterals, stages[self.start_level :], strict=True)]
        for project in self.extra:
            column.append(F.max_pool2d(project(column[-1]), kernel_size=2, stride=2))
        for cell in self.stacks:
            column = cell(column)
        return tuple(column)
