"""The heads with their BatchNorms folded, ReLUs in the convolutions' pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fpg_zoo.inference.optimized.convolutions import Convolution, LevelConvolution
from fpg_zoo.modeling.heads.retina_head import RetinaHead, SharedConv
from fpg_zoo.modeling.heads.roi_heads import BoxHead, MaskHead
from fpg_zoo.modeling.heads.rpn import RPN
from fpg_zoo.modeling.layers import ConvNorm

_ROIS_PER_CHUNK = 32  # that the mask head takes at a time


class FusedRPN(nn.Module):
    """As `fpg_zoo.modeling.heads.rpn.RPN`."""

    def __init__(self, plain: RPN) -> None:
        super().__init__()
        self.conv = Convolution.of(plain.conv)
        self.objectness = Convolution.of(plain.objectness)
        self.deltas = Convolution.of(plain.deltas)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = self.conv.forward_levels(pyramid, relu=True)
        return [self.objectness(x) for x in hidden], [self.deltas(x) for x in hidden]


class FusedRetinaHead(nn.Module):
    """As `fpg_zoo.modeling.heads.retina_head.RetinaHead`."""

    def __init__(self, plain: RetinaHead) -> None:
        super().__init__()
        self.class_tower, self.box_tower = (
            nn.Sequential(*(FusedSharedConv(layer) for layer in tower if isinstance(layer, SharedConv)))
            for tower in (plain.class_tower, plain.box_tower)
        )
        self.classes, self.deltas = Convolution.of(plain.classes), Convolution.of(plain.deltas)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits = self.classes.forward_levels(self.class_tower(pyramid))
        return logits, self.deltas.forward_levels(self.box_tower(pyramid))


class FusedSharedConv(nn.Module):
    """As `fpg_zoo.modeling.heads.retina_head.SharedConv`, for all levels in one call.

    `forward`: the levels' maps (N, in, H_l, W_l) to (N, out, H_l, W_l), after ReLU.
    """

    def __init__(self, plain: SharedConv) -> None:
        super().__init__()
        norms = [norm for norm in plain.norms if isinstance(norm, nn.BatchNorm2d)]
        self.conv = LevelConvolution.of(plain.conv, norms)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return self.conv.forward_levels(maps, relu=True)


class FusedBoxHead(nn.Module):
    """As `fpg_zoo.modeling.heads.roi_heads.BoxHead`.

    The first layer's weight is put into channels-last order, which the pooled RoIs have, so that no RoI is copied.
    """

    def __init__(self, plain: BoxHead) -> None:
        super().__init__()
        self.pooling = plain.pooling
        side = plain.pooling.pool
        weight = plain.fc1.weight.detach()
        by_channel = weight.view(len(weight), -1, side, side)
        self.fc1 = _linear(by_channel.permute(0, 2, 3, 1).flatten(1), plain.fc1.bias)
        self.fc2 = copy.deepcopy(plain.fc2)
        outputs = (plain.classes, plain.deltas)
        self.sizes = [layer.out_features for layer in outputs]
        # Both last layers in one product.
        self.last = _linear(
            torch.cat([layer.weight for layer in outputs]), torch.cat([layer.bias for layer in outputs])
        )

    def forward(self, pyramid: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(self.pooling(pyramid, rois))

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, of pooled maps (R, channels, pool, pool)."""
        x = pooled.permute(0, 2, 3, 1).flatten(1)
        x = self.fc1(x).relu_()
        x = self.fc2(x).relu_()
        logits, deltas = self.last(x).split(self.sizes, dim=1)
        return logits, deltas.unflatten(1, (-1, 4))


class FusedMaskHead(nn.Module):
    """As `fpg_zoo.modeling.heads.roi_heads.MaskHead`; on the CPU some RoIs at a time, whose maps stay in the cache.

    Each pixel gives the transposed convolution's 2x2 outputs by itself: a 1x1 convolution to four times the channels.
    The outputs are put into their places after the last layer, which has fewer channels and looks at single pixels.
    """

    def __init__(self, plain: MaskHead) -> None:
        super().__init__()
        self.pooling = plain.pooling
        blocks = [block for block in plain.convs if isinstance(block, ConvNorm)]
        self.convs = nn.ModuleList(Convolution.of(block.conv, block.norm) for block in blocks)
        weight = plain.upsample.weight.detach()  # (in, out, 2, 2)
        assert plain.upsample.bias is not None
        self.upsample = Convolution(
            weight.permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None], plain.upsample.bias.detach().repeat(4)
        )
        assert plain.classes.bias is not None
        self.classes = _linear(plain.classes.weight.flatten(1), plain.classes.bias)

    def forward(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        return self.predict(self.pooling(pyramid, rois))

    def predict(self, pooled: Tensor) -> Tensor:
        """As `forward`, of pooled maps (R, channels, pool, pool)."""
        side, classes = pooled.shape[-1], self.classes.out_features
        logits = pooled.new_empty(len(pooled), side, 2, side, 2, classes)
        chunk = _ROIS_PER_CHUNK if pooled.device.type == "cpu" else max(len(pooled), 1)
        for output, x in zip(torch.split(logits, chunk), torch.split(pooled, chunk), strict=True):
            for conv in self.convs:
                x = conv(x, relu=True)
            x = self.upsample(x, relu=True).permute(0, 2, 3, 1)
            x = self.classes(x.reshape(*x.shape[:3], 4, -1))  # (R', side, side, 2 * 2, C)
            output.copy_(x.view(*x.shape[:3], 2, 2, classes).transpose(2, 3))
        return logits.view(len(pooled), 2 * side, 2 * side, classes).permute(0, 3, 1, 2)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer with copies of these, built without drawing random numbers."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, device="meta", dtype=weight.dtype).to_empty(device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
