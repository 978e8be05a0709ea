"""ResNet with its BatchNorms folded; sums and ReLUs in the convolutions' pass."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fpg_zoo.inference.optimized.convolutions import Convolution
from fpg_zoo.inference.optimized.winograd import convolution
from fpg_zoo.modeling.backbones.resnet import ResNet

_QUICK_STAGES = 3  # the last one's maps are small and its weights large


class FusedBlock(nn.Module):
    """A residual block: convolutions with ReLU, the last one onto the shortcut, or without one onto the block's input,
    which may be written over."""

    def __init__(self, block: BasicBlock | Bottleneck, *, quick: bool) -> None:
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        self.convs = nn.ModuleList(convolution(conv, norm, quick=quick) for conv, norm in pairs)
        self.shortcut = None if block.downsample is None else Convolution.of(*block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        total = x if self.shortcut is None else self.shortcut(x)
        for conv in self.convs[:-1]:
            x = conv(x, relu=True)
        added: Tensor = self.convs[-1](x, total, relu=True)
        return added


class FusedResNet(nn.Module):
    """Images (N, 3, H, W) to C2..C5, as `fpg_zoo.modeling.backbones.resnet.ResNet`."""

    def __init__(self, plain: ResNet, *, quick: bool) -> None:
        super().__init__()
        self.channels = plain.channels
        self.conv1 = Convolution.of(plain.conv1, plain.bn1)
        stages = (plain.layer1, plain.layer2, plain.layer3, plain.layer4)
        self.stages = nn.ModuleList(
            nn.Sequential(*(FusedBlock(block, quick=quick and index < _QUICK_STAGES) for block in stage))
            for index, stage in enumerate(stages)
        )
        # So that no stage writes over the one before it, which the neck reads; the first may have the stem's output.
        assert all(stage[0].downsample is not None for stage in stages[1:])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = F.max_pool2d(self.conv1(images, relu=True), kernel_size=3, stride=2, padding=1)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return tuple(outputs)
