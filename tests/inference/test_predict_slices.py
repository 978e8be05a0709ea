"""Tiles, and each object once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from large_images import large_image, small_found
from PIL import Image
from tiny_models import tiny_model
from torchvision.ops import box_iou

import fpg_zoo
from fpg_zoo import Detections, Predictor
from fpg_zoo.errors import ConfigError
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.merging import merge
from fpg_zoo.inference.views import View, in_image, tile_starts, together, views_of

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (100, 180)  # of the image; tiles of 100 overlap by 20 pixels
LEFT, RIGHT, WHOLE = View((0, 0, 100, 100)), View((80, 0, 180, 100)), View((0, 0, 180, 100))
Seen = list[tuple[list[float], float, int]]  # boxes in a view's frame, scores, labels


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "starts"),
    [
        (100, 100, 0.2, [0]),
        (60, 100, 0.2, [0]),
        (180, 100, 0.2, [0, 80]),
        (181, 100, 0.2, [0, 40, 81]),  # one tile more, at equal distances: 40.5 is rounded to even
        (200, 100, 0.0, [0, 100]),
        (300, 100, 0.5, [0, 50, 100, 150, 200]),
    ],
)
def test_tiles_cover_a_side_and_overlap(length: int, tile: int, overlap: float, starts: list[int]) -> None:
    assert tile_starts(length, tile, overlap) == starts


def test_views_are_tiles_and_the_whole_at_every_scale() -> None:
    tiles = [LEFT, RIGHT]
    arguments = {"slice": 100, "overlap": 0.2}
    assert views_of(SIZE, **arguments, whole_image=False, tta=False) == tiles
    assert views_of(SIZE, **arguments, whole_image=True, tta=False) == [*tiles, WHOLE]
    assert views_of((90, 80), **arguments, whole_image=True, tta=False) == [View((0, 0, 80, 90))]
    augmented = views_of(SIZE, slice=None, overlap=0.2, whole_image=True, tta=True)
    assert augmented == [View(WHOLE.tile, scale, flip) for scale in (0.8, 1.0, 1.25) for flip in (False, True)]


def _merged(*views: tuple[View, Seen], masks: bool = False) -> Detections:
    parts = []
    for number, (view, seen) in enumerate(views):
        size = (view.tile[3] - view.tile[1], view.tile[2] - view.tile[0])
        maps = torch.zeros(len(seen), *size, dtype=torch.bool)
        for place, ((x1, y1, x2, y2), _, _) in enumerate(seen):
            maps[place, int(y1) : int(y2), int(x1) : int(x2)] = True
        boxes, scores, labels = zip(*seen, strict=True) if seen else ((), (), ())
        found = Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(scores),
            torch.tensor(labels, dtype=torch.int64),
            maps if masks else None,
            ("cat", "dog"),
            size,
        )
        parts.append(in_image(found, view, number, SIZE))
    return merge(together(parts), SIZE, ("cat", "dog"))


def _told(found: Detections) -> list[tuple[list[float], float, int]]:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [([round(side, 3) for side in box], round(score, 3), label) for box, score, label in rows]


def test_an_object_whole_in_both_tiles_is_found_once() -> None:
    found = _merged((LEFT, [([82, 10, 96, 30], 0.6, 0)]), (RIGHT, [([3, 10, 16, 30], 0.8, 0)]))
    assert _told(found) == [([83, 10, 96, 30], 0.8, 0)]


def test_a_cut_box_loses_against_a_whole_one_of_less_score() -> None:
    # 70..120 is cut by the left tile at 100. The right one begins at 80 and cuts it, too; all of the image shows it.
    found = _merged(
        (LEFT, [([70, 20, 100, 60], 0.9, 0)]),
        (RIGHT, [([0, 20, 40, 60], 0.8, 0)]),
        (WHOLE, [([70, 20, 120, 60], 0.5, 0)]),
    )
    assert _told(found) == [([70, 20, 120, 60], 0.9, 0)]
    found = _merged((LEFT, [([90, 20, 100, 60], 0.9, 0)]), (RIGHT, [([10, 20, 40, 60], 0.3, 0)]))
    assert _told(found) == [([90, 20, 120, 60], 0.9, 0)]


def test_a_part_that_looks_like_something_else_is_dropped() -> None:
    circle: Seen = [([70, 20, 120, 60], 0.5, 0)]
    assert _told(_merged((LEFT, [([70, 20, 100, 60], 0.9, 1)]), (WHOLE, circle))) == [([70, 20, 120, 60], 0.5, 0)]
    # Not what only lies within it.
    assert len(_merged((LEFT, [([90, 20, 100, 60], 0.9, 1)]), (WHOLE, circle))) == 2


def test_parts_of_an_object_are_joined_and_their_masks_too() -> None:
    # From 30 to 150: the tiles share 80..100, where both parts have rows 40..50.
    found = _merged((LEFT, [([30, 40, 100, 50], 0.7, 1)]), (RIGHT, [([0, 41, 70, 50], 0.6, 1)]), masks=True)
    assert _told(found) == [([30, 40, 150, 50], 0.7, 1)]
    assert found.masks is not None
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[40:50, 30:100] = True
    expected[41:50, 80:150] = True
    assert torch.equal(found.masks[0], expected)


@pytest.mark.parametrize(
    "right",
    [
        ([0, 70, 70, 80], 0.6, 1),  # elsewhere
        ([0, 40, 70, 50], 0.6, 0),  # of another class
        ([30, 40, 70, 50], 0.6, 1),  # not where the tiles overlap
    ],
)
def test_what_is_not_one_object_is_not_joined(right: tuple[list[float], float, int]) -> None:
    assert len(_merged((LEFT, [([30, 40, 100, 50], 0.7, 1)]), (RIGHT, [right]))) == 2


def test_two_objects_of_a_tile_are_not_joined_by_one_of_the_other() -> None:
    two: Seen = [([30, 40, 100, 50], 0.7, 1), ([40, 41, 100, 51], 0.5, 1)]
    assert _told(_merged((LEFT, two), (RIGHT, [([0, 40, 70, 50], 0.6, 1)]))) == [
        ([30, 40, 150, 50], 0.7, 1),
        ([40, 41, 100, 51], 0.5, 1),
    ]


def test_what_ends_at_the_border_of_the_image_is_not_cut() -> None:
    found = _merged((LEFT, [([0, 0, 50, 100], 0.9, 0)]), (RIGHT, []), (WHOLE, [([0, 2, 51, 100], 0.5, 0)]))
    assert _told(found) == [([0, 0, 50, 100], 0.9, 0)]


def test_mirrored_views_are_mirrored_back() -> None:
    mirrored = View((80, 0, 180, 100), 1.25, mirrored=True)
    found = _merged((mirrored, [([10, 20, 30, 40], 0.9, 0)]), masks=True)
    assert _told(found) == [([150, 20, 170, 40], 0.9, 0)]
    assert found.masks is not None
    assert found.masks[0].nonzero().amin(dim=0).tolist() == [20, 150]
    assert found.masks[0].nonzero().amax(dim=0).tolist() == [39, 169]


def test_nothing_found_is_nothing() -> None:
    found = _merged((LEFT, []), (RIGHT, []), masks=True)
    assert (len(found), found.size) == (0, SIZE)
    assert found.masks is not None
    assert tuple(found.masks.shape) == (0, *SIZE)


# By a predictor

NOISE = np.random.default_rng(3).integers(0, 256, (90, 200, 3), dtype=np.uint8)


def test_an_image_within_a_tile_is_detected_in_as_without() -> None:
    predictor = Predictor(tiny_model())
    ((plain,), (sliced,)) = predictor(NOISE), predictor(NOISE, slice=200)
    # One view is merged with itself: what the model let through in a class at an IoU of 0.5 stays.
    assert torch.equal(sliced.scores, plain.scores)
    assert torch.equal(sliced.boxes, plain.boxes)


@pytest.mark.slow
def test_views_of_a_batch_give_the_same_as_one_by_one() -> None:
    predictor = Predictor(tiny_model())
    arguments = {"score": 0.2, "slice": 96, "tta": True}
    ((one,), (other,)) = predictor(NOISE, 1, **arguments), predictor(NOISE, 4, **arguments)
    assert len(one) == len(other) > 0
    assert torch.allclose(one.scores, other.scores, atol=1e-3)
    assert next(predictor.stream([NOISE], max_detections=3, **arguments)).names == one.names[:3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"slice": 31}, "slice=31: a tile takes at least 32 pixels"),
        ({"slice": 64, "overlap": 1.0}, r"overlap=1\.0: the share of a tile"),
        ({"max_detections": 0}, "max_detections=0: it takes at least 1"),
        ({"channel_order": "gbr"}, "channel_order='gbr': it is 'rgb', or 'bgr'"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Predictor(tiny_model())(NOISE, **arguments)


def test_scales_need_a_file_that_takes_them() -> None:
    class _Fixed:
        takes_pixels, size = False, (128, 128)

    model = ExportedDetector.__new__(ExportedDetector)
    model.path, model.description = Path("model.onnx"), _Fixed
    with pytest.raises(ConfigError, match=r"tta: model\.onnx does not take images of several sizes"):
        Predictor(model)(NOISE, tta=True)


@pytest.mark.parametrize("channels", [3, 4])
def test_arrays_in_opencvs_order_are_read_as_such(channels: int) -> None:
    predictor = Predictor(tiny_model())
    (expected,) = predictor(NOISE)
    turned = NOISE[:, :, ::-1]
    if channels == 4:
        turned = np.concatenate([turned, np.full_like(turned[:, :, :1], 9)], 2)
    ((found,), (wrong,)) = predictor(turned, channel_order="bgr"), predictor(turned)
    assert torch.equal(found.boxes, expected.boxes)
    assert not torch.equal(wrong.boxes, expected.boxes)
    (streamed,) = predictor.stream([turned], channel_order="bgr")
    assert torch.equal(streamed.boxes, expected.boxes)
    assert found.draw(turned, channel_order="bgr").tobytes() == expected.draw(NOISE).tobytes()
    (of_an_image,) = predictor(Image.fromarray(NOISE), channel_order="bgr")
    assert torch.equal(of_an_image.boxes, expected.boxes)


def test_a_predictor_is_told_on_one_line() -> None:
    assert repr(Predictor(tiny_model())) == (
        "Predictor(TwoStageDetector(mask_rcnn_nano_fpg, 80 classes, float32 on cpu))"
    )


@pytest.mark.slow
def test_tiles_find_small_objects_and_each_object_once() -> None:
    pixels, annotations = large_image(0)
    predictor = Predictor(fpg_zoo.create_model("mask_rcnn_nano_fpg", pretrained=True))
    (plain,) = predictor(pixels, score=0.3)
    (tiled,) = predictor(pixels, 4, score=0.3, slice=320)
    plainly, total = small_found(plain, annotations)
    found, _ = small_found(tiled, annotations)
    assert total > 30
    assert found >= 1.5 * max(plainly, 1)
    assert found > 0.5 * total
    # Objects on a border of a tile are found, and once.
    boxes = torch.tensor([row["bbox"] for row in annotations], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([row["category_id"] - 1 for row in annotations])
    times = ((box_iou(boxes, tiled.boxes) >= 0.5) & (labels[:, None] == tiled.labels[None])).sum(dim=1)
    borders = torch.tensor([240, 320, 480, 560, 720, 800, 960, 1040, 1200, 1280, 1440, 1520, 1680, 1760])
    between = [(boxes[:, side, None] + 2 < borders) & (borders < boxes[:, side + 2, None] - 2) for side in (0, 1)]
    crossing = (between[0] | between[1]).any(dim=1)
    assert int(crossing.sum()) > 30
    assert int((times[crossing] == 0).sum()) <= 0.1 * int(crossing.sum())
    assert int(times.max()) == 1
    assert tiled.masks is not None
    assert tuple(tiled.masks.shape) == (len(tiled), 2000, 2000)
