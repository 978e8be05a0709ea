"""Whole detectors as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fpg_zoo.config.backbones import BackboneConfig
from fpg_zoo.config.heads import AnchorConfig, BoxHeadConfig, DenseHeadConfig, MaskHeadConfig, RPNConfig
from fpg_zoo.config.necks import NeckConfig
from fpg_zoo.config.validation import (
    AboveZero,
    Count,
    Number,
    check_fields,
    check_multiple,
    check_not_empty,
    check_one_of,
)
from fpg_zoo.errors import ConfigError
from fpg_zoo.text import quoted


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """From decoded RGB pixels to the network's input.

    Attributes:
        longest_side: an image is scaled so that its longest side has this many pixels.
        mean, std: per channel in `channel_order`, on the 0..255 scale.
        pad_divisor: height and width are zero-padded right and bottom to a multiple of this.
        shortest_side: an image is scaled less where its shortest side would have more pixels than this; None for no
            limit.
        fixed_size: (height, width) in pixels that every image is stretched to, in place of scaling. Training scales
            all the same.
        channel_order: of the network's input.
    """

    longest_side: Count = 640
    mean: tuple[Number, Number, Number] = (123.675, 116.28, 103.53)
    std: tuple[AboveZero, AboveZero, AboveZero] = (58.395, 57.12, 57.375)
    pad_divisor: Count = 64
    shortest_side: Count | None = None
    fixed_size: tuple[Count, Count] | None = None
    channel_order: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def square_size(self) -> tuple[int, int]:
        """(height, width) that a square image is resized to."""
        side = min(self.longest_side, self.shortest_side or self.longest_side)
        return self.fixed_size or (side, side)


@dataclass(frozen=True, kw_only=True)
class TwoStageConfig:
    """Faster R-CNN (`mask` is None) or Mask R-CNN. RoIs are pooled from the `roi_levels` finest levels."""

    backbone: BackboneConfig
    neck: NeckConfig
    rpn: RPNConfig
    box: BoxHeadConfig
    mask: MaskHeadConfig | None
    class_names: Annotated[tuple[str, ...], check_not_empty]
    preprocess: PreprocessConfig
    roi_levels: int = 4
    keep_empty_crops: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        _check_classes(self.class_names)
        _check_pyramid(self.rpn.anchors, self.backbone, self.neck, self.preprocess)
        check_one_of(tuple(range(1, self.neck.levels + 1)), roi_levels=self.roi_levels)

    @property
    def has_masks(self) -> bool:
        """Whether it detects masks."""
        return self.mask is not None

    @property
    def method(self) -> str:
        """Its name for people."""
        return "Mask R-CNN" if self.has_masks else "Faster R-CNN"


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig:
    """RetinaNet: one dense head on every pyramid level."""

    backbone: BackboneConfig
    neck: NeckConfig
    head: DenseHeadConfig
    class_names: Annotated[tuple[str, ...], check_not_empty]
    preprocess: PreprocessConfig
    has_masks: ClassVar[bool] = False
    method: ClassVar[str] = "RetinaNet"
    keep_empty_crops: ClassVar[bool] = False  # of training images, as its published schedule has it

    def __post_init__(self) -> None:
        check_fields(self)
        _check_classes(self.class_names)
        _check_pyramid(self.head.anchors, self.backbone, self.neck, self.preprocess)


def _check_classes(names: tuple[str, ...]) -> None:
    seen = set()
    for number, name in enumerate(names):
        place = f"class_names[{number}]"
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{place}={quoted(name)}: it takes a text that is not blank")
        if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
            raise ConfigError(f"{place}={quoted(name)}: it holds half a character (a lone surrogate); correct the name")
        if name in seen:
            raise ConfigError(f"{place}={quoted(name)} is there twice: give each class a name of its own")
        seen.add(name)


def pyramid_strides(backbone: BackboneConfig, neck: NeckConfig) -> tuple[int, ...]:
    """The stride of each level in pixels, fine to coarse."""
    return tuple(backbone.strides[neck.start_level] * 2**level for level in range(neck.levels))


def fitting_divisor(divisor: int, backbone: BackboneConfig, neck: NeckConfig) -> int:
    """The least multiple of a `pad_divisor` that suits a pyramid."""
    return math.lcm(divisor, pyramid_strides(backbone, neck)[-1] if neck.halves_exactly else 1)


def _check_pyramid(
    anchors: AnchorConfig, backbone: BackboneConfig, neck: NeckConfig, preprocess: PreprocessConfig
) -> None:
    check_one_of(tuple(range(len(backbone.strides))), **{"neck.start_level": neck.start_level})
    strides = pyramid_strides(backbone, neck)
    if anchors.strides != strides:
        raise ConfigError(
            f"anchors have strides {quoted(anchors.strides)}: the neck's {neck.levels} levels from backbone stage "
            f"{neck.start_level} have {strides}, give the anchors those or choose another neck"
        )
    if neck.halves_exactly:
        check_multiple(strides[-1], **{"preprocess.pad_divisor": preprocess.pad_divisor})


DetectorConfig = TwoStageConfig | RetinaNetConfig
