"""From pixels to the network's input: sizes, the resizer's arithmetic, normalisation and padding, by hand."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fpg_zoo.config import PreprocessConfig
from fpg_zoo.modeling import preprocess as module
from fpg_zoo.modeling.opencv import opencv_resizer
from fpg_zoo.modeling.preprocess import normalize, preprocess, resize, resized_size


@pytest.fixture(autouse=True, params=["own", "opencv"])
def resizer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resizing by the zoo's own arithmetic, and by OpenCV."""
    if request.param == "own":
        monkeypatch.setattr(module, "opencv_resizer", lambda reference: None)
    else:
        pytest.importorskip("cv2")
        assert opencv_resizer(module._resized_array) is not None


def test_an_opencv_of_other_values_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = types.SimpleNamespace(INTER_LINEAR=1, resize=lambda image, size, interpolation: np.zeros((*size[::-1], 3)))
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    assert opencv_resizer.__wrapped__(module._resized_array) is None


def _image(rows: list[list[int]]) -> Tensor:
    """An image whose channels tell each other apart: these values, their mirror image 255 - v, and zero."""
    values = torch.tensor(rows)
    return torch.stack((values, 255 - values, torch.zeros_like(values))).to(torch.uint8)


def _random(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1009 + width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("size", "longest_side", "expected"),
    [
        ((427, 640), 640, (427, 640)),
        ((640, 427), 640, (640, 427)),
        ((500, 351), 640, (640, 449)),  # 351 * 1.28 = 449.28
        ((333, 500), 640, (426, 640)),  # 333 * 1.28 = 426.24
        ((427, 640), 320, (214, 320)),  # 213.5, a half goes up
        ((425, 640), 320, (213, 320)),  # 212.5, and not to the even number
        ((640, 425), 320, (320, 213)),
        ((480, 640), 1333, (1000, 1333)),  # 480 * 2.0828 = 999.75
        ((1, 1), 640, (640, 640)),
        ((1, 20000), 640, (1, 640)),  # 0.032, but one pixel at least
        ((20000, 1), 640, (640, 1)),
        ((20000, 50), 640, (640, 2)),  # 1.6
    ],
)
def test_longest_side_is_scaled_to_the_wanted_one(
    size: tuple[int, int], longest_side: int, expected: tuple[int, int]
) -> None:
    assert resized_size(*size, PreprocessConfig(longest_side=longest_side)) == expected


def test_longest_side_is_exact_for_every_picture() -> None:
    for side in range(1, 3000):
        height, width = resized_size(side, max(side // 2, 1), PreprocessConfig())
        assert height == 640
        assert abs(width - 640 * max(side // 2, 1) / side) <= 0.5 + 1e-9


# Resizing. Output pixel i of n lies at (i + 0.5) * m / n - 0.5 among the m pixels given.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # 2 to 4: at -0.25, 0.25, 0.75, 1.25; the edge is repeated, 0.75 * 10 + 0.25 * 50 = 20.
        ([[10, 50]], [[10, 20, 40, 50]]),
        ([[0, 255]], [[0, 64, 191, 255]]),  # 63.75, 191.25
        ([[0, 2]], [[0, 1, 2, 2]]),  # 0.5 and 1.5, halves go up
        ([[0, 1]], [[0, 0, 1, 1]]),  # 0.25, 0.75
        # 3 to 2: at 0.25 and 1.75.
        ([[0, 100, 200]], [[25, 175]]),
        # 3 to 4: at -0.125, 0.625, 1.375, 2.125.
        ([[0, 80, 160]], [[0, 50, 110, 160]]),
        # 3 to 5: at 0.4, 1.0 and 1.6 between the edges; 0.4 is 819 / 2048, 255 * 819 / 2048 = 101.97.
        ([[0, 255, 0]], [[0, 102, 255, 102, 0]]),
        # 4 to 1: at 1.5, between the two in the middle; nothing averages the rest in.
        ([[100, 0, 10, 200]], [[5]]),
        # 4 to 2: at 0.5 and 2.5.
        ([[0, 10, 20, 30]], [[5, 25]]),
        ([[7]], [[7, 7, 7]]),
    ],
)
def test_rows_and_columns_are_interpolated_at_half_pixel_centres(
    given: list[list[int]], expected: list[list[int]]
) -> None:
    image = _image(given)
    across = resize(image, (1, len(expected[0])))
    assert across.dtype == torch.uint8
    assert across[0].tolist() == expected
    assert across[2].eq(0).all()
    along = resize(image.transpose(1, 2), (len(expected[0]), 1))
    assert along[0].tolist() == [[value] for value in expected[0]]


def test_both_axes_are_interpolated() -> None:
    # Columns at -0.25 (so 0), 0.25, 0.75, 1.25 (so 1): 0, 10, 30, 40 in the first row, 80 more in the second;
    # rows likewise: 0, 20, 60, 80 more.
    expected = [[value + below for value in (0, 10, 30, 40)] for below in (0, 20, 60, 80)]
    assert resize(_image([[0, 40], [80, 120]]), (4, 4))[0].tolist() == expected
    # Halving takes the mean of four: (0 + 10 + 40 + 50) / 4.
    assert resize(_image([[0, 10, 20, 30], [40, 50, 60, 70]]), (1, 2))[0].tolist() == [[25, 45]]


def test_top_and_bottom_rows_are_rounded_as_in_the_published_pipeline() -> None:
    # 1 row to 2 puts the upper one at -0.25: OpenCV takes the repeated row twice, with weights 512 and 1536, and cuts
    # each product off. For the value 2 at column 0.25, in 1/128: 2 * 512 >> 4 = 64, then 64 * 512 >> 16 = 0 and
    # 64 * 1536 >> 16 = 1, together (0 + 1 + 2) >> 2 = 0, where one row of weight 2048 gives (2 + 2) >> 2 = 1. At
    # 0.75: 192, then 1 + 4, (5 + 2) >> 2 = 1. OpenCV 4.12 gives these numbers.
    assert resize(_image([[0, 2]]), (2, 4))[0].tolist() == [[0, 0, 1, 2], [0, 0, 1, 2]]


GIVEN = [[78, 39, 248, 185], [251, 31, 108, 241], [181, 41, 163, 225]]


@pytest.mark.parametrize(
    "expected",
    [  # cv2.resize(GIVEN, (width, height)), OpenCV 4.12.0
        [[121, 107, 70, 47, 125, 203, 207, 201, 199], [199, 172, 101, 45, 94, 143, 180, 216, 229]],
        [
            [78, 64, 42, 143, 243, 207, 185],
            [147, 107, 44, 114, 193, 202, 207],
            [251, 172, 47, 70, 117, 194, 241],
            [209, 147, 49, 89, 147, 199, 231],
            [181, 131, 51, 102, 167, 203, 225],
        ],
        [
            [71, 143, 195],
            [92, 133, 199],
            [153, 101, 209],
            [214, 70, 219],
            [190, 83, 217],
            [166, 97, 215],
            [158, 102, 215],
        ],
    ],
    ids=["2x9", "5x7", "7x3"],
)
def test_grey_levels_are_those_of_opencv(expected: list[list[int]]) -> None:
    assert resize(_image(GIVEN), (len(expected), len(expected[0])))[0].tolist() == expected


def _taps(given: int, wanted: int, place: int) -> tuple[int, int, int, int]:
    """Of one output pixel along an axis: its two source pixels, and their weights of 2048."""
    centre = np.float32((place + 0.5) * (1.0 / (wanted / given)) - 0.5)
    first = int(np.floor(centre))
    fraction = centre - np.float32(first)
    weights = (round(float((np.float32(1) - fraction) * 2048)), round(float(fraction * 2048)))
    return min(max(first, 0), given - 1), min(max(first + 1, 0), given - 1), *weights


@pytest.mark.parametrize("given", [(1, 1), (2, 3), (7, 5), (23, 40), (60, 3)])
@pytest.mark.parametrize("wanted", [(1, 1), (3, 2), (5, 7), (12, 40), (61, 31)])
def test_every_value_is_that_of_the_definition_pixel_by_pixel(given: tuple[int, int], wanted: tuple[int, int]) -> None:
    # Fixed-point bilinear interpolation as OpenCV's 8-bit resizer does it, in Python's own integers.
    image, (height, width) = _random(*given), wanted
    expected = torch.zeros(3, height, width, dtype=torch.uint8)
    for y in range(height):
        upper, lower, upper_weight, lower_weight = _taps(given[0], height, y)
        for x in range(width):
            left, right, left_weight, right_weight = _taps(given[1], width, x)
            if left == right:
                left_weight, right_weight = 2048, 0
            for channel in range(3):
                rows = [
                    (int(image[channel, row, left]) * left_weight + int(image[channel, row, right]) * right_weight) >> 4
                    for row in (upper, lower)
                ]
                total = (rows[0] * upper_weight >> 16) + (rows[1] * lower_weight >> 16)
                expected[channel, y, x] = (total + 2) >> 2
    if given != wanted:
        assert torch.equal(resize(image, wanted), expected)
        assert torch.equal(resize(image.transpose(1, 2).contiguous().transpose(1, 2), wanted), expected)


def test_the_size_given_leaves_the_picture_as_it_is() -> None:
    image = _random(13, 7)
    assert torch.equal(resize(image, (13, 7)), image)


SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (7, 4), (16, 16), (31, 17), (50, 80)]


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_a_constant_picture_stays_constant_at_any_size(level: int) -> None:
    for given in SIZES:
        for wanted in SIZES:
            found = resize(torch.full((3, *given), level, dtype=torch.uint8), wanted)
            assert found.shape == (3, *wanted)
            assert found.eq(level).all(), (given, wanted)


@pytest.mark.parametrize("given", [(2, 2), (8, 8), (9, 7)])
@pytest.mark.parametrize("wanted", [(5, 3), (16, 16), (33, 29), (100, 81)])
def test_a_checkerboard_of_extremes_does_not_overflow(given: tuple[int, int], wanted: tuple[int, int]) -> None:
    board = (torch.arange(given[0])[:, None] + torch.arange(given[1])) % 2 * 255
    _assert_close_to_torch(board.expand(3, -1, -1).to(torch.uint8), wanted)


@pytest.mark.parametrize("given", [(11, 7), (48, 64), (60, 41)])
@pytest.mark.parametrize("wanted", [(1, 1), (13, 5), (64, 48), (96, 128), (120, 82), (37, 200)])
def test_random_pictures_agree_with_torch_within_a_grey_level(given: tuple[int, int], wanted: tuple[int, int]) -> None:
    _assert_close_to_torch(_random(*given), wanted)


def _assert_close_to_torch(image: Tensor, size: tuple[int, int]) -> None:
    # An implementation of its own, in floating point: same centers, no antialiasing, edges repeated.
    expected = F.interpolate(image[None].double(), size, mode="bilinear", align_corners=False)[0]
    found = resize(image, size)
    assert int((found.double() - expected.round()).abs().max()) <= 1
    # Cutting off loses at most two quarters of a level before the last rounding, 11 bits 0.13 of 255 each way.
    assert float((found.double() - expected).abs().max()) < 0.5 + 0.5 + 0.26


def test_resizing_does_not_change_its_input() -> None:
    image = _random(9, 5)
    before = image.clone()
    resize(image, (4, 11))
    assert torch.equal(image, before)


# Normalising and padding


def test_channels_are_normalised_each_with_its_own_mean_and_deviation() -> None:
    config = PreprocessConfig(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))
    image = torch.tensor([[12, 10], [12, 20], [35, 255]], dtype=torch.uint8)[:, None]
    # (12 - 10) / 2, 0; (12 - 20) / 4, 0; (35 - 30) / 5, (255 - 30) / 5.
    found = normalize(image, config)
    assert found.dtype == torch.float32
    assert found[:, 0].tolist() == [[1, 0], [-2, 0], [1, 45]]


def test_the_default_statistics_are_those_of_imagenet_in_rgb() -> None:
    # torchvision's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 times 255.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = _random(3, 4)
    expected = (image / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalize(image, PreprocessConfig()), expected, atol=1e-5, rtol=1e-5)


CONFIG = PreprocessConfig(longest_side=12, pad_divisor=8, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))


@pytest.mark.parametrize(
    ("given", "size", "padded"),
    [
        ((12, 12), (12, 12), (16, 16)),
        ((8, 12), (8, 12), (8, 16)),  # 8 is a multiple already
        ((24, 10), (12, 5), (16, 8)),
        ((1, 1), (12, 12), (16, 16)),
        ((1, 300), (1, 12), (8, 16)),  # 0.04 of a pixel
    ],
)
def test_one_picture_is_padded_to_the_next_multiple(
    given: tuple[int, int], size: tuple[int, int], padded: tuple[int, int]
) -> None:
    batch, sizes = preprocess([_random(*given)], CONFIG)
    assert batch.dtype == torch.float32
    assert tuple(batch.shape) == (1, 3, *padded)
    assert sizes == [size]


def test_a_batch_holds_every_picture_at_the_top_left_and_zero_beyond() -> None:
    # Black images, so that every pixel is -mean / std = -5, -5, -6: none of them is zero, as the padding is.
    images = [torch.zeros(3, height, width, dtype=torch.uint8) for height, width in ((3, 12), (24, 6), (5, 10))]
    batch, sizes = preprocess(images, CONFIG)
    # Scaled by 1, 0.5 and 1.2.
    assert sizes == [(3, 12), (12, 3), (6, 12)]
    assert tuple(batch.shape) == (3, 3, 16, 16)
    for found, (height, width) in zip(batch, sizes, strict=True):
        expected = torch.zeros(3, 16, 16)
        expected[:, :height, :width] = torch.tensor([-5.0, -5.0, -6.0])[:, None, None]
        assert torch.equal(found, expected)


def test_a_picture_in_a_batch_has_the_values_it_has_alone() -> None:
    images = [_random(7, 12), _random(40, 13), _random(12, 12)]
    batch, sizes = preprocess(images, CONFIG)
    for image, found, (height, width) in zip(images, batch, sizes, strict=True):
        alone, _ = preprocess([image], CONFIG)
        assert torch.equal(found[:, :height, :width], alone[0, :, :height, :width])
    # Two of the three are not resized at all: their values are those of the formula.
    assert float(batch[2, 1, 11, 4]) == pytest.approx((int(images[2][1, 11, 4]) - 20) / 4)
    assert float(batch[0, 2, 6, 11]) == pytest.approx((int(images[0][2, 6, 11]) - 30) / 5)
