"""ResNet (He et al., arXiv 1512.03385) of torchvision's blocks, with torchvision's tensor names, giving C2..C5."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fpg_zoo.checkpoints import mmdet_names
from fpg_zoo.config import ResNetConfig
from fpg_zoo.modeling.parts import Backbone


class ResNet(Backbone):
    """The stem and four stages; the stride of a bottleneck sits in its 3x3 convolution.

    `forward`: (N, 3, H, W) to C2..C5, (N, channels[i], H / 2^(i+2), W / 2^(i+2)), sizes rounded up.
    """

    mmdet_names = mmdet_names.RESNET

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.channels = config.channels
        self.conv1 = nn.Conv2d(3, config.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        block = BasicBlock if config.block == "basic" else Bottleneck
        inputs = (config.width, *config.channels[:-1])
        strides = (1, 2, 2, 2)
        stages = [
            _stage(block, inputs[i], config.width * 2**i, depth, strides[i], config)
            for i, depth in enumerate(config.depths)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[list[nn.Module]]:
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return c2, c3, c4, c5


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    planes: int,
    depth: int,
    stride: int,
    config: ResNetConfig,
) -> nn.Sequential:
    form = {"groups": config.groups, "base_width": config.width_per_group}
    out_channels = planes * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    first = block(in_channels, planes, stride, downsample, **form)
    return nn.Sequential(first, *(block(out_channels, planes, **form) for _ in range(depth - 1)))
