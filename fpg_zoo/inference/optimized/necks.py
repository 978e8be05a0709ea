"""The necks with their BatchNorms folded, each node's ReLU applied once, sums in the convolutions' pass.

A column is a list of maps, one per level, fine to coarse. In FPG's grid they are kept after ReLU, which is what every
transition reads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.inference.optimized.convolutions import (
    Convolution,
    UpsampleConvolution,
    copy_with_folded_norms,
    fold_conv_norms,
)
from fpg_zoo.modeling.layers import ConvNorm, subsample2
from fpg_zoo.modeling.necks.fpg import FPG, FromCoarser, LevelInputs, Node, Pathway, Transition, check_halving, sources
from fpg_zoo.modeling.necks.fpn import FPN
from fpg_zoo.modeling.necks.nasfpn import NASFPN, Finish


class FusedInputs(LevelInputs):
    """`LevelInputs` with its convolutions in channels-last order."""

    def __init__(self, plain: LevelInputs) -> None:
        nn.Module.__init__(self)
        self.start_level, self.subsampled_levels = plain.start_level, plain.subsampled_levels
        self.project = _fuse_layers(plain.project)
        self.extra = _fuse_layers(plain.extra)


class FusedNode(nn.Module):
    """A node of the grid: the first transition gives the sum, the others add to it, the last applies the ReLU.

    `forward`: the maps of its own pathway so far, of the previous one and of the level inputs, all after ReLU, to its
    own after ReLU.
    """

    def __init__(self, plain: Node) -> None:
        super().__init__()
        self.level = plain.level
        # An upsampling convolution has no kernel that adds, so it goes first. There are two at most.
        names = sorted(plain, key=lambda name: not isinstance(plain[name], FromCoarser))
        self.transitions = nn.ModuleDict({name: _fuse_transition(plain[name]) for name in names})

    def forward(self, own: Sequence[Tensor], previous: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
        places = sources(self.level, own, previous, inputs)
        total: Tensor | None = None
        for index, (name, transition) in enumerate(self.transitions.items()):
            column, level = places[name]
            total = transition(column[level], total, relu=index == len(self.transitions) - 1)
        assert total is not None
        return total


class FusedPathway(Pathway):
    """A column of nodes, as `fpg_zoo.modeling.necks.fpg.Pathway`, on maps after ReLU."""

    def __init__(self, plain: Pathway) -> None:
        nn.Module.__init__(self)
        self.nodes = nn.ModuleDict(
            {level: FusedNode(node) for level, node in plain.nodes.items() if isinstance(node, Node)}
        )


class FusedFPG(nn.Module):
    """Stages C2..C5 to the pyramid, as `fpg_zoo.modeling.necks.fpg.FPG`, for grids without identities."""

    def __init__(self, plain: FPG) -> None:
        super().__init__()
        self.out_channels = plain.out_channels
        self.inputs = FusedInputs(plain.inputs)
        self.pathways = nn.ModuleList(
            FusedPathway(pathway) for pathway in plain.pathways if isinstance(pathway, Pathway)
        )
        self.outputs = _fuse_layers(plain.outputs)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        inputs = self.inputs(stages)
        check_halving(inputs)
        inputs = [x.relu_() for x in inputs]
        column = inputs
        for pathway in self.pathways:
            column = pathway(column, inputs)
        return tuple(output(node) for output, node in zip(self.outputs, column, strict=True))


class FusedFPN(nn.Module):
    """Stages C2..C5 to the pyramid, as `fpg_zoo.modeling.necks.fpn.FPN`."""

    def __init__(self, plain: FPN) -> None:
        super().__init__()
        self.out_channels, self.start_level, self.subsampled_levels = (
            plain.out_channels,
            plain.start_level,
            plain.subsampled_levels,
        )
        self.laterals = _fuse_layers(plain.laterals)
        self.outputs = _fuse_layers(plain.outputs)
        self.extra = _fuse_layers(plain.extra)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        used = stages[self.start_level :]
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


class FusedFinish(nn.Module):
    """What follows a merge of NAS-FPN's, as `fpg_zoo.modeling.necks.nasfpn.Finish`.

    The ReLU is applied in place: nothing else reads the merge.
    """

    def __init__(self, plain: Finish) -> None:
        super().__init__()
        self.conv = Convolution.of(plain.conv, plain.norm)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(x.relu_())
        return output


def fuse_fpg(plain: FPG) -> nn.Module:
    """The grid's fused form; a copy for a grid with identities, whose maps are needed before ReLU, too."""
    if any(isinstance(module, nn.Identity) for module in plain.modules()):
        return copy_with_folded_norms(plain)
    return FusedFPG(plain)


def fuse_nasfpn(plain: NASFPN) -> nn.Module:
    """A copy of the neck, with a fused convolution after each merge."""
    neck = copy.deepcopy(plain)
    for cell, plain_cell in zip(neck.stacks, plain.stacks, strict=True):
        for name, child in plain_cell.named_children():
            if isinstance(child, Finish):
                setattr(cell, name, FusedFinish(child))
    fold_conv_norms(neck)
    return neck


def _fuse_transition(transition: nn.Module) -> Convolution | UpsampleConvolution:
    assert isinstance(transition, Transition)
    fused = UpsampleConvolution if isinstance(transition, FromCoarser) else Convolution
    return fused.of(transition.conv, transition.norm)


def _fuse_layers(layers: Iterable[nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(_fuse_layer(layer) for layer in layers)


def _fuse_layer(layer: nn.Module) -> Convolution:
    if isinstance(layer, ConvNorm):
        return Convolution.of(layer.conv, layer.norm)
    assert isinstance(layer, nn.Conv2d)
    return Convolution.of(layer)
