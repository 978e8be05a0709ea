"""RoIs of interest: how boxes become RoIs, and from which pyramid level each is pooled."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from fpg_zoo.modeling.heads.roi_align import MultiLevelRoIAlign, aligned, boxes_to_rois

STRIDES = (4, 8, 16, 32)


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [
        # behavior.md: floor(log2(sqrt(w * h) / 56 + 1e-6)), limited to 0..3.
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
        (float("nan"), 50, 0),
        (-10, 50, 0),  # turned over: the root of a negative number
    ],
)
def test_a_region_is_pooled_from_the_level_of_its_size(width, height, level):
    region = torch.tensor([[0.0, 30, 40, 30 + width, 40 + height]])
    assert MultiLevelRoIAlign(STRIDES, 7).levels(region).tolist() == [level]


def test_regions_carry_their_images_index_before_the_box():
    boxes = [torch.tensor([[1.0, 2, 3, 4]]), torch.zeros(0, 4), torch.tensor([[5.0, 6, 7, 8], [9.0, 10, 11, 12]])]
    assert boxes_to_rois(boxes).tolist() == [[0, 1, 2, 3, 4], [2, 5, 6, 7, 8], [2, 9, 10, 11, 12]]


def test_pooling_reads_the_right_image_and_level():
    # Map `l` of image `n` is 10 n + l throughout, so that a pooled RoI is too.
    pyramid = [
        torch.stack([torch.full((2, 512 // stride, 512 // stride), 10.0 * n + level) for n in range(2)])
        for level, stride in enumerate(STRIDES)
    ]
    regions = torch.tensor([[n, 0.0, 0, side, side] for n in (1, 0) for side in (500, 100, 300, 150)])
    pooled = MultiLevelRoIAlign(STRIDES, 7)(pyramid, regions)
    assert pooled.shape == (8, 2, 7, 7)
    assert [region.round(decimals=4).unique().tolist() for region in pooled] == [
        [13],
        [10],
        [12],
        [11],
        [3],
        [0],
        [2],
        [1],
    ]


def test_no_regions_pool_to_nothing():
    pyramid = [torch.zeros(1, 2, 64 // stride, 64 // stride) for stride in STRIDES]
    assert MultiLevelRoIAlign(STRIDES, 7)(pyramid, torch.zeros(0, 5)).shape == (0, 2, 7, 7)


@pytest.mark.parametrize("pool", [7, 14])
@pytest.mark.slow
def test_regions_are_pooled_as_torchvision_pools_them(pool):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 20, 24, generator=generator)
    centres = torch.rand(200, 2, generator=generator) * 120 - 10
    sizes = 40 * torch.randn(200, 2, generator=generator).exp()
    boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=1)
    odd = [
        [0, 0, 0, 0],  # without an area
        [0, 0, 96, 80],  # the whole map
        [-2, -3, 97, 83],  # and a little more: its border stands for that
        [-400, 10, 400, 12],  # long, and mostly beyond the map
        [10, -4, 13, 500],
        [30, 30, 20, 20],  # turned over
        [500, 500, 600, 600],  # beyond
        [2, 2, 30, 30],  # samples exactly on pixels, a pixel apart
    ]
    boxes = torch.cat((boxes, torch.tensor(odd, dtype=torch.float)))
    regions = torch.cat((torch.arange(len(boxes))[:, None] % 2, boxes), dim=1)
    ours, theirs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    found = aligned(ours, regions, pool, 0.25)
    expected = roi_align(theirs, regions, pool, spatial_scale=0.25, sampling_ratio=0, aligned=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(expected.shape, generator=generator)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("box", [[float("nan"), 1, 2, 3], [30, 5, 20, 10], [0, 0, float("inf"), 5]])
def test_what_is_no_region_pools_to_zeros(box):
    pyramid = [torch.ones(1, 2, 64 // stride, 64 // stride) for stride in STRIDES]
    assert not MultiLevelRoIAlign(STRIDES, 7)(pyramid, torch.tensor([[0.0, *box]])).any()
