"""Regions of interest: how boxes become regions, and from which pyramid level each is pooled."""

from __future__ import annotations

import pytest
import torch

from fpg_zoo.modeling.roi_heads import RegionPooling, regions_of

STRIDES = (4, 8, 16, 32)


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [
        # behaviour.md: floor(log2(sqrt(w * h) / 56 + 1e-6)), limited to 0..3.
        (10, 10, 0),  # log2(10 / 56) is negative
        (111, 111, 0),  # 111 / 56 = 1.98 < 2
        (112, 112, 1),  # 112 / 56 = 2
        (28, 448, 1),  # sqrt(28 * 448) = 112 as well
        (223, 223, 1),
        (224, 224, 2),  # 4
        (447, 447, 2),
        (448, 448, 3),  # 8
        (5000, 5000, 3),
        (0, 50, 0),  # log2(1e-6) is -20
    ],
)
def test_a_region_is_pooled_from_the_level_of_its_size(width, height, level):
    region = torch.tensor([[0.0, 30, 40, 30 + width, 40 + height]])
    assert RegionPooling(STRIDES, 7).levels(region).tolist() == [level]


def test_regions_carry_their_images_index_before_the_box():
    boxes = [torch.tensor([[1.0, 2, 3, 4]]), torch.zeros(0, 4), torch.tensor([[5.0, 6, 7, 8], [9.0, 10, 11, 12]])]
    assert regions_of(boxes).tolist() == [[0, 1, 2, 3, 4], [2, 5, 6, 7, 8], [2, 9, 10, 11, 12]]


def test_pooling_reads_the_right_image_and_level():
    # Map `l` of image `n` is 10 n + l throughout, so that a pooled region is too.
    pyramid = [
        torch.stack([torch.full((2, 512 // stride, 512 // stride), 10.0 * n + level) for n in range(2)])
        for level, stride in enumerate(STRIDES)
    ]
    regions = torch.tensor([[n, 0.0, 0, side, side] for n in (1, 0) for side in (500, 100, 300, 150)])
    pooled = RegionPooling(STRIDES, 7)(pyramid, regions)
    assert pooled.shape == (8, 2, 7, 7)
    assert [region.unique().tolist() for region in pooled] == [[13], [10], [12], [11], [3], [0], [2], [1]]


def test_no_regions_pool_to_nothing():
    pyramid = [torch.zeros(1, 2, 64 // stride, 64 // stride) for stride in STRIDES]
    assert RegionPooling(STRIDES, 7)(pyramid, torch.zeros(0, 5)).shape == (0, 2, 7, 7)
