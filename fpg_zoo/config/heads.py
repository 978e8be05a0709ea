"""Heads as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from fpg_zoo.config.validation import (
    MAX_REPEATS,
    AboveZero,
    Count,
    Fraction,
    Repeats,
    check_fields,
    check_not_empty,
    check_positive,
)


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Anchors per cell: for each ratio h/w, for each scale, a box of area (stride * scale)^2 on the cell's corner."""

    strides: Annotated[tuple[Count, ...], check_not_empty]
    scales: Annotated[tuple[AboveZero, ...], check_not_empty]
    ratios: Annotated[tuple[AboveZero, ...], check_not_empty] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(MAX_REPEATS, per_cell=self.per_cell)

    @property
    def per_cell(self) -> int:
        return len(self.scales) * len(self.ratios)


@dataclass(frozen=True, kw_only=True)
class RPNConfig:
    """Region proposal head and the choice of proposals at inference."""

    anchors: AnchorConfig
    width: Count = 256
    candidates_per_level: Count = 1000
    nms_iou: Fraction = 0.7
    proposals: Count = 1000

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class BoxHeadConfig:
    """Box classification and regression on pooled RoIs, and the choice of detections."""

    width: Count = 1024
    pool: Repeats = 7
    delta_std: tuple[AboveZero, AboveZero, AboveZero, AboveZero] = (0.1, 0.1, 0.2, 0.2)
    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.5
    detections: Count = 100

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig:
    """Mask maps of 2 * `pool` squared on the detected boxes."""

    width: Count = 256
    depth: Repeats = 4
    pool: Repeats = 14

    def __post_init__(self) -> None:
        check_fields(self)


class DenseHeadConfig(Protocol):
    """What the config of any head of a RetinaNet says; one of your own is a frozen dataclass with these attributes."""

    @property
    def anchors(self) -> AnchorConfig:
        """Of each level of the pyramid."""

    @property
    def score_threshold(self) -> float:
        """The least score of a detection, 0..1."""

    @property
    def candidates_per_level(self) -> int:
        """At most so many pairs of anchor and class of each level go into NMS."""

    @property
    def nms_iou(self) -> float:
        """IoU over which NMS drops the worse of two boxes of a class, 0..1."""

    @property
    def detections(self) -> int:
        """At most so many of each image."""


@dataclass(frozen=True, kw_only=True)
class RetinaHeadConfig:
    """RetinaNet head, tower convolutions shared over the levels and BatchNorms per level (RetinaSepBN)."""

    anchors: AnchorConfig
    width: Count = 256
    depth: Repeats = 4
    score_threshold: Fraction = 0.05
    candidates_per_level: Count = 1000
    nms_iou: Fraction = 0.5
    detections: Count = 100

    def __post_init__(self) -> None:
        check_fields(self)
