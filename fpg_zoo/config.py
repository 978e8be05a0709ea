"""What a detector is made of, as data: frozen dataclasses without torch; `config_io` writes and reads them as JSON.

A detector config holds everything that decides the tensors of a model and the arithmetic of its detections.
Each config is consumed once, by the module of the same name in `fpg_zoo.modeling`. All raise ConfigError when they are
made of values that describe no detector.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from fpg_zoo.config_checks import (
    check_above_zero,
    check_fractions,
    check_multiple,
    check_numbers,
    check_one_of,
    check_positive,
    check_tuples,
    entries,
)
from fpg_zoo.errors import ConfigError
from fpg_zoo.text import quoted

SCHEMA_VERSION = 1
BACKBONE_STAGES = 4  # C2..C5

# Limits that nobody should meet, so that no file keeps its reader building.
_MOST_REPEATED = 256  # of what is built again and again: blocks, pathways, stacks, cells of a pooled region
_MOST_LEVELS = 16
MOST_CLASSES = 2**16


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """From decoded RGB pixels to the network's input.

    Attributes:
        longest_side: an image is scaled so that its longest side has this many pixels.
        mean, std: per RGB channel, on the 0..255 scale.
        pad_divisor: height and width are zero-padded right and bottom to a multiple of this.
    """

    longest_side: int = 640
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    pad_divisor: int = 64

    def __post_init__(self) -> None:
        check_positive(longest_side=self.longest_side, pad_divisor=self.pad_divisor)
        check_numbers(**entries(3, mean=self.mean))
        check_above_zero(**entries(3, std=self.std))


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet with torchvision's layout: `depths` blocks per stage, the stem `width` channels wide."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64

    def __post_init__(self) -> None:
        check_one_of(("basic", "bottleneck"), block=self.block)
        check_positive(width=self.width)
        check_positive(_MOST_REPEATED, **entries(BACKBONE_STAGES, depths=self.depths))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of C2..C5."""
        expansion = 4 if self.block == "bottleneck" else 1
        return tuple(self.width * 2**stage * expansion for stage in range(BACKBONE_STAGES))


@dataclass(frozen=True, kw_only=True)
class FPNConfig:
    """Feature Pyramid Network (Lin et al., arXiv 1612.03144) with BatchNorm.

    Attributes:
        start: the finest backbone stage used; 0 is C2, 1 is C3.
        width: channels of every output level.
        levels: output levels, those of the backbone first.
        extra_levels: how levels beyond the backbone's are made: `pool` subsamples the coarsest output by 2;
            `conv` applies strided convolutions to C5, which goes with laterals that have a bias and no norm.
    """

    start: int
    width: int = 256
    levels: int = 5
    extra_levels: Literal["pool", "conv"] = "pool"

    def __post_init__(self) -> None:
        check_positive(width=self.width)
        check_positive(_MOST_LEVELS, levels=self.levels)
        check_one_of(("pool", "conv"), extra_levels=self.extra_levels)


@dataclass(frozen=True, kw_only=True)
class NASFPNConfig:
    """NAS-FPN (Ghiasi et al., arXiv 1904.07392), the 7-merge cell over P3..P7, repeated `stacks` times."""

    width: int = 256
    stacks: int = 7

    def __post_init__(self) -> None:
        check_positive(width=self.width)
        check_positive(_MOST_REPEATED, stacks=self.stacks)

    @property
    def start(self) -> int:
        """The cell is made for C3..C5."""
        return 1

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
            neighbour of the same pathway. `down`: built coarse to fine, each node receives its coarser neighbour.
        skipped: per pathway, the levels it leaves untouched; the node there is the previous pathway's.
        levels: pyramid levels.
        along: the transition inside a pathway exists (SameUp or SameDown in the paper).
        lateral: from the same level of the previous pathway (AcrossSame): a 1x1 convolution, the map itself, or None.
        skip: from the level input (AcrossSkip): a 1x1 convolution, the map itself, or None.
        across_from_coarser: from the coarser neighbour in the previous pathway (AcrossDown).
        across_from_finer: from the finer neighbour in the previous pathway (AcrossUp).

    Raises:
        ConfigError: the grid has no pathway, skips a level that does not exist or a whole pathway, or has a node
            that nothing flows into.
    """

    directions: tuple[Direction, ...]
    skipped: tuple[tuple[int, ...], ...]
    levels: int = 5
    along: bool = True
    lateral: Mapped | None = "conv"
    skip: Mapped | None = "conv"
    across_from_coarser: bool = True
    across_from_finer: bool = False

    def __post_init__(self) -> None:
        check_tuples(directions=self.directions, skipped=self.skipped)
        check_positive(_MOST_LEVELS, levels=self.levels)
        if self.levels < 2:
            raise ConfigError(f"levels={self.levels}: a grid needs at least 2 levels to pass anything between them")
        if not self.directions:
            raise ConfigError("directions=(): a grid needs at least one pathway; give 'up' or 'down' for each")
        check_positive(_MOST_REPEATED, pathways=self.pathways)
        for pathway, direction in enumerate(self.directions):
            check_one_of(("up", "down"), **{f"directions[{pathway}]": direction})
        check_one_of(("conv", "identity", None), lateral=self.lateral, skip=self.skip)
        check_one_of((True, False), along=self.along)
        check_one_of(
            (True, False), across_from_coarser=self.across_from_coarser, across_from_finer=self.across_from_finer
        )
        if len(self.skipped) != self.pathways:
            raise ConfigError(
                f"skipped has {len(self.skipped)} entries for {self.pathways} pathways: give one tuple of levels per "
                "pathway, () where it touches all of them"
            )
        for pathway, levels in enumerate(self.skipped):
            if not isinstance(levels, tuple):
                raise ConfigError(f"skipped[{pathway}]={quoted(levels)}: give a tuple of levels, () for none")
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
        start: the finest backbone stage used; 0 is C2, 1 is C3.
        width: channels of every node.
        grid: pathways, levels and transitions.
        extra_levels: how level inputs beyond the backbone's are made, each from the one before: `pool` subsamples
            by 2, `conv` is a 3x3 stride-2 convolution.
    """

    start: int
    width: int = 256
    grid: FPGGrid = dataclasses.field(default_factory=triangle_grid)
    extra_levels: Literal["pool", "conv"] = "pool"

    def __post_init__(self) -> None:
        check_positive(width=self.width)
        check_one_of(("pool", "conv"), extra_levels=self.extra_levels)

    @property
    def levels(self) -> int:
        return self.grid.levels


NeckConfig = FPNConfig | FPGConfig | NASFPNConfig


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Anchors per cell: for each ratio h/w, for each scale, a box of area (stride * scale)^2 on the cell's corner."""

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        check_positive(**entries(strides=self.strides))
        check_above_zero(**entries(scales=self.scales, ratios=self.ratios))
        check_positive(_MOST_REPEATED, per_cell=self.per_cell)

    @property
    def per_cell(self) -> int:
        return len(self.scales) * len(self.ratios)


@dataclass(frozen=True, kw_only=True)
class RPNConfig:
    """Region proposal head and the choice of proposals at inference."""

    anchors: AnchorConfig
    width: int = 256
    candidates_per_level: int = 1000
    nms_iou: float = 0.7
    proposals: int = 1000

    def __post_init__(self) -> None:
        check_positive(width=self.width, candidates_per_level=self.candidates_per_level, proposals=self.proposals)
        check_fractions(nms_iou=self.nms_iou)


@dataclass(frozen=True, kw_only=True)
class BoxHeadConfig:
    """Box classification and regression on pooled regions, and the choice of detections."""

    width: int = 1024
    pool: int = 7
    delta_std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    detections: int = 100

    def __post_init__(self) -> None:
        check_positive(width=self.width, detections=self.detections)
        check_positive(_MOST_REPEATED, pool=self.pool)
        check_above_zero(**entries(4, delta_std=self.delta_std))
        check_fractions(score_threshold=self.score_threshold, nms_iou=self.nms_iou)


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig:
    """Mask maps of 2 * `pool` squared on the detected boxes."""

    width: int = 256
    depth: int = 4
    pool: int = 14

    def __post_init__(self) -> None:
        check_positive(width=self.width)
        check_positive(_MOST_REPEATED, depth=self.depth, pool=self.pool)


@dataclass(frozen=True, kw_only=True)
class RetinaHeadConfig:
    """RetinaNet head, tower convolutions shared over the levels and BatchNorms per level (RetinaSepBN)."""

    anchors: AnchorConfig
    width: int = 256
    depth: int = 4
    score_threshold: float = 0.05
    candidates_per_level: int = 1000
    nms_iou: float = 0.5
    detections: int = 100

    def __post_init__(self) -> None:
        check_positive(width=self.width, candidates_per_level=self.candidates_per_level, detections=self.detections)
        check_positive(_MOST_REPEATED, depth=self.depth)
        check_fractions(score_threshold=self.score_threshold, nms_iou=self.nms_iou)


@dataclass(frozen=True, kw_only=True)
class TwoStageConfig:
    """Faster R-CNN (`mask` is None) or Mask R-CNN. Regions are pooled from the `roi_levels` finest levels."""

    backbone: ResNetConfig
    neck: NeckConfig
    rpn: RPNConfig
    box: BoxHeadConfig
    mask: MaskHeadConfig | None
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    roi_levels: int = 4

    def __post_init__(self) -> None:
        _check_classes(self.class_names)
        _check_pyramid(self.rpn.anchors, self.neck, self.preprocess)
        check_one_of(tuple(range(1, self.neck.levels + 1)), roi_levels=self.roi_levels)


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig:
    """RetinaNet: one dense head on every pyramid level."""

    backbone: ResNetConfig
    neck: NeckConfig
    head: RetinaHeadConfig
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig

    def __post_init__(self) -> None:
        _check_classes(self.class_names)
        _check_pyramid(self.head.anchors, self.neck, self.preprocess)


def _check_classes(names: tuple[str, ...]) -> None:
    seen = set()
    for place, name in entries(class_names=names).items():
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{place}={quoted(name)}: it takes a text that is not blank")
        if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
            raise ConfigError(f"{place}={quoted(name)}: it holds half a character (a lone surrogate); correct the name")
        if name in seen:
            raise ConfigError(f"{place}={quoted(name)} is there twice: give each class a name of its own")
        seen.add(name)


def _check_pyramid(anchors: AnchorConfig, neck: NeckConfig, preprocess: PreprocessConfig) -> None:
    check_one_of(tuple(range(BACKBONE_STAGES)), **{"neck.start": neck.start})
    # C2 has stride 4, and each stage or level half the cells of the one before.
    strides = tuple(4 * 2 ** (neck.start + level) for level in range(neck.levels))
    if anchors.strides != strides:
        raise ConfigError(
            f"anchors have strides {quoted(anchors.strides)}: the neck's {neck.levels} levels from backbone stage "
            f"{neck.start} have {strides}, give the anchors those or choose another neck"
        )
    if not isinstance(neck, FPNConfig):  # whose additions take maps of any size
        check_multiple(strides[-1], **{"preprocess.pad_divisor": preprocess.pad_divisor})


DetectorConfig = TwoStageConfig | RetinaNetConfig
