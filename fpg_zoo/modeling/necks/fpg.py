"""Feature Pyramid Grids (Chen, Cao, Loy, Lin, Feichtenhofer; arXiv 2004.03580).

Pathways stand side by side over the pyramid's levels. A node is the sum of what flows into it:

    level            pathway p-1                     pathway p
    l+1 (coarser)        o --- across_from_coarser ---.    o
                                                       v   | from_coarser (pathways running down)
    l                    o --- lateral ------------->  ( + )  <--- skip --- level input l
                                                       ^   | from_finer (pathways running up)
    l-1 (finer)          o --- across_from_finer -----'    o

Legend: N images, W the grid's width, level l of size (H / stride_l, W / stride_l). A column is a list of maps, one per
level, fine to coarse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.checkpoints import mmdet_names
from fpg_zoo.config import FPGConfig
from fpg_zoo.modeling.layers import ConvNorm, check_levels, init_xavier, subsample2, upsample2
from fpg_zoo.modeling.parts import Neck


class Transition(ConvNorm):
    """What happens to a map on its way from one node to another: ReLU, convolution, BatchNorm."""

    def __init__(self, width: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__(width, width, kernel, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x))


class FromCoarser(Transition):
    """A map brought from the coarser level: enlarged by 2 (nearest neighbor), then a 3x3 transition."""

    def __init__(self, width: int) -> None:
        super().__init__(width, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(upsample2(x))


class FromFiner(Transition):
    """A map brought from the finer level: a 3x3 transition of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__(width, kernel=3, stride=2)


def _transition(name: str, config: FPGConfig) -> nn.Module:
    if name.endswith("from_finer"):
        return FromFiner(config.out_channels)
    if name.endswith("from_coarser"):
        return FromCoarser(config.out_channels)
    how = config.grid.lateral if name == "lateral" else config.grid.skip
    return nn.Identity() if how == "identity" else Transition(config.out_channels, kernel=1)


class LevelInputs(nn.Module):
    """The backbone's stages on the grid's width, and the levels beyond them.

    `forward`: C2..C5 to one column, (N, width, ...) per level.
    """

    def __init__(self, config: FPGConfig, channels: Sequence[int]) -> None:
        super().__init__()
        used = channels[config.start_level :]
        self.start_level = config.start_level
        self.project = nn.ModuleList(nn.Conv2d(stage, config.out_channels, 1) for stage in used)
        self.subsampled_levels = 0
        self.extra = nn.ModuleList()
        extra_levels = config.levels - len(used)
        if config.extra_levels == "pool":
            self.subsampled_levels = extra_levels
        else:
            self.extra.extend(nn.Conv2d(config.out_channels, config.out_channels, 3, 2, 1) for _ in range(extra_levels))

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        column = [project(stage) for project, stage in zip(self.project, stages[self.start_level :], strict=True)]
        for downsample in self.extra:
            column.append(downsample(column[-1]))
        for _ in range(self.subsampled_levels):
            column.append(subsample2(column[-1]))
        return column


def sources(
    level: int, own: Sequence[Tensor], previous: Sequence[Tensor], inputs: Sequence[Tensor]
) -> dict[str, tuple[Sequence[Tensor], int]]:
    """Where each transition into a node of `level` comes from: a column, and a level of it."""
    return {
        "from_finer": (own, level - 1),
        "from_coarser": (own, level + 1),
        "lateral": (previous, level),
        "across_from_coarser": (previous, level + 1),
        "across_from_finer": (previous, level - 1),
        "skip": (inputs, level),
    }


class Node(nn.ModuleDict):
    """One place of the grid; its entries are the transitions into it.

    `forward`: its own pathway's column so far, the previous column and the level inputs to the sum of what arrives.
    """

    def __init__(self, config: FPGConfig, pathway: int, level: int) -> None:
        super().__init__({name: _transition(name, config) for name in config.grid.transitions(pathway, level)})
        self.level = level

    def forward(self, own: Sequence[Tensor], previous: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
        places = sources(self.level, own, previous, inputs)
        arriving = []
        for name, transition in self.items():
            column, level = places[name]
            arriving.append(transition(column[level]))
        total: Tensor = arriving[0]
        for further in arriving[1:]:
            total = total + further
        return total


class Pathway(nn.Module):
    """One column of nodes.

    `forward`: the previous column and the level inputs to the new column; a skipped level keeps the previous map.
    """

    def __init__(self, config: FPGConfig, index: int) -> None:
        super().__init__()
        grid = config.grid
        levels = [level for level in range(grid.levels) if grid.computes(index, level)]
        if grid.directions[index] == "down":
            levels.reverse()
        # In the order of computing, which ModuleDict keeps.
        self.nodes = nn.ModuleDict({str(level): Node(config, index, level) for level in levels})

    def forward(self, previous: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        column = list(previous)
        for level, node in self.nodes.items():
            column[int(level)] = node(column, previous, inputs)
        return column


class FPG(Neck):
    """The grid between a backbone and heads.

    `forward`: C2..C5 to a tuple of `levels` maps (N, width, H_l, W_l), fine to coarse. The stages' sizes must halve
    exactly from level to level: pad images to a multiple of the coarsest level's stride.

    Raises:
        ConfigError: at construction, the grid has fewer levels than the backbone gives.
        ValueError: in `forward`, two neighboring levels' sizes are not in the ratio 2.
    """

    mmdet_names = mmdet_names.FPG

    def __init__(self, config: FPGConfig, channels: Sequence[int]) -> None:
        super().__init__()
        check_levels(config.start_level, config.levels, len(channels))
        self.out_channels = config.out_channels
        self.inputs = LevelInputs(config, channels)
        self.pathways = nn.ModuleList(Pathway(config, index) for index in range(config.grid.pathways))
        self.outputs = nn.ModuleList(
            nn.Conv2d(config.out_channels, config.out_channels, 3, 1, 1) for _ in range(config.levels)
        )
        init_xavier(self)

    def segments(self) -> list[nn.Module]:
        return list(self.pathways)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        inputs = self.inputs(stages)
        check_halving(inputs)
        column = inputs
        for pathway in self.pathways:
            column = pathway(column, inputs)
        return tuple(output(F.relu(node)) for output, node in zip(self.outputs, column, strict=True))


def check_halving(column: Sequence[Tensor]) -> None:
    """Refuse a column of which a level is not half as high and wide as the one before.

    Raises:
        ValueError: it is so.
    """
    for level in range(1, len(column)):
        finer, coarser = tuple(column[level - 1].shape[-2:]), tuple(column[level].shape[-2:])
        if finer != (coarser[0] * 2, coarser[1] * 2):
            raise ValueError(
                f"level {level - 1} is {finer[0]}x{finer[1]} and level {level} is {coarser[0]}x{coarser[1]}, not half "
                "of it: pad the images to a multiple of the coarsest level's stride (config.preprocess.pad_divisor)"
            )
