"""ResNet with its BatchNorms folded; sums and ReLUs in the convolutions' pass."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fpg_zoo.inference.optimized.convolutions import Convolution
from fpg_zoo.modeling.backbones.resnet import ResNet


class FusedBlock(nn.Module):
    """A residual block: convolutions with ReLU, the last of which adds to the shortcut.

    Without a shortcut it adds to the block's input, which is written over.
    """

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        self.convs = nn.ModuleList(Convolution.of(conv, norm) for conv, norm in pairs)
        self.shortcut = None if block.downsample is None else Convolution.of(*block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        total = x if self.shortcut is None else self.shortcut(x)
        for conv in self.convs[:-1]:
            x = conv(x, relu=True)
        output: Tensor = self.convs[-1](x, total, relu=True)
        return output


class FusedResNet(nn.Module):
    """Images (N, 3, H, W) to C2..C5, as `fpg_zoo.modeling.backbones.resnet.ResNet`."""

    def __init__(self, plain: ResNet) -> None:
        super().__init__()
        self.channels = plain.channels
        self.conv1 = Convolution.of(plain.conv1, plain.bn1)
        stages = (plain.layer1, plain.layer2, plain.layer3, plain.layer4)
        self.stages = nn.ModuleList(nn.Sequential(*(FusedBlock(block) for block in stage)) for stage in stages)
        # So that no stage writes over the one before it, which the neck reads; the first may have the stem's output.
        assert all(stage[0].downsample is not None for stage in stages[1:])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = F.max_pool2d(self.conv1(images, relu=True), kernel_size=3, stride=2, padding=1)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return tuple(outputs)
