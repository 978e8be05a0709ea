"""The recipe's augmentation: random views within its bounds, and image, boxes and masks that agree in each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folders import annotation, picture, rectangle, write_folder
from pycocotools import mask as mask_api

from fpg_zoo.config.training import AugmentConfig
from fpg_zoo.data.augment import Crop, apply_crop, augmented, draw_crop
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.masks import Polygons, RunLengths
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.preprocess import resize

RECIPE = AugmentConfig()
PLAIN = Crop(original=(6, 8), resized=(6, 8), corner=(0, 0), size=(6, 8), flipped=False)


def _views(size: tuple[int, int], config: AugmentConfig, number: int) -> list[Crop]:
    generator = np.random.default_rng(0)
    return [draw_crop(size, config, generator) for _ in range(number)]


def _run_lengths(bitmap: np.ndarray) -> RunLengths:
    encoded = mask_api.encode(np.asfortranarray(bitmap, dtype=np.uint8))
    return RunLengths(bitmap.shape, encoded["counts"])


# What is drawn


def test_views_of_the_recipe() -> None:
    views = _views((480, 640), RECIPE, 2000)
    longest = np.array([max(view.resized) for view in views])
    # 0.8 and 1.2 times 640, uniform between: mean 640, and the ends are come near to.
    assert (longest.min(), longest.max()) == (512, 767)
    assert longest.mean() == pytest.approx(640, abs=6)
    for view in views:
        height, width = view.resized
        assert abs(height - width * 0.75) <= 0.501  # the ratio is kept
        assert view.size == (height, min(width, 640))
        assert view.corner[0] == 0
        assert 0 <= view.corner[1] <= width - view.size[1]
    assert np.mean([view.flipped for view in views]) == pytest.approx(0.5, abs=0.04)


def test_every_place_of_the_crop_is_as_likely() -> None:
    config = AugmentConfig(longest_side=12, factors=(1, 1), crop=10, flip=0)
    views = _views((12, 11), config, 3000)
    assert {view.size for view in views} == {(10, 10)}
    # 3 places down and 2 across: 500 of 3000 each, with a standard deviation of 20.
    places = [view.corner for view in views]
    assert set(places) == {(top, left) for top in range(3) for left in range(2)}
    assert all(abs(places.count(place) - 500) < 100 for place in set(places))
    assert not any(view.flipped for view in views)


def test_a_view_depends_on_its_generator_alone() -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    first = _views((480, 640), RECIPE, 5)
    np.random.seed(2)
    torch.manual_seed(2)
    assert _views((480, 640), RECIPE, 5) == first
    assert len(set(first)) == 5


def test_extreme_pictures_keep_a_pixel() -> None:
    for view in _views((1, 5000), RECIPE, 20):
        assert view.resized[0] == 1
        assert view.size == (1, min(view.resized[1], 640))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"longest_side": 0}, "longest_side=0: it takes a whole number of at least 1"),
        ({"crop": 64.0}, r"crop=64\.0: it takes a whole number"),
        ({"factors": (1.2, 0.8)}, r"factors=\(1\.2, 0\.8\): give the least first"),
        ({"factors": (0, 1)}, r"factors\[0\]=0: it takes a number above 0"),
        ({"factors": (1,)}, "it takes 2 of them"),
        ({"flip": 1.5}, r"flip=1\.5: it takes a number from 0 to 1"),
        ({"keep_empty_crops": None}, "keep_empty_crops=None: use one of True, False"),
    ],
)
def test_values_that_describe_no_augmentation(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        AugmentConfig(**values)


# What is seen


def test_a_crop_is_part_of_the_picture() -> None:
    image = torch.arange(3 * 6 * 8, dtype=torch.uint8).reshape(3, 6, 8)
    view = dataclasses.replace(PLAIN, corner=(1, 2), size=(4, 5))
    assert torch.equal(view.image(image), image[:, 1:5, 2:7])
    mirrored = dataclasses.replace(view, flipped=True).image(image)
    # The leftmost pixel is what was the rightmost of the crop: column 6.
    assert torch.equal(mirrored[:, :, 0], image[:, 1:5, 6])
    assert torch.equal(mirrored[:, :, 4], image[:, 1:5, 2])


def test_pixels_are_resized_as_the_network_sees_them_later() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 37, 53), dtype=np.uint8))
    for resized in ((74, 106), (20, 29), (37, 60)):
        view = Crop(original=(37, 53), resized=resized, corner=(0, 0), size=resized, flipped=False)
        difference = view.image(image).int() - resize(image, resized).int()
        assert int(difference.abs().max()) <= 1


def test_boxes_move_with_the_picture() -> None:
    # 6 x 8 to 12 x 24: twice as high, three times as wide; then 4 rows from 2 and 15 columns from 3.
    view = Crop(original=(6, 8), resized=(12, 24), corner=(2, 3), size=(4, 15), flipped=False)
    boxes = np.array([[2, 1.5, 4, 2], [0, 0, 8, 6], [6, 1, 7, 2], [0, 0, 1, 3]], dtype=np.float32)
    # (2, 1.5, 4, 2) -> (6, 3, 12, 4) -> (3, 1, 9, 2). The last two end at the crop's border, without area.
    expected = [[3, 1, 9, 2], [0, 0, 15, 4], [15, 0, 15, 2], [0, 0, 0, 4]]
    assert view.boxes(boxes).tolist() == expected
    mirrored = dataclasses.replace(view, flipped=True).boxes(boxes)
    assert mirrored.tolist() == [[15 - x2, y1, 15 - x1, y2] for x1, y1, x2, y2 in expected]
    assert view.boxes(np.zeros((0, 4), dtype=np.float32)).shape == (0, 4)


@pytest.mark.parametrize("flipped", [False, True])
def test_masks_are_made_inside_the_view(flipped: bool) -> None:
    # The image's columns 2..3 and rows 1..2, twice as large: columns 4..7, rows 2..5; seen from row 3, column 5.
    bitmap = np.zeros((6, 8), dtype=np.uint8)
    bitmap[1:3, 2:4] = 1
    outline = Polygons((np.array([[2.0, 1], [4, 1], [4, 3], [2, 3]]),))
    view = Crop(original=(6, 8), resized=(12, 16), corner=(3, 5), size=(6, 7), flipped=flipped)
    expected = torch.zeros(6, 7, dtype=torch.bool)
    expected[:3, 4:] = flipped
    expected[:3, :3] |= not flipped
    masks = view.masks([outline, _run_lengths(bitmap)])
    assert (masks.dtype, tuple(masks.shape)) == (torch.bool, (2, 6, 7))
    assert torch.equal(masks[0], expected)
    assert torch.equal(masks[1], expected)
    assert view.masks([]).shape == (0, 6, 7)


def test_a_bitmap_takes_the_pixel_under_each_centre() -> None:
    bitmap = np.array([[0, 1, 0, 1, 1, 0]], dtype=np.uint8)
    view = Crop(original=(1, 6), resized=(1, 4), corner=(0, 0), size=(1, 4), flipped=False)
    # Centres at 0.75, 2.25, 3.75 and 5.25 of the six.
    assert view.masks([_run_lengths(bitmap)])[0, 0].tolist() == [False, False, True, False]


# Samples


def _dataset(folder: Path, boxes: list[list[float]], **options: Any) -> CocoDataset:
    """An image of 40 x 48 for each list of boxes."""
    images = [picture(place) for place in range(len(boxes))]
    annotations = []
    for place, (x, y, width, height) in enumerate(boxes):
        outline = rectangle(x, y, x + width, y + height)
        annotations.append(annotation(place, place, [x, y, width, height], segmentation=outline))
    return CocoDataset.from_folder(write_folder(folder, images, annotations), "train", **options)


def test_objects_that_are_not_seen_are_left_out(tmp_path: Path) -> None:
    boxes = [[2, 2, 6, 6], [30, 30, 6, 6], [20, 0, 4, 4]]
    annotations = [
        annotation(place, 1, box, segmentation=rectangle(box[0], box[1], box[0] + box[2], box[1] + box[3]))
        | {"category_id": 2 if place == 2 else 7}
        for place, box in enumerate(boxes)
    ]
    dataset = CocoDataset.from_folder(write_folder(tmp_path, [picture(1)], annotations), "train", masks=True)
    view = Crop(original=(48, 40), resized=(48, 40), corner=(0, 4), size=(20, 18), flipped=False)
    found = apply_crop(dataset[0], view)
    # Columns 4..21 and rows 0..19: the second box lies beyond, of the third columns 20 and 21 are seen.
    assert found.target["boxes"].tolist() == [[0, 2, 4, 8], [16, 0, 18, 4]]
    assert found.target["labels"].tolist() == [1, 0]
    assert found.target["masks"].sum((1, 2)).tolist() == [24, 8]
    assert tuple(found.image.shape) == (3, 20, 18)
    assert found.info.image_id == 1


@pytest.mark.parametrize("keep", [False, True])
def test_crops_without_an_object(keep: bool, tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, [[0, 0, 4, 4]])
    config = AugmentConfig(longest_side=48, factors=(1, 1), crop=32, keep_empty_crops=keep)
    # 17 x 9 places, of which 4 x 4 see the object.
    crops = [augmented(dataset, 0, config, np.random.default_rng(n)) for n in range(40)]
    empty = sum(not len(crop.target["boxes"]) for crop in crops)
    assert empty > 20 if keep else empty == 0


def test_another_picture_takes_the_place_of_one_without_objects(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [picture(1), picture(2)], [annotation(1, 2, [5, 5, 9, 9])])
    dataset = CocoDataset.from_folder(folder, "train", training=False)
    config = AugmentConfig(longest_side=48, crop=64, keep_empty_crops=False)
    assert {augmented(dataset, 0, config, np.random.default_rng(n)).info.image_id for n in range(5)} == {2}


def test_no_object_in_any_crop(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [picture(1)], [])
    dataset = CocoDataset.from_folder(folder, "train", training=False)
    with pytest.raises(
        ConfigError, match=r"crop=640: no object in 256 crops of that size, the last of 1\.png; make it"
    ):
        augmented(dataset, 0, AugmentConfig(keep_empty_crops=False), np.random.default_rng(0))
    assert augmented(dataset, 0, AugmentConfig(), np.random.default_rng(0)).target["boxes"].shape == (0, 4)


def test_masks_of_photographs_lie_in_their_boxes(data_folder: Path) -> None:
    dataset = CocoDataset.from_folder(data_folder / "coco", "val2017", masks=True)
    checked = 0
    for index in range(0, len(dataset), 3):
        found = augmented(dataset, index, RECIPE, np.random.default_rng(index))
        height, width = found.image.shape[-2:]
        assert max(height, width) <= 640
        for box, mask in zip(found.target["boxes"], found.target["masks"], strict=True):
            assert tuple(mask.shape) == (height, width)
            touches = bool((box[:2] <= 0).any() or box[2] >= width or box[3] >= height)
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            if not len(rows) or touches:  # cut off by the crop, where the mask may end before the box
                continue
            around = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert float((around - box).abs().max()) < 2.5
            checked += 1
    assert checked > 50
