"""Backbones as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fpg_zoo.config.validation import MAX_REPEATS, check_one_of, check_positive, entries

BACKBONE_STAGES = 4  # C2..C5


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet with torchvision's layout: `depths` blocks per stage, the stem `width` channels wide."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64

    def __post_init__(self) -> None:
        check_one_of(("basic", "bottleneck"), block=self.block)
        check_positive(width=self.width)
        check_positive(MAX_REPEATS, **entries(BACKBONE_STAGES, depths=self.depths))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of C2..C5."""
        expansion = 4 if self.block == "bottleneck" else 1
        return tuple(self.width * 2**stage * expansion for stage in range(BACKBONE_STAGES))
