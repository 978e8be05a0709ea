"""Heads as data."""

from __future__ import annotations

from dataclasses import dataclass

from fpg_zoo.config.validation import MAX_REPEATS, check_above_zero, check_fractions, check_positive, indexed


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Anchors per cell: for each ratio h/w, for each scale, a box of area (stride * scale)^2 on the cell's corner."""

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        check_positive(**indexed(strides=self.strides))
        check_above_zero(**indexed(scales=self.scales, ratios=self.ratios))
        check_positive(MAX_REPEATS, per_cell=self.per_cell)

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
        check_positive(MAX_REPEATS, pool=self.pool)
        check_above_zero(**indexed(4, delta_std=self.delta_std))
        check_fractions(score_threshold=self.score_threshold, nms_iou=self.nms_iou)


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig:
    """Mask maps of 2 * `pool` squared on the detected boxes."""

    width: int = 256
    depth: int = 4
    pool: int = 14

    def __post_init__(self) -> None:
        check_positive(width=self.width)
        check_positive(MAX_REPEATS, depth=self.depth, pool=self.pool)


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
        check_positive(MAX_REPEATS, depth=self.depth)
        check_fractions(score_threshold=self.score_threshold, nms_iou=self.nms_iou)
