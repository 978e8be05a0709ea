"""How many floating-point operations a detector takes, counted without memory or weights."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from fpg_zoo.config import DetectorConfig
from fpg_zoo.modeling.build import build_on_meta
from fpg_zoo.modeling.preprocess import padded_size, resized_size


@torch.no_grad()
def count_flops(config: DetectorConfig, size: tuple[int, int] | None = None) -> int:
    """The floating-point operations of convolutions and matrix products for one image.

    A multiplication and its addition count as two, as in `torch.utils.flop_counter`. The box head of a two-stage
    detector is counted for as many proposals, and its mask head for as many detections, as the config allows. RoIAlign,
    NMS and what goes value by value are left out.

    Args:
        config: of a detector whose parts are registered.
        size: (height, width) of the image in pixels, before it is resized and padded as `config.preprocess` says; a
            square one if None.

    Raises:
        ConfigError: a part is not registered.
    """
    resized = resized_size(*(size or (1, 1)), config.preprocess)
    height, width = padded_size(*resized, config.preprocess.pad_divisor)
    model = build_on_meta(config, "custom")
    with FlopCounterMode(display=False) as counter:
        model.run_layers(torch.empty(1, 3, height, width, device="meta"))
    return int(counter.get_total_flops())
