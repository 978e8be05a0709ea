"""What a detector costs: of layers counted by hand, and of the catalog's rows."""

from __future__ import annotations

import pytest

import fpg_zoo
from fpg_zoo.config.catalog import ARCHITECTURES, COSTS
from fpg_zoo.modeling.flops import count_flops


def test_the_parts_that_can_be_counted_by_hand() -> None:
    # The box head of 1,000 proposals: 48 x 7 x 7 to 256, to 256, to 81 classes and 320 deltas. The mask head of 100
    # detections: two 3x3 convolutions of 48 channels on 14 x 14, doubled by a 2x2 one, 80 maps of 28 x 28.
    box = 2 * 1000 * (48 * 49 * 256 + 256 * 256 + 256 * (81 + 320))
    mask = 2 * 100 * (2 * 9 * 48 * 48 * 14 * 14 + 4 * 48 * 48 * 14 * 14 + 48 * 80 * 28 * 28)
    config = fpg_zoo.model_info("faster_rcnn_nano_fpg").config
    small, large = (count_flops(config, (side, 384)) for side in (192, 384))
    assert large - small == small - box  # all but the box head goes by the number of pixels
    assert count_flops(fpg_zoo.model_info("mask_rcnn_nano_fpg").config) - large == mask


NAMES = [name if "nano" in name else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


@pytest.mark.parametrize("name", NAMES)
def test_the_catalogue_has_what_is_counted(name: str) -> None:
    config = fpg_zoo.model_info(name).config
    parameters = sum(parameter.numel() for parameter in fpg_zoo.create_model(name).parameters())
    assert (COSTS[name].parameters, COSTS[name].flops) == (parameters, count_flops(config))
