"""Feature Pyramid Network (Lin et al., arXiv 1612.03144), in the two forms of the published table."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.checkpoints import mmdet_names
from fpg_zoo.config import FPNConfig
from fpg_zoo.modeling.layers import ConvNorm, check_levels, init_xavier, subsample2
from fpg_zoo.modeling.parts import Neck


class FPN(Neck):
    """Lateral 1x1 convolutions, a top-down pathway of nearest-neighbor additions, 3x3 output convolutions.

    `forward`: C2..C5 to a tuple of `levels` maps (N, width, H_l, W_l), fine to coarse.

    Raises:
        ConfigError: the pyramid has fewer levels than the backbone gives.
    """

    def __init__(self, config: FPNConfig, channels: Sequence[int]) -> None:
        super().__init__()
        check_levels(config.start_level, config.levels, len(channels))
        width, used = config.out_channels, channels[config.start_level :]
        extra_levels = config.levels - len(used)
        self.out_channels = width
        self.start_level = config.start_level
        self.mmdet_names = mmdet_names.FPN_POOLED if config.extra_levels == "pool" else mmdet_names.FPN_CONVOLVED
        self.extra = nn.ModuleList()
        self.subsampled_levels = 0
        if config.extra_levels == "pool":
            self.laterals = nn.ModuleList(ConvNorm(stage, width, 1) for stage in used)
            self.subsampled_levels = extra_levels
        else:
            self.laterals = nn.ModuleList(nn.Conv2d(stage, width, 1) for stage in used)
            inputs = [used[-1], *[width] * extra_levels][:extra_levels]
            self.extra.extend(ConvNorm(stage, width, 3, stride=2) for stage in inputs)
        self.outputs = nn.ModuleList(ConvNorm(width, width, 3) for _ in used)
        init_xavier(self)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        used = stages[self.start_level :]
        merged = [lateral(stage) for lateral, stage in zip(self.laterals, used, strict=True)]
        for level in reversed(range(len(merged) - 1)):
            finer = merged[level]
            merged[level] = finer + F.interpolate(merged[level + 1], size=finer.shape[-2:], mode="nearest")
        maps = [output(x) for output, x in zip(self.outputs, merged, strict=True)]
        for index, downsample in enumerate(self.extra):
            maps.append(downsample(used[-1] if index == 0 else F.relu(maps[-1])))
        for _ in range(self.subsampled_levels):
            maps.append(subsample2(maps[-1]))
        return tuple(maps)
