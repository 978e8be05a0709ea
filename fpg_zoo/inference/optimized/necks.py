"""The necks with their BatchNorms folded, each node's ReLU taken once, sums in the convolutions' pass.

A column is a list of maps, one per level, fine to coarse; in FPG's grid they are kept as what their consumers take,
that is after ReLU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.inference.optimized.convolutions import Convolution, EnlargedConvolution, folded
from fpg_zoo.inference.optimized.winograd import WinogradConvolution, convolution, pays
from fpg_zoo.modeling.layers import ConvNorm, subsample2
from fpg_zoo.modeling.necks.fpg import FPG, FromCoarser, LevelInputs, Node, Pathway, Transition, check_halving, sources
from fpg_zoo.modeling.necks.fpn import FPN
from fpg_zoo.modeling.necks.nasfpn import NASFPN, Cell, Finish

# Quick convolutions have weights four times as large, quick enlargements eleven times, and the coarser a level the less
# there is to gain: a form may have twice the model's memory.
_QUICK_LEVELS = 2  # whose outputs are quick
_QUICK_OF_A_CELL = ("p3_sum_of_4_3", "p4_sum_of_3_4")  # of NAS-FPN
_LEAST_ENLARGED = 256  # channels of a quick enlargement


class FusedInputs(LevelInputs):
    """`LevelInputs` with its convolutions in channels-last order."""

    def __init__(self, plain: LevelInputs) -> None:
        nn.Module.__init__(self)
        self.start, self.subsampled_levels = plain.start, plain.subsampled_levels
        self.project = nn.ModuleList(Convolution.of(_plain(conv)) for conv in plain.project)
        self.extra = nn.ModuleList(Convolution.of(_plain(conv)) for conv in plain.extra)


class FusedNode(nn.Module):
    """A node of the grid: the first transition makes the sum, the others add to it, the last takes the ReLU along.

    `forward`: the maps of its own pathway so far, of the previous one and of the level inputs, all after ReLU, to its
    own after ReLU.
    """

    def __init__(self, plain: Node, *, quick: bool) -> None:
        super().__init__()
        self.level = plain.level
        # An enlargement cannot add, so it goes first; there are two at most, of which the second is added by itself.
        names = sorted(plain, key=lambda name: not isinstance(plain[name], FromCoarser))
        parts = []
        for name in names:
            transition = plain[name]
            assert isinstance(transition, Transition)
            parts.append(
                _enlarged(transition, quick)
                if isinstance(transition, FromCoarser)
                else Convolution.of(transition.conv, transition.norm)
            )
        self.names, self.parts = tuple(names), nn.ModuleList(parts)

    def forward(self, own: Sequence[Tensor], previous: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
        arriving = sources(self.level, own, previous, inputs)
        total: Tensor | None = None
        last = len(self.parts) - 1
        for index, (name, part) in enumerate(zip(self.names, self.parts, strict=True)):
            column, level = arriving[name]
            if not isinstance(part, EnlargedConvolution):
                total = part(column[level], total, relu=index == last)
                continue
            enlarged = part(column[level])
            total = enlarged if total is None else total.add_(enlarged)
            if index == last:
                total = total.relu_()
        assert total is not None
        return total


class FusedPathway(Pathway):
    """A column of nodes, as `fpg_zoo.modeling.necks.fpg.Pathway`, on maps after ReLU."""

    def __init__(self, plain: Pathway, *, quick: bool) -> None:
        nn.Module.__init__(self)
        self.nodes = nn.ModuleDict(
            {
                level: FusedNode(node, quick=quick and node.level == 0)
                for level, node in plain.nodes.items()
                if isinstance(node, Node)
            }
        )


class FusedFPG(nn.Module):
    """Stages C2..C5 to the pyramid, as `fpg_zoo.modeling.necks.fpg.FPG`, for grids without identities."""

    def __init__(self, plain: FPG, *, quick: bool) -> None:
        super().__init__()
        self.width = plain.width
        self.inputs = FusedInputs(plain.inputs)
        enlarging = quick and self.inputs.start == 0  # the finest level is at stride 4
        self.pathways = nn.ModuleList(
            FusedPathway(one, quick=enlarging) for one in plain.pathways if isinstance(one, Pathway)
        )
        self.outputs = _outputs(plain.outputs, quick)

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

    def __init__(self, plain: FPN, *, quick: bool) -> None:
        super().__init__()
        self.width, self.start, self.subsampled_levels = plain.width, plain.start, plain.subsampled_levels
        self.laterals = nn.ModuleList(_folded_layer(layer) for layer in plain.laterals)
        self.outputs = _outputs(plain.outputs, quick)
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


class FusedFinish(nn.Module):
    """What follows a merge of NAS-FPN's, as `fpg_zoo.modeling.necks.nasfpn.Finish`; the ReLU is taken in place, of a sum that
    nobody else has."""

    def __init__(self, plain: Finish, *, quick: bool) -> None:
        super().__init__()
        self.conv = convolution(plain.conv, plain.norm, quick=quick)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x.relu_())
        return made


def fold_within(module: nn.Module, *, quick: bool) -> None:
    """Put a folded convolution and no BatchNorm into every `ConvNorm` below `module`; quick ones into NAS-FPN's."""
    for cell in module.modules():
        if isinstance(cell, Cell):
            for name, part in list(cell.named_children()):
                if isinstance(part, Finish):
                    setattr(cell, name, FusedFinish(part, quick=quick and name in _QUICK_OF_A_CELL))
    for child in module.modules():
        if isinstance(child, ConvNorm):
            weight, bias = folded(child.conv, child.norm)
            child.conv.weight, child.conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            child.norm = nn.Identity()  # type: ignore[assignment]


def fused_neck(plain: nn.Module, *, quick: bool) -> nn.Module | None:
    """The neck's inference form; None if it has none but itself, which `fold_within` serves.

    Args:
        plain: in eval mode.
        quick: whether 3x3 convolutions on fine levels take Winograd's form.
    """
    if isinstance(plain, FPG):
        identities = any(isinstance(module, nn.Identity) for module in plain.modules())
        return None if identities else FusedFPG(plain, quick=quick)
    if isinstance(plain, FPN):
        return FusedFPN(plain, quick=quick)
    assert isinstance(plain, NASFPN)
    return None


def _enlarged(transition: Transition, quick: bool) -> EnlargedConvolution | WinogradConvolution:
    if quick and pays(transition.conv) and min(transition.conv.weight.shape[:2]) >= _LEAST_ENLARGED:
        return WinogradConvolution.of(transition.conv, [transition.norm], enlarged=True)
    return EnlargedConvolution(*folded(transition.conv, transition.norm))


def _outputs(layers: Iterable[nn.Module], quick: bool) -> nn.ModuleList:
    return nn.ModuleList(
        _folded_layer(layer, quick=quick and level < _QUICK_LEVELS) for level, layer in enumerate(layers)
    )


def _folded_layer(layer: nn.Module, *, quick: bool = False) -> Convolution | WinogradConvolution:
    if isinstance(layer, ConvNorm):
        return convolution(layer.conv, layer.norm, quick=quick)
    return convolution(_plain(layer), quick=quick)


def _plain(module: nn.Module) -> nn.Conv2d:
    assert isinstance(module, nn.Conv2d)
    return module
