"""Box arithmetic, with every expected number worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fpg_zoo.structures.boxes import MAX_LOG_SCALE, clip, decode, has_area, nms_within

# Width 20, height 40, center (20, 40).
ANCHOR = torch.tensor([10.0, 20.0, 30.0, 60.0])
# Width 16, height 16, center (8, 8).
SMALL = torch.tensor([0.0, 0.0, 16.0, 16.0])


def test_decode_of_zero_deltas_gives_the_anchor():
    assert torch.equal(decode(ANCHOR, torch.zeros(4)), ANCHOR)


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        # Centre to (20 + 0.5 * 20, 40) = (30, 40); size stays 20 x 40.
        ((0.5, 0.0, 0.0, 0.0), (20, 20, 40, 60)),
        # Centre to (20, 40 - 0.25 * 40) = (20, 30).
        ((0.0, -0.25, 0.0, 0.0), (10, 10, 30, 50)),
        # Width 20 * 2 = 40 about x = 20.
        ((0.0, 0.0, math.log(2), 0.0), (0, 20, 40, 60)),
        # Height 40 / 2 = 20 about y = 40.
        ((0.0, 0.0, 0.0, math.log(0.5)), (10, 30, 30, 50)),
        # All at once: center (30, 30), size 40 x 20.
        ((0.5, -0.25, math.log(2), math.log(0.5)), (10, 20, 50, 40)),
    ],
)
def test_decode_moves_the_centre_by_the_size_and_scales_the_size_exponentially(deltas, expected):
    torch.testing.assert_close(decode(ANCHOR, torch.tensor(deltas)), torch.tensor(expected, dtype=torch.float32))


def test_decode_multiplies_the_deltas_by_std_first():
    # (5, -2.5, 5 ln 2, -5 ln 2) * (0.1, 0.1, 0.2, 0.2) = (0.5, -0.25, ln 2, -ln 2): center (30, 30), size 40 x 20.
    deltas = torch.tensor([5.0, -2.5, 5 * math.log(2), -5 * math.log(2)])
    torch.testing.assert_close(decode(ANCHOR, deltas, (0.1, 0.1, 0.2, 0.2)), torch.tensor([10.0, 20.0, 50.0, 40.0]))


def test_decode_clamps_log_sizes_at_the_logarithm_of_16_to_1000():
    assert pytest.approx(4.135167) == MAX_LOG_SCALE
    # Width 16 * 1000 / 16 = 1000, height 16 * 16 / 1000 = 0.256, center (8, 8).
    box = decode(SMALL, torch.tensor([0.0, 0.0, 100.0, -100.0]))
    torch.testing.assert_close(box, torch.tensor([-492.0, 7.872, 508.0, 8.128]))


def test_decode_clamps_after_std_and_not_before():
    # 20 * 0.2 = 4 is under ln(1000 / 16) = 4.135, so the width is 16 e^4 = 16 * 54.59815 = 873.5704.
    # 21 * 0.2 = 4.2 is over it, so the width is 1000.
    boxes = decode(SMALL, torch.tensor([[0.0, 0, 20, 0], [0.0, 0, 21, 0]]), (0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(boxes[:, 2] - boxes[:, 0], torch.tensor([873.5704, 1000.0]))


def test_decode_does_not_clamp_the_shift_of_the_centre():
    # Centre x = 8 + 16 * 10 = 168, width 16.
    torch.testing.assert_close(decode(SMALL, torch.tensor([10.0, 0, 0, 0])), torch.tensor([160.0, 0, 176, 16]))


def test_decode_keeps_leading_dimensions_and_broadcasts_std():
    anchors = torch.stack([ANCHOR, SMALL]).expand(3, 2, 4)
    boxes = decode(anchors, torch.zeros(3, 2, 4), (0.1, 0.1, 0.2, 0.2))
    assert boxes.shape == (3, 2, 4)
    assert torch.equal(boxes, anchors)


def test_decode_of_nothing_is_nothing():
    assert decode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((-5, 10, 20, 30), (0, 10, 20, 30)),  # left
        ((10, -6, 20, 30), (10, 0, 20, 30)),  # top
        ((10, 10, 120, 30), (10, 10, 100, 30)),  # right: the image is 100 wide
        ((10, 10, 20, 70), (10, 10, 20, 50)),  # bottom: the image is 50 high
        ((-5, -6, 120, 70), (0, 0, 100, 50)),  # all four
        ((0, 0, 100, 50), (0, 0, 100, 50)),  # the image itself
        ((150, 60, 160, 80), (100, 50, 100, 50)),  # beyond right and bottom: collapses onto the corner
        ((-9, -9, -1, -1), (0, 0, 0, 0)),  # beyond left and top
    ],
)
def test_clip_limits_each_side_to_the_image(box, expected):
    given = torch.tensor([box], dtype=torch.float32)
    before = given.clone()
    assert clip(given, (50, 100)).tolist() == [list(expected)]
    assert torch.equal(given, before), "clip must not change its input"


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 1, 1), True),
        ((5, 5, 5.001, 5.001), True),
        ((5, 0, 5, 10), False),  # no width
        ((0, 5, 10, 5), False),  # no height
        ((6, 0, 5, 10), False),  # x reversed
        ((0, 6, 10, 5), False),  # y reversed
        ((6, 6, 5, 5), False),  # both reversed: width * height would be positive
        ((float("nan"), 0, 5, 5), False),
    ],
)
def test_has_area_needs_positive_width_and_height(box, expected):
    assert has_area(torch.tensor([box])).tolist() == [expected]


def _kept(boxes, scores, groups, iou):
    return nms_within(torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores), torch.tensor(groups), iou)


@pytest.mark.parametrize(
    ("height", "iou", "expected"),
    [
        # A 10 x 10 box and its part of 10 x `height`: IoU = 10 * height / 100 = height / 10.
        (5.0, 0.5, [0, 1]),  # 0.5, equal to the threshold: kept
        (5.1, 0.5, [0]),  # 0.51
        (4.9, 0.5, [0, 1]),  # 0.49
        (7.0, 0.7, [0, 1]),  # 0.7
        (7.1, 0.7, [0]),  # 0.71
    ],
)
def test_an_iou_equal_to_the_threshold_is_kept_and_a_greater_one_is_not(height, iou, expected):
    assert _kept([[0, 0, 10, 10], [0, 0, 10, height]], [0.9, 0.8], [0, 0], iou).tolist() == expected


def test_iou_has_no_added_pixel():
    # Side by side they share only an edge: IoU 0. With the old +1 pixel it would be 1 * 5 / (25 + 25 - 5) = 0.11.
    assert _kept([[0, 0, 4, 4], [4, 0, 8, 4]], [0.9, 0.8], [0, 0], 0.1).tolist() == [0, 1]


def test_boxes_of_different_groups_never_suppress_each_other():
    same = [[0, 0, 10, 10]] * 4
    assert _kept(same, [0.6, 0.9, 0.7, 0.8], [0, 3, 79, 1], 0.5).tolist() == [1, 3, 2, 0]
    assert _kept(same, [0.6, 0.9, 0.7, 0.8], [7, 7, 7, 7], 0.5).tolist() == [1]


def test_a_group_moved_apart_does_not_land_on_a_far_box_of_another():
    # The largest coordinate is 20, so group 1 moves by 21: its (0, 0, 10, 10) becomes (21, 21, 31, 31), clear of
    # (10, 10, 20, 20). A shift by 10, the box's own size, would put it right there.
    assert _kept([[10, 10, 20, 20], [0, 0, 10, 10]], [0.9, 0.8], [0, 1], 0.5).tolist() == [0, 1]


def test_kept_boxes_come_best_first():
    boxes = [[0, 0, 5, 5], [10, 0, 15, 5], [20, 0, 25, 5]]
    assert _kept(boxes, [0.2, 0.9, 0.5], [0, 0, 0], 0.5).tolist() == [1, 2, 0]
    assert _kept(boxes, [0.2, 0.9, 0.5], [2, 0, 1], 0.5).tolist() == [1, 2, 0]


def test_equal_scores_keep_their_order():
    boxes = [[10 * i, 0, 10 * i + 5, 5] for i in range(6)]
    assert _kept(boxes, [0.5] * 6, [0] * 6, 0.5).tolist() == list(range(6))


def test_a_suppressed_box_suppresses_no_other():
    # Along x: A 0..10, B 4..14, C 8..18. IoU(A, B) = IoU(B, C) = 6 / 14 = 0.43, IoU(A, C) = 2 / 18 = 0.11.
    boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]
    assert _kept(boxes, [0.9, 0.8, 0.7], [0, 0, 0], 0.4).tolist() == [0, 2]


def test_nms_of_nothing_gives_no_indices():
    kept = nms_within(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.long


def _greedy(boxes, scores, groups, iou):
    """Greedy suppression in plain Python, group by group."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            if groups[i] != groups[j]:
                continue
            width = min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0])
            height = min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1])
            overlap = max(width, 0) * max(height, 0)
            areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (boxes[i], boxes[j])]
            if overlap / (sum(areas) - overlap) > iou:
                break
        else:
            kept.append(i)
    return kept


def test_nms_equals_a_plain_loop_on_whole_numbered_boxes():
    # Whole numbers, so that the shift between groups rounds nothing.
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 40, (200, 2), generator=generator)
    boxes = torch.cat((corners, corners + torch.randint(5, 30, (200, 2), generator=generator)), dim=1).tolist()
    scores = torch.rand(200, generator=generator).tolist()
    groups = torch.randint(0, 3, (200,), generator=generator).tolist()
    expected = _greedy(boxes, scores, groups, 0.45)
    assert 10 < len(expected) < 150
    assert _kept(boxes, scores, groups, 0.45).tolist() == expected
