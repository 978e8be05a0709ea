"""Necks as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from fpg_zoo.config.validation import MAX_REPEATS, Count, Levels, Repeats, check_fields, check_positive
from fpg_zoo.errors import ConfigError
from fpg_zoo.text import quoted


class NeckConfig(Protocol):
    """What any neck's config says; one of your own is a frozen dataclass with these attributes or properties."""

    @property
    def start_level(self) -> int:
        """The finest backbone stage used; 0 is the backbone's finest."""

    @property
    def out_channels(self) -> int:
        """Channels of every output level."""

    @property
    def levels(self) -> int:
        """Output levels, fine to coarse: the first has the stride of stage `start_level`, each next twice that."""

    @property
    def halves_exactly(self) -> bool:
        """Whether each level must have exactly half the height and width of the one before.

        Images are then padded to a multiple of the coarsest stride.
        """


@dataclass(frozen=True, kw_only=True)
class FPNConfig:
    """Feature Pyramid Network (Lin et al., arXiv 1612.03144) with BatchNorm.

    Attributes:
        start_level: the finest backbone stage used; 0 is C2, 1 is C3.
        out_channels: channels of every output level.
        levels: output levels, those of the backbone first.
        extra_levels: how levels beyond the backbone's are made: `pool` subsamples the coarsest output by 2;
            `conv` applies strided convolutions to C5, which goes with laterals that have a bias and no norm.
    """

    start_level: int
    out_channels: Count = 256
    levels: Levels = 5
    halves_exactly: ClassVar[bool] = False  # its additions take maps of any size
    extra_levels: Literal["pool", "conv"] = "pool"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class NASFPNConfig:
    """NAS-FPN (Ghiasi et al., arXiv 1904.07392), the 7-merge cell over P3..P7, repeated `stacks` times.

    Attributes:
        out_channels: channels of every output level.
        stacks: cells, one after the other.
        start_level: the finest backbone stage used, C3 of a backbone that begins with C2.
    """

    out_channels: Count = 256
    stacks: Repeats = 7
    start_level: int = 1
    halves_exactly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def levels(self) -> int:
        return 5


Mapped = Literal["conv", "identity"]
Direction = Literal["up", "down"]
_UP: Direction = "up"


@dataclass(frozen=True, kw_only=True)
class FPGGrid:
    """The grid of a Feature Pyramid Grid (Chen et al., arXiv 2004.03580): pathways side by side, levels fine to coarse.

    A node is the sum of its incoming transitions. What precedes pathway 0 is the column of level inputs.
    A transition whose source level does not exist (finer than level 0, coarser than the last) is left out.

    Attributes:
        directions: one entry per pathway, in order. `up`: built fine to coarse, each node also receives its finer
            neighbor of the same pathway. `down`: built coarse to fine, each node receives its coarser neighbor.
        skipped: per pathway, the levels it leaves untouched; the node there is the previous pathway's.
        levels: pyramid levels.
        along: the transition inside a pathway exists (SameUp or SameDown in the paper).
        lateral: from the same level of the previous pathway (AcrossSame): a 1x1 convolution, the map itself, or None.
        skip: from the level input (AcrossSkip): a 1x1 convolution, the map itself, or None.
        across_from_coarser: from the coarser neighbor in the previous pathway (AcrossDown).
        across_from_finer: from the finer neighbor in the previous pathway (AcrossUp).

    Raises:
        ConfigError: the grid has no pathway, skips a level that does not exist or a whole pathway, or has a node
            that nothing flows into.
    """

    directions: tuple[Direction, ...]
    skipped: tuple[tuple[int, ...], ...]
    levels: Levels = 5
    along: bool = True
    lateral: Mapped | None = "conv"
    skip: Mapped | None = "conv"
    across_from_coarser: bool = True
    across_from_finer: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.levels < 2:
            raise ConfigError(f"levels={self.levels}: a grid needs at least 2 levels to pass anything between them")
        if not self.directions:
            raise ConfigError("directions=(): a grid needs at least one pathway; give 'up' or 'down' for each")
        check_positive(MAX_REPEATS, pathways=self.pathways)
        if len(self.skipped) != self.pathways:
            raise ConfigError(
                f"skipped has {len(self.skipped)} entries for {self.pathways} pathways: give one tuple of levels per "
                "pathway, () where it touches all of them"
            )
        for pathway, levels in enumerate(self.skipped):
            for level in levels:
                if type(level) is not int or not 0 <= level < self.levels:
                    raise ConfigError(
                        f"skipped[{pathway}] names level {quoted(level)}: levels are 0..{self.levels - 1}"
                    )
            if len(set(levels)) == self.levels:
                raise ConfigError(f"skipped[{pathway}] skips every level: a pathway without nodes; drop it instead")
        for pathway in range(self.pathways):
            for level in range(self.levels):
                if self.computes(pathway, level) and not self.transitions(pathway, level):
                    raise ConfigError(
                        f"pathway {pathway} computes level {level}, but no transition leads there: switch on lateral, "
                        f"skip or a transition from a neighbour, or add {level} to skipped[{pathway}]"
                    )

    @property
    def pathways(self) -> int:
        return len(self.directions)

    def computes(self, pathway: int, level: int) -> bool:
        """Whether `pathway` has a node of its own at `level`."""
        return level not in self.skipped[pathway]

    def transitions(self, pathway: int, level: int) -> tuple[str, ...]:
        """Names of the transitions into node (`pathway`, `level`), in the order in which they are summed."""
        up = self.directions[pathway] == "up"
        finer, coarser = level > 0, level < self.levels - 1
        exists = {
            "from_finer": self.along and up and finer,
            "from_coarser": self.along and not up and coarser,
            "lateral": self.lateral is not None,
            "across_from_coarser": self.across_from_coarser and coarser,
            "across_from_finer": self.across_from_finer and finer,
            "skip": self.skip is not None,
        }
        return tuple(name for name, is_there in exists.items() if is_there)


def triangle_grid(pathways: int = 9, levels: int = 5) -> FPGGrid:
    """The grid of the published weights: all pathways bottom-up, the fine levels joining one pathway later each.

    Level `l` is first computed by pathway `levels - 1 - l` (the paper's truncation of the low-level pathways).

    Raises:
        ConfigError: see `FPGGrid`.
    """
    skipped = tuple(
        tuple(level for level in range(levels) if pathway < levels - 1 - level) for pathway in range(pathways)
    )
    return FPGGrid(directions=(_UP,) * pathways, skipped=skipped, levels=levels)


@dataclass(frozen=True, kw_only=True)
class FPGConfig:
    """A Feature Pyramid Grid on a backbone.

    Attributes:
        start_level: the finest backbone stage used; 0 is C2, 1 is C3.
        out_channels: channels of every node.
        grid: pathways, levels and transitions.
        extra_levels: how level inputs beyond the backbone's are made, each from the one before: `pool` subsamples
            by 2, `conv` is a 3x3 stride-2 convolution.
    """

    start_level: int
    out_channels: Count = 256
    grid: FPGGrid = dataclasses.field(default_factory=triangle_grid)
    extra_levels: Literal["pool", "conv"] = "pool"
    halves_exactly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def levels(self) -> int:
        return self.grid.levels
