"""Backbones as data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from fpg_zoo.config.validation import Count, Repeats, check_fields, check_not_empty
from fpg_zoo.errors import ConfigError
from fpg_zoo.text import quoted

BACKBONE_STAGES = 4  # C2..C5
TIMM_PREFIX = "timm:"  # before timm's name where a backbone is named


class BackboneConfig(Protocol):
    """What any backbone's config says; one of your own is a frozen dataclass with these attributes or properties."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each stage, fine to coarse."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each stage, in pixels; each is twice the one before."""

    @property
    def label(self) -> str:
        """Its name for people, such as `ResNet-50`."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet (He et al., arXiv 1512.03385) or ResNeXt (Xie et al., arXiv 1611.05431) with torchvision's layout.

    Attributes:
        block: `basic` has two 3x3 convolutions, `bottleneck` a 3x3 one between two of 1x1.
        depths: blocks of each stage.
        width: channels of the stem.
        groups: of the 3x3 convolutions of bottlenecks.
        width_per_group: channels of each group in the first stage's 3x3 convolutions, for a stem of 64.
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[Repeats, Repeats, Repeats, Repeats] = (3, 4, 6, 3)
    width: Count = 64
    groups: Count = 1
    width_per_group: Count = 64

    def __post_init__(self) -> None:
        check_fields(self)
        if self.block == "basic" and (self.groups, self.width_per_group) != (1, 64):
            raise ConfigError(
                f"groups={self.groups}, width_per_group={self.width_per_group}: basic blocks take 1 and 64; "
                "give block='bottleneck'"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of C2..C5."""
        expansion = 4 if self.block == "bottleneck" else 1
        return tuple(self.width * 2**stage * expansion for stage in range(BACKBONE_STAGES))

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of C2..C5 in pixels."""
        return tuple(4 * 2**stage for stage in range(BACKBONE_STAGES))

    @property
    def label(self) -> str:
        """Its name for people."""
        for name, config in RESNETS.items():
            if config == self:
                kind, depth, *rest = re.findall(r"wide_resnet|resnet|resnext|\d+x\d+d|\d+", name)
                return " ".join([f"{_KINDS[kind]}-{depth}", *rest])
        return f"ResNet of {self.block} blocks ({', '.join(map(str, self.depths))}), {self.width} channels wide"


_KINDS = {"resnet": "ResNet", "resnext": "ResNeXt", "wide_resnet": "Wide ResNet"}
_DEEP, _DEEPER = (3, 4, 23, 3), (3, 8, 36, 3)
# By torchvision's names.
RESNETS: dict[str, ResNetConfig] = {
    "resnet18": ResNetConfig(block="basic", depths=(2, 2, 2, 2)),
    "resnet34": ResNetConfig(block="basic"),
    "resnet50": ResNetConfig(),
    "resnet101": ResNetConfig(depths=_DEEP),
    "resnet152": ResNetConfig(depths=_DEEPER),
    "resnext50_32x4d": ResNetConfig(groups=32, width_per_group=4),
    "resnext101_32x8d": ResNetConfig(depths=_DEEP, groups=32, width_per_group=8),
    "resnext101_64x4d": ResNetConfig(depths=_DEEP, groups=64, width_per_group=4),
    "wide_resnet50_2": ResNetConfig(width_per_group=128),
    "wide_resnet101_2": ResNetConfig(depths=_DEEP, width_per_group=128),
}


def check_timm_name(name: object) -> None:
    """Refuse what timm would take for a place in the network, or a folder, as a name with a colon.

    Raises:
        ConfigError: it is no plain name.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.\-]{1,200}", name, re.ASCII):
        raise ConfigError(f"name={quoted(name)}: give timm's name of a model, of letters, digits, '_', '.', '-'")


@dataclass(frozen=True, kw_only=True)
class TimmConfig:
    """A model of the timm library as a backbone; `fpg_zoo.modeling.backbones.timm_backbone` makes one of a name.

    Attributes:
        name: timm's, such as `convnext_tiny.fb_in22k`; the tag after the dot says which weights.
        indices: which of timm's feature maps are the stages.
        channels, strides: of each stage, fine to coarse, as timm's `feature_info` has them.
        channels_last: timm gives the maps as (N, H, W, C).
    """

    name: str
    indices: Annotated[tuple[int, ...], check_not_empty]
    channels: Annotated[tuple[Count, ...], check_not_empty]
    strides: Annotated[tuple[Count, ...], check_not_empty]
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_timm_name(self.name)
        if not len(self.indices) == len(self.channels) == len(self.strides):
            raise ConfigError(
                f"indices, channels and strides have {len(self.indices)}, {len(self.channels)} and {len(self.strides)} "
                "entries: give one of each for every stage"
            )
        doubled = tuple(self.strides[0] * 2**stage for stage in range(len(self.strides)))
        if self.strides != doubled:
            raise ConfigError(f"strides={self.strides}: each stage takes twice the stride of the one before")

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.name} of timm"
