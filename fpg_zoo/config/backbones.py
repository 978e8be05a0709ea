"""Backbones as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from fpg_zoo.config.validation import Count, Repeats, check_fields

BACKBONE_STAGES = 4  # C2..C5


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
    """A ResNet with torchvision's layout: `depths` blocks per stage, the stem `width` channels wide."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[Repeats, Repeats, Repeats, Repeats] = (3, 4, 6, 3)
    width: Count = 64

    def __post_init__(self) -> None:
        check_fields(self)

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
        if self.block == "bottleneck" and self.depths == (3, 4, 6, 3) and self.width == 64:
            return "ResNet-50"
        return f"ResNet of {self.block} blocks ({', '.join(map(str, self.depths))}), {self.width} channels wide"
