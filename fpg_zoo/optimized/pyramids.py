"""The necks with their BatchNorms folded, each node's ReLU taken once, sums in the convolutions' pass.

A column is a list of maps, one per level, fine to coarse; in FPG's grid they are kept as what their consumers take,
that is after ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.modeling.fpg import FPG, FromCoarser, LevelInputs, Node, Pathway, Transition, check_halving, sources
from fpg_zoo.modeling.fpn import FPN
from fpg_zoo.modeling.layers import ConvNorm, subsample2
from fpg_zoo.modeling.nasfpn import NASFPN
from fpg_zoo.optimized.convolutions import Convolution, EnlargedConvolution, folded


class FusedInputs(LevelInputs):
    """`LevelInputs` with its convolutions in channels-last order."""

    def __init__(self, plain: LevelInputs) -> None:
        nn.Module.__init__(self)
        self.start, self.subsampled_levels = plain.start, plain.subsampled_levels
        self.project = nn.ModuleList(Convolution.of(_convolution(conv)) for conv in plain.project)
        self.extra = nn.ModuleList(Convolution.of(_convolution(conv)) for conv in plain.extra)


class FusedNode(nn.Module):
    """A node of the grid: the first transition makes the sum, the others add to it, the last takes the ReLU along.

    `forward`: the maps of its own pathway so far, of the previous one and of the level inputs, all after ReLU, to its
    own after ReLU.
    """

    def __init__(self, plain: Node) -> None:
        super().__init__()
        self.level = plain.level
        # An enlargement cannot add, so it goes first; there are two at most, of which the second is added by itself.
        names = sorted(plain, key=lambda name: not isinstance(plain[name], FromCoarser))
        parts = []
        for name in names:
            transition = plain[name]
            assert isinstance(transition, Transition)
            enlarged = isinstance(transition, FromCoarser)
            parts.append(
                EnlargedConvolution(*folded(transition.conv, transition.norm))
                if enlarged
                else Convolution.of(transition.conv, transition.norm)
            )
        self.names, self.parts = tuple(names), nn.ModuleList(parts)

    def forward(self, own: Sequence[Tensor], previous: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
        arriving = sources(self.level, own, previous, inputs)
        total: Tensor | None = None
        last = len(self.parts) - 1
        for index, (name, part) in enumerate(zip(self.names, self.parts, strict=True)):
            column, level = arriving[name]
            if isinstance(part, Convolution):
                total = part(column[level], total, relu=index == last)
                continue
            enlarged = part(column[level])
            total = enlarged if total is None else total.add_(enlarged)
            if index == last:
                total = total.relu_()
        assert total is not None
        return total


class FusedPathway(Pathway):
    """A column of nodes, as `fpg_zoo.modeling.fpg.Pathway`, on maps after ReLU."""

    def __init__(self, plain: Pathway) -> None:
        nn.Module.__init__(self)
        self.nodes = nn.ModuleDict(
            {level: FusedNode(node) for level, node in plain.nodes.items() if isinstance(node, Node)}
        )


class FusedFPG(nn.Module):
    """Stages C2..C5 to the pyramid, as `fpg_zoo.modeling.fpg.FPG`, for grids without identities."""

    def __init__(self, plain: FPG) -> None:
        super().__init__()
        self.width = plain.width
        self.inputs = FusedInputs(plain.inputs)
        self.pathways = nn.ModuleList(FusedPathway(one) for one in plain.pathways if isinstance(one, Pathway))
        self.outputs = nn.ModuleList(Convolution.of(_convolution(conv)) for conv in plain.outputs)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        inputs = self.inputs(stages)
        check_halving(inputs)
        inputs = [x.relu_() for x in inputs]
        column = inputs
        for pathway in self.pathways:
            column = pathway(column, inputs)
        return tuple(output(node) for output, node in zip(self.outputs, column, strict=True))


class FusedFPN(nn.Module):
    """Stages C2..C5 to the pyramid, as `fpg_zoo.modeling.fpn.FPN`."""

    def __init__(self, plain: FPN) -> None:
        super().__init__()
        self.width, self.start, self.subsampled_levels = plain.width, plain.start, plain.subsampled_levels
        self.laterals = nn.ModuleList(_folded_layer(layer) for layer in plain.laterals)
        self.outputs = nn.ModuleList(_folded_layer(layer) for layer in plain.outputs)
        self.extra = nn.ModuleList(_folded_layer(layer) for layer in plain.extra)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        used = stages[self.start :]
        merged = [lateral(stage) for lateral, stage in zip(self.laterals, used, strict=True)]
        for level in reversed(range(len(merged) - 1)):
            finer = merged[level]
            finer += F.interpolate(merged[level + 1], size=finer.shape[-2:], mode="nearest")
        maps = [output(x) for output, x in zip(self.outputs, merged, strict=True)]
        for index, downsample in enumerate(self.extra):
            maps.append(downsample(used[-1] if index == 0 else F.relu(maps[-1])))
        for _ in range(self.subsampled_levels):
            maps.append(subsample2(maps[-1]))
        return tuple(maps)


def fold_within(module: nn.Module) -> None:
    """Put a folded convolution and no BatchNorm into every `ConvNorm` below `module`."""
    for child in module.modules():
        if isinstance(child, ConvNorm):
            weight, bias = folded(child.conv, child.norm)
            child.conv.weight, child.conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            child.norm = nn.Identity()  # type: ignore[assignment]


def fused_neck(plain: nn.Module) -> nn.Module | None:
    """The neck's inference form; None if it has none but itself, which `fold_within` serves."""
    if isinstance(plain, FPG):
        identities = any(isinstance(module, nn.Identity) for module in plain.modules())
        return None if identities else FusedFPG(plain)
    if isinstance(plain, FPN):
        return FusedFPN(plain)
    assert isinstance(plain, NASFPN)
    return None


def _folded_layer(layer: nn.Module) -> Convolution:
    return (
        Convolution.of(layer.conv, layer.norm) if isinstance(layer, ConvNorm) else Convolution.of(_convolution(layer))
    )


def _convolution(module: nn.Module) -> nn.Conv2d:
    assert isinstance(module, nn.Conv2d)
    return module
