"""Masks pasted into images, and what can be done with detections."""

from __future__ import annotations

import dataclasses
import json
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as mask_api

from fpg_zoo.config.coco_classes import COCO_CLASSES
from fpg_zoo.modeling.postprocess import paste_mask, to_detections
from fpg_zoo.structures import Detections, Instances


def _picture_of(rows):
    """A bool mask from text, `#` for True."""
    return torch.tensor([[character == "#" for character in row] for row in rows])


def _rectangle(size, x1, y1, x2, y2):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


# --- paste_mask --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "filled"),
    [
        # Pixel i has its center at i + 0.5. `filled` is (x1, y1, x2, y2) of the pixels, the ends excluded.
        ((2, 3, 7, 8), (2, 3, 7, 8)),  # whole pixels
        ((0, 0, 12, 10), (0, 0, 12, 10)),  # the whole image
        ((2.4, 3.4, 6.6, 7.6), (2, 3, 7, 8)),  # centers 2.5..6.5 and 3.5..7.5 lie inside
        ((2.6, 3.6, 6.4, 7.4), (3, 4, 6, 7)),  # centers 3.5..5.5 and 4.5..6.5 lie inside
        ((4.2, 4.2, 4.4, 4.4), (0, 0, 0, 0)),  # no center inside
        ((4.4, 4.4, 4.6, 4.6), (4, 4, 5, 5)),  # the center of one pixel
        ((-5, -4, 3, 2), (0, 0, 3, 2)),  # over the left and top edges
        ((9, 7, 20, 15), (9, 7, 12, 10)),  # over the right and bottom edges
        ((-3, -3, 15, 13), (0, 0, 12, 10)),  # over all of them
        ((-9, 2, -1, 5), (0, 0, 0, 0)),  # left of the image
        ((13, 2, 17, 5), (0, 0, 0, 0)),  # right of it
        ((2, 11, 5, 14), (0, 0, 0, 0)),  # below it
    ],
)
def test_a_map_of_ones_fills_the_pixels_whose_centres_lie_in_the_box(box, filled):
    # In each of these boxes every pixel's center is at least half a map cell (side / 56) away from the edges, so that
    # inside the map is read as 1 and outside as 0.
    mask = paste_mask(torch.ones(28, 28), box, (10, 12))
    assert mask.dtype == torch.bool
    assert torch.equal(mask, _rectangle((10, 12), *filled))


@pytest.mark.parametrize(
    "box",
    [
        (3, 3, 3, 3),
        (3, 2, 3, 8),
        (2, 3, 8, 3),
        (3.5, 2, 3.5, 8),  # through the pixels' centers
        (2, 3.5, 8, 3.5),
        (5, 2, 3, 8),  # reversed
        (3.5, 2, 3.2, 8),
        (2, 3.5, 8, 3.2),
    ],
)
def test_a_box_without_area_has_no_mask(box):
    mask = paste_mask(torch.ones(28, 28), box, (10, 12))
    assert mask.shape == (10, 12)
    assert not mask.any()


def test_a_map_of_zeros_fills_nothing():
    assert not paste_mask(torch.zeros(28, 28), (0, 0, 12, 10), (10, 12)).any()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # 2 x 2 cells over 4 x 4 pixels. Pixel i reads the map at (i + 0.5) / 4 * 2 - 0.5 = -0.25, 0.25, 0.75, 1.25.
        # Cells (1, 0) along an axis give 0.75, 0.75, 0.25, 0; cells (1, 1) give 0.75, 1, 1, 0.75. In the first row the
        # left half is 0.75 * (0.75, 0.75, 0.25, 0) = (0.56, 0.56, 0.19, 0).
        ([[1.0, 0], [1, 0]], ["##..", "##..", "##..", "##.."]),
        ([[0, 1.0], [0, 1]], ["..##", "..##", "..##", "..##"]),
        ([[1.0, 1], [0, 0]], ["####", "####", "....", "...."]),
        # One cell alone: 0.75 * 0.75 = 0.56 in its own quarter, 0.75 * 0.25 = 0.19 next to it.
        ([[0, 0], [0, 1.0]], ["....", "....", "..##", "..##"]),
    ],
)
def test_a_half_covered_map_covers_half_the_box(cells, expected):
    assert torch.equal(paste_mask(torch.tensor(cells), (0, 0, 4, 4), (4, 4)), _picture_of(expected))


def test_the_map_is_zero_outside_its_own_cells():
    # One cell over 8 x 8 pixels. Pixel i reads it at (i + 0.5) / 8 - 0.5, which is 0.4375, 0.3125, 0.1875, 0.0625 from
    # its center, so the weights are 0.5625, 0.6875, 0.8125, 0.9375 and back. Products from 0.5 on:
    # 0.5625 * 0.9375 = 0.53 (but 0.5625 * 0.8125 = 0.46), 0.6875 * 0.8125 = 0.56 (but 0.6875^2 = 0.47),
    # 0.8125^2 = 0.66.
    expected = ["...##...", "..####..", ".######.", "########"]
    mask = paste_mask(torch.ones(1, 1), (0, 0, 8, 8), (8, 8))
    assert torch.equal(mask, _picture_of(expected + expected[::-1]))


def test_a_probability_of_exactly_half_is_mask():
    # Inside, where all four neighbors are 0.5, the value is 0.5; just below that it is no mask.
    inner = (slice(2, 8), slice(2, 8))
    assert paste_mask(torch.full((28, 28), 0.5), (0, 0, 10, 10), (10, 10))[inner].all()
    assert not paste_mask(torch.full((28, 28), 0.499), (0, 0, 10, 10), (10, 10)).any()


def test_pasting_equals_sampling_the_map_over_the_whole_picture():
    height, width = 60, 80
    random = np.random.default_rng(0)
    x = torch.arange(width, dtype=torch.float64) + 0.5
    y = torch.arange(height, dtype=torch.float64) + 0.5
    pixels_of_masks = 0
    for _ in range(50):
        probabilities = torch.from_numpy(random.random((28, 28)))
        x1, y1 = random.uniform(-20, width), random.uniform(-20, height)
        box = (x1, y1, x1 + random.uniform(0.1, 60), y1 + random.uniform(0.1, 60))
        # grid_sample's -1 and 1 are the box's edges; every pixel of the image is asked, in double precision.
        across = ((x - box[0]) / (box[2] - box[0]) * 2 - 1).expand(height, width)
        down = ((y - box[1]) / (box[3] - box[1]) * 2 - 1)[:, None].expand(height, width)
        grid = torch.stack((across, down), dim=-1)[None]
        values = F.grid_sample(probabilities[None, None], grid, padding_mode="zeros", align_corners=False)[0, 0]
        # No value of these boxes comes nearer to the threshold than single precision can tell.
        assert (values - 0.5).abs().min() > 1e-6
        mask = paste_mask(probabilities.float(), box, (height, width))
        assert torch.equal(mask, values >= 0.5)
        pixels_of_masks += int(mask.sum())
    assert pixels_of_masks > 5000


def _instances(boxes, maps=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    return Instances(
        boxes=boxes, scores=torch.linspace(0.9, 0.5, count), labels=torch.arange(count) % 2, mask_maps=maps
    )


@pytest.mark.parametrize(
    ("index", "expected"),
    [([True, False, True], [0, 2]), ([False] * 3, []), ([2, 0], [2, 0])],
)
@pytest.mark.parametrize("with_maps", [True, False])
def test_instances_are_chosen_with_their_maps(index, expected, with_maps):
    maps = torch.arange(3.0)[:, None, None].expand(3, 28, 28) if with_maps else None
    given = _instances([[1, 2, 10, 20], [3, 4, 5, 6], [0, 0, 9, 9]], maps)
    chosen = given[torch.tensor(index)]
    assert len(chosen) == len(expected)
    for name in ("boxes", "scores", "labels"):
        assert getattr(chosen, name).tolist() == [getattr(given, name)[i].tolist() for i in expected]
    assert (chosen.mask_maps is None) == (not with_maps)
    if with_maps:
        assert chosen.mask_maps.shape == (len(expected), 28, 28)
        assert chosen.mask_maps[:, 0, 0].tolist() == expected


def test_to_detections_scales_each_axis_by_its_own_factor():
    # From 30 x 40 (height x width) to 60 x 160: y doubles, x becomes four times as large.
    found = to_detections(_instances([[1, 2, 10, 20]], torch.ones(1, 28, 28)), (30, 40), (60, 160), ("a", "b"))
    assert found.boxes.tolist() == [[4, 4, 40, 40]]
    assert found.size == (60, 160)
    # 36 x 36 pixels hold more than 28 map cells: the corners are rounded, the middle of each side is not.
    assert found.masks.shape == (1, 60, 160)
    assert torch.equal(found.masks[0, 22], _rectangle((60, 160), 4, 4, 40, 40)[22])
    assert torch.equal(found.masks[0, :, 22], _rectangle((60, 160), 4, 4, 40, 40)[:, 22])


def test_to_detections_keeps_what_it_is_given_without_scale_or_masks():
    given = _instances([[1, 2, 10, 20], [3, 4, 5, 6]])
    found = to_detections(given, (30, 40), (30, 40), ("a", "b"))
    assert torch.equal(found.boxes, given.boxes)
    assert torch.equal(found.scores, given.scores)
    assert torch.equal(found.labels, given.labels)
    assert found.masks is None


def test_boxes_stay_inside_the_frame_whatever_the_scale():
    # The contract of Detections: x2 <= width, y2 <= height. By rounding alone a box over the whole network input would
    # come out larger than the image: 524 / (524 / 1659) is 1659.0001 in single precision.
    outside = []
    for size, output_size in [((524, 498), (1659, 1243)), ((480, 640), (375, 500)), ((427, 640), (333, 499))]:
        box = to_detections(_instances([[0, 0, size[1], size[0]]]), size, output_size, ("a", "b")).boxes[0].tolist()
        if box[2] > output_size[1] or box[3] > output_size[0]:
            outside.append((size, output_size, box))
    assert not outside


# --- Detections --------------------------------------------------------------------------------------------------


def _detections(*, masks=True, class_names=("cat", "dog", "owl")):
    """Four detections in an image 6 high and 8 wide; the masks are the boxes."""
    boxes = torch.tensor([[1.0, 1, 5, 4], [0, 0, 2, 2], [3, 2, 8, 6], [0, 0, 8, 6]])
    return Detections(
        boxes=boxes,
        scores=torch.tensor([0.5, 0.9, 0.25, 0.5]),
        labels=torch.tensor([2, 0, 1, 0]),
        masks=torch.stack([_rectangle((6, 8), *(int(v) for v in box)) for box in boxes.tolist()]) if masks else None,
        class_names=class_names,
        size=(6, 8),
    )


def _nothing(size=(6, 8)):
    none = torch.zeros(0)
    return Detections(
        boxes=torch.zeros(0, 4), scores=none, labels=none.long(), masks=None, class_names=("cat",), size=size
    )


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (slice(0, 0), []),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (torch.zeros(4, dtype=torch.bool), []),
        (torch.tensor([3, 0]), [3, 0]),
        ([2, 1], [2, 1]),
        ((3,), [3]),
        ([], []),
        (range(2), [0, 1]),
        (np.array([2, 3]), [2, 3]),
        # Bools are a choice, not the indices 0 and 1, wherever they come from.
        ([True, False, False, True], [0, 3]),
        (np.array([True, False, False, True]), [0, 3]),
        # One index gives one detection, with all dimensions.
        (2, [2]),
        (-1, [3]),
    ],
)
def test_indexing_chooses_the_same_rows_of_everything(index, expected):
    found = _detections()
    chosen = found[index]
    assert len(chosen) == len(expected)
    for name in ("boxes", "scores", "labels", "masks"):
        assert getattr(chosen, name).tolist() == [getattr(found, name)[i].tolist() for i in expected]
    assert (chosen.class_names, chosen.size) == (found.class_names, found.size)


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ([0.0, 1.0], TypeError),
        (torch.tensor([0.5]), TypeError),
        ([4], IndexError),  # there are four
        (4, IndexError),
        ([True, False, True], IndexError),  # bools for three of the four
        (torch.ones(5, dtype=torch.bool), IndexError),
    ],
)
def test_indexing_refuses_what_names_no_detections(index, error):
    with pytest.raises(error):
        _detections()[index]


def test_indexing_without_masks_leaves_none():
    assert _detections(masks=False)[[0]].masks is None


@pytest.mark.parametrize(
    ("score", "expected"), [(0.0, [0, 1, 2, 3]), (0.3, [0, 1, 3]), (0.5, [0, 1, 3]), (0.51, [1]), (1.0, [])]
)
def test_above_keeps_scores_from_the_given_one_on(score, expected):
    found = _detections()
    assert found.above(score).boxes.tolist() == [found.boxes[i].tolist() for i in expected]


@pytest.mark.parametrize("score", [-0.01, 1.5, 50, float("nan")])
def test_above_refuses_what_is_no_score(score):
    with pytest.raises(ValueError, match=rf"score={score}: a score lies in 0\.\.1"):
        _detections().above(score)


def test_sorted_orders_by_score_and_keeps_the_order_of_equals():
    # Scores 0.5, 0.9, 0.25, 0.5: numbers 0 and 3 are equal.
    found = _detections()
    before = found.scores.clone()
    assert found.sorted().masks.tolist() == found.masks[[1, 0, 3, 2]].tolist()
    assert found.sorted(descending=False).masks.tolist() == found.masks[[2, 0, 3, 1]].tolist()
    assert torch.equal(found.scores, before), "sorted must not change what it is called on"


def test_names_are_the_labels_classes():
    assert _detections().names == ["owl", "cat", "dog", "cat"]
    assert _nothing().names == []


def test_to_makes_a_copy_with_everything_in_it():
    found = _detections()
    moved = found.to("meta")
    assert {moved.boxes.device.type, moved.scores.device.type, moved.labels.device.type, moved.masks.device.type} == {
        "meta"
    }
    assert found.boxes.device.type == "cpu"
    assert _detections(masks=False).to("cpu").masks is None


# --- as other tools want them ------------------------------------------------------------------------------------


def test_coco_rows_hold_x_y_width_height_and_the_ids():
    rows = _detections(masks=False).to_coco(17)
    # Box (1, 1, 5, 4) is 4 wide and 3 high. Classes that are not COCO's count from 1: owl is the third.
    assert rows[0] == {"image_id": 17, "category_id": 3, "bbox": [1, 1, 4, 3], "score": 0.5}
    assert [row["category_id"] for row in rows] == [3, 1, 2, 1]
    assert [row["bbox"] for row in rows] == [[1, 1, 4, 3], [0, 0, 2, 2], [3, 2, 5, 4], [0, 0, 8, 6]]
    assert all("segmentation" not in row for row in rows)
    assert _nothing().to_coco(17) == []


def test_coco_rows_are_plain_data():
    row = _detections().to_coco("a.jpg")[0]
    assert json.loads(json.dumps(row)) == row
    assert row["image_id"] == "a.jpg"


def test_coco_classes_get_cocos_own_ids():
    # COCO numbers its 80 classes 1..90 with gaps: person 1, dog 18, toothbrush 90 (instances_val2017.json).
    labels = [COCO_CLASSES.index(name) for name in ("dog", "person", "toothbrush", "stop sign")]
    found = dataclasses.replace(_detections(class_names=COCO_CLASSES), labels=torch.tensor(labels))
    assert found.names == ["dog", "person", "toothbrush", "stop sign"]
    assert [row["category_id"] for row in found.to_coco(1)] == [18, 1, 90, 13]


def test_coco_rows_take_ids_of_ones_own():
    rows = _detections().to_coco(1, category_ids=[70, 50, 30])
    assert [row["category_id"] for row in rows] == [30, 70, 50, 70]


@pytest.mark.parametrize("ids", [[1, 2], [1, 2, 3, 4], []])
def test_coco_rows_refuse_another_number_of_ids_than_classes(ids):
    with pytest.raises(ValueError, match=f"{len(ids)} category_ids for 3 classes: give one for each"):
        _detections().to_coco(1, category_ids=ids)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools' decode
def test_coco_segmentations_decode_to_the_masks():
    found = _detections()
    for row, mask in zip(found.to_coco(1), found.masks, strict=True):
        assert row["segmentation"]["size"] == [6, 8]
        assert isinstance(row["segmentation"]["counts"], str)
        assert np.array_equal(mask_api.decode(row["segmentation"]), mask.numpy())


@pytest.mark.slow
def test_to_supervision_carries_everything_over():
    supervision = pytest.importorskip("supervision", reason="supervision is an optional dependency")
    found = _detections()
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert theirs.xyxy.tolist() == found.boxes.tolist()
    assert theirs.confidence.tolist() == found.scores.tolist()
    assert theirs.class_id.tolist() == [2, 0, 1, 0]
    assert np.array_equal(theirs.mask, found.masks.numpy())
    assert theirs.data["class_name"].tolist() == ["owl", "cat", "dog", "cat"]
    assert _detections(masks=False).to_supervision().mask is None
    assert len(_nothing().to_supervision()) == 0


def test_to_supervision_hands_over_arrays_of_everything(monkeypatch):
    # Without the package: a stand-in that keeps what it is given.
    stand_in = types.SimpleNamespace(Detections=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    given = _detections().to_supervision()
    assert given.xyxy.tolist()[0] == [1, 1, 5, 4]
    assert (given.mask.shape, given.mask.dtype) == ((4, 6, 8), bool)
    assert given.confidence.dtype == np.float32
    assert given.class_id.tolist() == [2, 0, 1, 0]
    assert given.data["class_name"].tolist() == ["owl", "cat", "dog", "cat"]


def test_to_supervision_without_the_package_tells_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install fpg-zoo\[supervision\]"):
        _detections().to_supervision()


def test_numpy_indices_in_descending_order_are_taken():
    assert _detections()[np.array([0, 2, 1])[::-1]].scores.tolist() == _detections()[[1, 2, 0]].scores.tolist()


@pytest.mark.parametrize("index", [None, ..., [0j], [0.5]])
def test_what_is_no_index_is_refused(index):
    with pytest.raises(TypeError, match="pass whole numbers, bools or a slice"):
        _detections()[index]
