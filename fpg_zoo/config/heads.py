"""Heads as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

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
class SoftNMSConfig:
    """Soft-NMS (Bodla et al., arXiv 1704.04503): overlapping boxes lose score, where plain NMS drops them.

    Attributes:
        method: `linear` multiplies scores by 1 - IoU from the IoU threshold on; `gaussian` by exp(-IoU^2 / `sigma`).
        sigma: of `gaussian`.
        min_score: a box whose score falls below it is dropped, 0..1.
    """

    method: Literal["linear", "gaussian"] = "linear"
    sigma: AboveZero = 0.5
    min_score: Fraction = 0.001

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class BoxHeadConfig:
    """Box classification and regression on pooled RoIs, and the choice of detections.

    Attributes:
        width: of the two hidden layers.
        pool: cells along each side that RoIs are pooled to.
        delta_std: deltas are multiplied by these.
        score_threshold: the least score of a detection, 0..1.
        nms_iou: IoU over which NMS drops the worse of two boxes of a class, 0..1.
        detections: at most so many of each image.
        soft_nms: in place of plain NMS; `nms_iou` is then the threshold of `linear`.
        class_agnostic_nms: boxes of different classes suppress each other, too.
    """

    width: Count = 1024
    pool: Repeats = 7
    delta_std: tuple[AboveZero, AboveZero, AboveZero, AboveZero] = (0.1, 0.1, 0.2, 0.2)
    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.5
    detections: Count = 100
    soft_nms: SoftNMSConfig | None = None
    class_agnostic_nms: bool = False

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

    @property
    def soft_nms(self) -> SoftNMSConfig | None:
        """In place of plain NMS."""

    @property
    def class_agnostic_nms(self) -> bool:
        """Boxes of different classes suppress each other, too."""


@dataclass(frozen=True, kw_only=True)
class RetinaHeadConfig:
    """RetinaNet head, tower convolutions shared over the levels and BatchNorms per level (RetinaSepBN).

    Attributes:
        anchors: of each level.
        width, depth: channels and convolutions of each tower.
        candidates_per_level: at most so many pairs of anchor and class of each level go into NMS.
        score_threshold, nms_iou, detections, soft_nms, class_agnostic_nms: as of `BoxHeadConfig`.
    """

    anchors: AnchorConfig
    width: Count = 256
    depth: Repeats = 4
    score_threshold: Fraction = 0.05
    candidates_per_level: Count = 1000
    nms_iou: Fraction = 0.5
    detections: Count = 100
    soft_nms: SoftNMSConfig | None = None
    class_agnostic_nms: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
