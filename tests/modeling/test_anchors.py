"""Anchors: sizes, order and layout, with every expected number worked out by hand."""

from __future__ import annotations

import pytest
import torch

from fpg_zoo.config import AnchorConfig
from fpg_zoo.config.catalog import RETINA_ANCHORS, RPN_ANCHORS
from fpg_zoo.modeling.heads.anchors import anchors_like, cell_anchors, level_anchors, per_anchor

CPU = torch.device("cpu")


def _sizes(anchors):
    return anchors[:, 2:] - anchors[:, :2]


# Base 4 * 8 = 32 at stride 4. Ratio r = h / w at area 32^2: w = 32 / sqrt(r), h = 32 sqrt(r); 32 sqrt(2) = 45.254834
# and 32 / sqrt(2) = 22.627417. A stride twice as large doubles all.
RPN_SIZES = [(45.254834, 22.627417), (32.0, 32.0), (22.627417, 45.254834)]


@pytest.mark.parametrize(("stride", "factor"), [(4, 1), (8, 2), (16, 4), (32, 8), (64, 16)])
def test_rpn_anchors_have_scale_8_and_three_ratios(stride, factor):
    anchors = cell_anchors(stride, RPN_ANCHORS)
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(_sizes(anchors), torch.tensor(RPN_SIZES) * factor)


def test_retinanet_anchors_have_three_scales_an_octave_and_the_ratio_outermost():
    # At stride 8 the scales are 8 * 4 * 2^(0, 1/3, 2/3) = 32, 40.317474, 50.796834. Ratio 0.5: widths times
    # sqrt(2) = 45.254834, 57.017519, 71.837571, heights over sqrt(2) = 22.627417, 28.508760, 35.918786.
    expected = [
        [45.254834, 22.627417],
        [57.017519, 28.508760],
        [71.837571, 35.918786],
        [32.0, 32.0],
        [40.317474, 40.317474],
        [50.796834, 50.796834],
        [22.627417, 45.254834],
        [28.508760, 57.017519],
        [35.918786, 71.837571],
    ]
    torch.testing.assert_close(_sizes(cell_anchors(8, RETINA_ANCHORS)), torch.tensor(expected))


@pytest.mark.parametrize("config", [RPN_ANCHORS, RETINA_ANCHORS])
def test_cell_anchors_are_centred_on_the_origin(config):
    for stride in config.strides:
        anchors = cell_anchors(stride, config)
        assert anchors.shape == (config.per_cell, 4)
        assert torch.equal(anchors[:, :2], -anchors[:, 2:])


def test_anchor_sizes_are_not_rounded():
    # Stride 3, scale 1, ratio 1: 3 wide, so the corners are at +-1.5.
    anchors = cell_anchors(3, AnchorConfig(strides=(3,), scales=(1.0,), ratios=(1.0,)))
    assert anchors.tolist() == [[-1.5, -1.5, 1.5, 1.5]]


def test_per_cell_counts_scales_times_ratios():
    assert RPN_ANCHORS.per_cell == 3  # 1 scale x 3 ratios
    assert RETINA_ANCHORS.per_cell == 9  # 3 scales x 3 ratios
    assert AnchorConfig(strides=(4,), scales=(1.0, 2.0), ratios=(1.0,)).per_cell == 2


def test_a_level_runs_along_rows_and_centres_on_the_cells_corners():
    # One 8 x 8 anchor per cell, stride 8, 2 rows of 3 cells: centers (0, 0), (8, 0), (16, 0), then the row y = 8.
    config = AnchorConfig(strides=(8,), scales=(1.0,), ratios=(1.0,))
    assert level_anchors(2, 3, 8, config, CPU).tolist() == [
        [-4, -4, 4, 4],
        [4, -4, 12, 4],
        [12, -4, 20, 4],
        [-4, 4, 4, 12],
        [4, 4, 12, 12],
        [12, 4, 20, 12],
    ]


def test_the_anchors_of_a_cell_stand_together():
    # Ratio 1, scales 1 and 2 at stride 4: 4 x 4 and 8 x 8. Two cells in a row, centers (0, 0) and (4, 0).
    config = AnchorConfig(strides=(4,), scales=(1.0, 2.0), ratios=(1.0,))
    assert level_anchors(1, 2, 4, config, CPU).tolist() == [
        [-2, -2, 2, 2],
        [-4, -4, 4, 4],
        [2, -2, 6, 2],
        [0, -4, 8, 4],
    ]


@pytest.mark.parametrize("config", [RPN_ANCHORS, RETINA_ANCHORS])
@pytest.mark.parametrize("stride", [8, 64])
def test_every_anchor_is_centred_at_its_cell_times_the_stride(config, stride):
    height, width = 3, 5
    anchors = level_anchors(height, width, stride, config, CPU)
    assert anchors.shape == (height * width * config.per_cell, 4)
    assert anchors.dtype == torch.float32
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    expected = [(x * stride, y * stride) for y in range(height) for x in range(width) for _ in range(config.per_cell)]
    torch.testing.assert_close(centres, torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0)


def test_anchors_like_gives_each_map_the_anchors_of_its_stride():
    config = AnchorConfig(strides=(4, 8), scales=(1.0,), ratios=(1.0,))
    fine, coarse = anchors_like([torch.zeros(2, 7, 2, 2), torch.zeros(2, 7, 1, 1)], config)
    assert fine.tolist() == [[-2, -2, 2, 2], [2, -2, 6, 2], [-2, 2, 2, 6], [2, 2, 6, 6]]
    assert coarse.tolist() == [[-4, -4, 4, 4]]


def test_anchors_like_refuses_another_number_of_maps_than_strides():
    with pytest.raises(ValueError, match="zip"):
        anchors_like([torch.zeros(1, 1, 2, 2)], RPN_ANCHORS)


def test_per_anchor_brings_a_heads_output_into_the_order_of_the_anchors():
    images, anchors, values, height, width = 2, 3, 4, 2, 5
    # Each value spells its own place: image, anchor, value, row, column; the anchor is the outer part of the channel.
    x = torch.empty(images, anchors * values, height, width)
    for n in range(images):
        for a in range(anchors):
            for v in range(values):
                for row in range(height):
                    for column in range(width):
                        x[n, a * values + v, row, column] = int(f"{n}{a}{v}{row}{column}")
    result = per_anchor(x, values)
    assert result.shape == (images, height * width * anchors, values)
    for n in range(images):
        place = 0
        for row in range(height):
            for column in range(width):
                for a in range(anchors):
                    assert result[n, place].tolist() == [int(f"{n}{a}{v}{row}{column}") for v in range(values)]
                    place += 1


def test_per_anchor_and_level_anchors_agree_on_which_anchor_is_meant():
    # A head that outputs each cell's center and each anchor's index, on a 2 x 3 map at stride 8.
    config = AnchorConfig(strides=(8,), scales=(1.0, 3.0), ratios=(1.0,))
    x = torch.empty(1, 2 * 3, 2, 3)
    for a in range(2):
        for row in range(2):
            for column in range(3):
                x[0, 3 * a : 3 * a + 3, row, column] = torch.tensor([column * 8.0, row * 8.0, [8.0, 24.0][a]])
    anchors = level_anchors(2, 3, 8, config, CPU)
    told = per_anchor(x, 3)[0]
    assert torch.equal((anchors[:, :2] + anchors[:, 2:]) / 2, told[:, :2])
    assert torch.equal(anchors[:, 2] - anchors[:, 0], told[:, 2])
