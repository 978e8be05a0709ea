"""Augmentation by choice: what each does to pixels, boxes and masks, presets, a user's own, and runs that resume."""

from __future__ import annotations

import itertools
import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folders import annotation, picture, rectangle, write_folder
from pycocotools import mask as mask_api
from torch import Tensor
from torchvision.transforms import v2

from fpg_zoo.config import PreprocessConfig
from fpg_zoo.config.training import PRESETS, AugmentConfig, preset_named
from fpg_zoo.data.augment import Augmented, Crop, augmented, draw_crop
from fpg_zoo.data.augmentations import Part, draw_window, paste, put_together, rotate
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.dataset import ImageInfo, Objects, Sample, no_objects
from fpg_zoo.data.loader import TrainBatch, train_loader, train_samples
from fpg_zoo.data.masks import Polygons, RunLengths
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.errors import ConfigError, UnknownNameError

Target = dict[str, Tensor]

SIDE = 96
BASE = AugmentConfig(longest_side=SIDE, crop=SIDE)
CHOICES: dict[str, dict[str, Any]] = {
    "recipe": {},
    "jitter": {"factors": (0.1, 2.0)},
    "iou_crop": {"iou_crop": True},
    "mosaic": {"mosaic": 1.0},
    "copy_paste": {"copy_paste": 1.0},
    "rotate90": {"rotate90": 1.0},
    "photometric": {"photometric": True},
    "all": {
        "factors": (0.1, 2.0),
        "iou_crop": True,
        "mosaic": 0.5,
        "copy_paste": 0.7,
        "rotate90": 0.7,
        "photometric": True,
    },
}


def _block(size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


def _config(name: str, **changes: Any) -> AugmentConfig:
    return AugmentConfig(longest_side=SIDE, crop=SIDE, **(CHOICES[name] | changes))


@pytest.fixture(scope="module")
def scenes(one_thread: None) -> ShapesDataset:
    return ShapesDataset("train", 6, masks=True, size=(64, 96))


# Each by hand


@pytest.mark.parametrize(
    ("turns", "box", "pixel"),
    [
        # In an image of 4 rows and 6 columns, the box (1, 0, 3, 2). To the left, the right border comes up: what is at
        # (x, y) goes to (y, 6 - x).
        (1, [0, 3, 2, 5], (4, 0)),
        (2, [3, 2, 5, 4], (3, 4)),
        (3, [2, 1, 4, 3], (1, 3)),
    ],
)
def test_a_turn_moves_a_known_box(turns: int, box: list[int], pixel: tuple[int, int]) -> None:
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    image[:, 0, 1] = 9
    target = {
        "boxes": torch.tensor([[1.0, 0, 3, 2]]),
        "labels": torch.tensor([4]),
        "masks": _block((4, 6), slice(0, 2), slice(1, 3))[None],
        "has_mask": torch.tensor([True]),
    }
    turned, moved = rotate(image, target, turns)
    size = (4, 6) if turns == 2 else (6, 4)
    assert tuple(turned.shape) == (3, *size)
    assert turned[0].nonzero().tolist() == [list(pixel)]
    assert moved["boxes"].tolist() == [box]
    x1, y1, x2, y2 = box
    assert torch.equal(moved["masks"][0], _block(size, slice(y1, y2), slice(x1, x2)))
    assert (moved["labels"].tolist(), moved["has_mask"].tolist()) == ([4], [True])
    assert target["boxes"].tolist() == [[1, 0, 3, 2]]


def test_what_is_pasted_covers_what_is_there() -> None:
    size = (6, 8)
    boxes = [[2, 1, 6, 4], [5.2, 0.5, 7.9, 1.8], [0, 4, 2, 6], [2.5, 2.5, 3.5, 3.5], [4, 3, 5, 4]]
    nothing = torch.zeros(size, dtype=torch.bool)
    masks = [
        _block(size, slice(1, 4), slice(2, 6)),
        _block(size, slice(0, 2), slice(5, 8)),
        nothing,
        nothing,
        _block(size, slice(3, 4), slice(4, 5)),
    ]
    target = {
        "boxes": torch.tensor(boxes),
        "labels": torch.arange(5),
        "masks": torch.stack(masks),
        "has_mask": torch.tensor([True, True, False, False, True]),
    }
    # A row less and a column more than the image.
    wide = (5, 9)
    source_target = {
        "boxes": torch.tensor([[2.0, 2, 6, 5], [0, 0, 1, 1], [7, 3, 9, 5], [8, 0, 9, 2]]),
        "labels": torch.tensor([5, 6, 7, 8]),
        "masks": torch.stack(
            [
                _block(wide, slice(2, 5), slice(2, 6)),
                _block(wide, slice(0, 1), slice(0, 1)),
                _block(wide, slice(3, 5), slice(7, 9)),
                _block(wide, slice(0, 2), slice(8, 9)),
            ]
        ),
    }
    source = torch.full((3, *wide), 7, dtype=torch.uint8)
    image, found = paste(
        torch.zeros(3, *size, dtype=torch.uint8), target, source, source_target, torch.tensor([0, 2, 3])
    )
    cover = _block(size, slice(2, 5), slice(2, 6)) | _block(size, slice(3, 5), slice(7, 8))
    assert torch.equal(image, (cover * 7).byte().expand(3, -1, -1))
    # Of the first, the uppermost row is left; the second and third are beside; of the others nothing is left: the
    # fourth's box and the fifth's mask are covered. What was pasted is cut off at column 8, or lies beyond it.
    assert found["labels"].tolist() == [0, 1, 2, 5, 7]
    expected = [[2, 1, 6, 2], boxes[1], boxes[2], [2, 2, 6, 5], [7, 3, 8, 5]]
    assert torch.equal(found["boxes"], torch.tensor(expected))
    assert torch.equal(found["masks"][0], _block(size, slice(1, 2), slice(2, 6)))
    assert torch.equal(found["masks"][1], masks[1])
    assert not found["masks"][2].any()
    assert torch.equal(found["masks"][3] | found["masks"][4], cover)
    assert found["has_mask"].tolist() == [True, True, False, True, True]


def test_images_in_their_places_on_a_larger_one() -> None:
    def part(value: int, size: tuple[int, int], corner: tuple[int, int], **more: Tensor) -> Part:
        target = {
            "boxes": torch.tensor([[0.5, 0, 2, 1]]),
            "labels": torch.tensor([value]),
            "masks": _block(size, slice(0, 1), slice(0, 2))[None],
        }
        return Part(torch.full((3, *size), value, dtype=torch.uint8), target | more, corner)

    parts = [part(1, (2, 3), (1, 1)), part(2, (3, 4), (3, 4), has_mask=torch.tensor([False]))]
    image, target = put_together(parts, (6, 8))
    expected = torch.full((6, 8), 114, dtype=torch.uint8)
    expected[1:3, 1:4] = 1
    expected[3:, 4:] = 2
    assert torch.equal(image, expected.expand(3, -1, -1))
    assert target["boxes"].tolist() == [[1.5, 1, 3, 2], [4.5, 3, 6, 4]]
    assert target["labels"].tolist() == [1, 2]
    assert torch.equal(target["masks"][0], _block((6, 8), slice(1, 2), slice(1, 3)))
    assert torch.equal(target["masks"][1], _block((6, 8), slice(3, 4), slice(4, 6)))
    assert target["has_mask"].tolist() == [True, False]


class Plain:
    """Images of one color each, all of which is an object."""

    class_names = ("a", "b", "c", "d", "e")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.full((3, 40, 40), 10 * (index + 1), dtype=torch.uint8), self.image_info(index))

    def image_info(self, index: int) -> ImageInfo:
        box = np.array([[0, 0, 40, 40]])
        area, place = np.array([1600.0]), np.array([0])
        objects = Objects(box.astype(np.float32), np.array([index]), None, (1,), box.astype(np.float64), area, place)
        return ImageInfo(index, Path(f"{index}.png"), (40, 40), objects, no_objects(masks=False))


def test_a_mosaic_has_an_image_in_each_corner() -> None:
    # At twice the size or more, each image fills its corner.
    config = AugmentConfig(longest_side=64, factors=(2, 2), crop=64, mosaic=1.0)
    middles, firsts = set(), set()
    for seed in range(40):
        found = augmented(Plain(), 3, config, np.random.default_rng(seed))
        _, _, x, y = found.target["boxes"][0].tolist()
        assert found.target["boxes"].tolist() == [[0, 0, x, y], [x, 0, 64, y], [0, y, x, 64], [x, y, 64, 64]]
        for box, label in zip(found.target["boxes"].int().tolist(), found.target["labels"].tolist(), strict=True):
            assert (found.image[:, box[1] : box[3], box[0] : box[2]] == 10 * (label + 1)).all()
        assert found.info.image_id == found.target["labels"][0] == 3
        middles.add((x, y))
        firsts |= set(found.target["labels"].tolist())
    assert all(16 <= side <= 48 for middle in middles for side in middle)
    assert len(middles) > 30
    assert firsts == set(range(5))


def test_a_part_of_an_image_is_seen_as_an_image_of_its_own() -> None:
    # Rows 1..4 and columns 2..5, twice as large; of these 8 x 8, the 6 x 6 from row 1 and column 2.
    bitmap = np.zeros((6, 8), dtype=np.uint8)
    bitmap[2:4, 3:5] = 1
    outline = Polygons((np.array([[3.0, 2], [5, 2], [5, 4], [3, 4]]),))
    encoded = RunLengths((6, 8), mask_api.encode(np.asfortranarray(bitmap))["counts"])
    for flipped in (False, True):
        view = Crop((4, 4), resized=(8, 8), corner=(1, 2), size=(6, 6), flipped=flipped, part_corner=(1, 2))
        # (3, 2) -> (1, 1) of the part -> (2, 2) -> (0, 1) of the crop; (5, 4) -> (3, 3) -> (6, 6) -> (4, 5).
        expected = [[2, 1, 6, 5]] if flipped else [[0, 1, 4, 5]]
        assert view.boxes(np.array([[3, 2, 5, 4]], dtype=np.float32)).tolist() == expected
        x1, y1, x2, y2 = expected[0]
        for mask in view.masks([outline, encoded]):
            assert torch.equal(mask, _block((6, 6), slice(y1, y2), slice(x1, x2)))
    same = Crop((4, 4), resized=(4, 4), corner=(1, 0), size=(3, 4), flipped=False, part_corner=(1, 2))
    image = torch.arange(3 * 6 * 8, dtype=torch.uint8).reshape(3, 6, 8)
    assert torch.equal(same.image(image), image[:, 2:5, 2:6])


def test_a_window_shows_the_objects_whose_centers_are_in_it() -> None:
    boxes = np.array([[10, 10, 20, 20], [50, 30, 90, 60], [0, 0, 100, 80]], dtype=np.float32)
    drawn = [draw_window((80, 100), boxes, np.random.default_rng(seed)) for seed in range(60)]
    for corner, size, seen in drawn:
        (top, left), (height, width) = corner, size
        assert 0 <= top <= 80 - height
        assert 0 <= left <= 100 - width
        assert seen.any()
        if size != (80, 100):
            assert height >= 24
            assert width >= 30
            assert 0.5 <= width / height <= 2
            centers = [(15, 15), (70, 45), (50, 40)]
            assert seen.tolist() == [left < x < left + width and top < y < top + height for x, y in centers]
    assert len({(corner, size) for corner, size, _ in drawn}) > 40
    none = np.zeros((0, 4), dtype=np.float32)
    for size, objects in (((80, 100), none), ((3, 100), boxes[:1])):
        corner, whole, seen = draw_window(size, objects, np.random.default_rng(0))
        assert (corner, whole, len(seen)) == ((0, 0), size, len(objects))


def test_colors_vary_and_nothing_else(scenes: ShapesDataset) -> None:
    plain, varied = (
        [augmented(scenes, index, config, np.random.default_rng(index)) for index in range(6)]
        for config in (BASE, _config("photometric"))
    )
    for one, other in zip(plain, varied, strict=True):
        assert one.image.shape == other.image.shape
        assert all(torch.equal(value, other.target[name]) for name, value in one.target.items())
    assert sum(not torch.equal(one.image, other.image) for one, other in zip(plain, varied, strict=True)) >= 5


# What holds for all


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", CHOICES)
def test_boxes_lie_in_the_image_and_masks_in_their_boxes(name: str, keep: bool, scenes: ShapesDataset) -> None:
    config = _config(name, keep_empty_crops=keep)
    for seed in range(8):
        found = augmented(scenes, seed % 6, config, np.random.default_rng(seed))
        height, width = found.image.shape[-2:]
        boxes, labels, masks = (found.target[part] for part in ("boxes", "labels", "masks"))
        assert (found.image.dtype, found.image.is_contiguous()) == (torch.uint8, True)
        assert 1 <= min(height, width) <= max(height, width) <= SIDE
        assert (boxes.dtype, labels.dtype, masks.dtype) == (torch.float32, torch.int64, torch.bool)
        assert len(boxes) == len(labels) == len(masks)
        assert tuple(masks.shape[1:]) == (height, width)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert keep or len(boxes)
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            if len(rows):  # a scaled mask takes the pixels whose centers it covers
                around = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                assert (around[:2] >= box[:2] - 1).all()
                assert (around[2:] <= box[2:] + 1).all()


def test_objects_without_a_mask_stay_without(tmp_path: Path) -> None:
    annotations = [
        annotation(n, n // 2, [4, 4, 30, 30], **({"segmentation": rectangle(4, 4, 34, 34)} if n % 2 else {}))
        for n in range(4)
    ]
    folder = write_folder(tmp_path, [picture(0), picture(1)], annotations)
    dataset = CocoDataset.from_folder(folder, "train", masks=True)
    for seed in range(20):
        target = augmented(dataset, 0, _config("all"), np.random.default_rng(seed)).target
        if len(target["boxes"]):
            assert len(target["has_mask"]) == len(target["boxes"]) or "has_mask" not in target
        if "has_mask" in target:
            assert not target["masks"][~target["has_mask"]].any()


def test_the_views_of_the_recipe_are_those_of_earlier_versions() -> None:
    # Written by the version before there was anything but the recipe.
    generator = np.random.default_rng(7)
    views = [draw_crop((480, 640), AugmentConfig(), generator) for _ in range(3)]
    assert views == [
        Crop((480, 640), resized=(504, 672), corner=(0, 22), size=(504, 640), flipped=False),
        Crop((480, 640), resized=(427, 569), corner=(0, 0), size=(427, 569), flipped=True),
        Crop((480, 640), resized=(551, 735), corner=(0, 86), size=(551, 640), flipped=True),
    ]


# A user's own


def shaken(image: Tensor, target: Target, generator: np.random.Generator) -> tuple[Tensor, Target]:
    """Takes random numbers wherever there are any."""
    noise = torch.randint(0, 8, image.shape, dtype=torch.uint8)
    image = (image ^ noise) ^ np.random.randint(0, 8) ^ random.randrange(8) ^ int(generator.integers(8))
    return image, target


class Mirrored:
    """A pipeline of torchvision's."""

    def __init__(self) -> None:
        self.transform = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.SanitizeBoundingBoxes()])

    def __call__(self, image: Tensor, target: Target, generator: np.random.Generator) -> tuple[Tensor, Target]:
        return self.transform(image, target)


def _first(dataset: Any, transform: Any, **changes: Any) -> Augmented:
    return augmented(dataset, 0, AugmentConfig(**({"crop": 40} | changes)), np.random.default_rng(0), transform)


def test_transforms_of_torchvision_take_a_sample(scenes: ShapesDataset) -> None:
    plain = augmented(scenes, 1, BASE, np.random.default_rng(1))
    found = augmented(scenes, 1, BASE, np.random.default_rng(1), Mirrored())
    assert {type(value) for value in (found.image, *found.target.values())} == {Tensor}
    assert torch.equal(found.image, plain.image.flip(-1))
    width = plain.image.shape[-1]
    assert len(plain.target["boxes"]) > 2
    x1, y1, x2, y2 = plain.target["boxes"].unbind(1)
    assert torch.allclose(found.target["boxes"], torch.stack((width - x2, y1, width - x1, y2), 1))
    assert torch.equal(found.target["masks"], plain.target["masks"].flip(-1))
    assert torch.equal(found.target["labels"], plain.target["labels"])


def test_a_transform_may_change_what_it_is_given() -> None:
    kept = torch.zeros(3, 40, 40, dtype=torch.uint8)

    class Kept(Plain):
        def __getitem__(self, index: int) -> Sample:
            return Sample(kept, self.image_info(index))

    def darkened(image: Tensor, target: Target, generator: np.random.Generator) -> tuple[Tensor, Target]:
        return image.add_(1), target

    found = _first(Kept(), darkened, longest_side=40, factors=(1, 1), flip=0)
    assert (found.image == 1).all()
    assert not kept.any()


def _returning(**changes: Any) -> Callable[[Tensor, Target, np.random.Generator], Any]:
    """A transform that returns the sample but for something."""

    def changed(image: Tensor, target: Target, generator: np.random.Generator) -> Any:
        return changes.pop("image", image), {**target, **changes}

    return changed


@pytest.mark.parametrize(
    ("transform", "complaint"),
    [
        (lambda *_: None, r"<class 'NoneType'>, and is to return an image and a target"),
        (lambda image, *_: (image, [1]), r"the target \[1\], which is to be a dict of tensors"),
        (lambda image, *_: (image, {"boxes": torch.zeros(0, 4)}), r"a target of \['boxes'\], .* to have boxes, labels"),
        (_returning(masks=torch.zeros(1, 40, 40) > 0), r"a target of \['boxes', 'labels', 'masks'\]"),
        (_returning(image=torch.zeros(3, 40, 40)), r"an image \(3, 40, 40\) float32, which is to be \(3, h, w\) uint8"),
        (_returning(image=np.zeros(3)), r"an image <class 'numpy\.ndarray'>"),
        (_returning(image=torch.zeros(3, 40, 41).byte()), "an image of 41x40 pixels, which is to have 1 to 40 a side"),
        (_returning(image=torch.zeros(3, 0, 4).byte()), "an image of 4x0 pixels"),
        (_returning(boxes=torch.zeros(4)), r"boxes \(4,\) float32, which are to be \(4, 4\) float32"),
        (_returning(boxes=torch.ones(1, 4).double()), r"boxes \(1, 4\) float64, which are to be \(1, 4\) float32"),
        (_returning(labels=torch.zeros(2).long()), r"labels \(2,\) int64, which are to be \(1,\) int64"),
        (
            _returning(boxes=torch.tensor([[0.0, 0, 41, 9]])),
            r"the box \[0\.0, 0\.0, 41\.0, 9\.0\], which is to lie in the image of 40x40 and to have an area",
        ),
        (_returning(boxes=torch.tensor([[3.0, 3, 3, 9]])), r"the box \[3\.0, 3\.0, 3\.0, 9\.0\]"),
        (_returning(boxes=torch.tensor([[3.0, float("nan"), 5, 9]])), r"the box \[3\.0, nan"),
        (_returning(labels=torch.tensor([5])), r"the label 5, which is to be in 0\.\.4"),
        (_returning(boxes=torch.zeros(1, 4, device="meta")), "a tensor on meta, which is to be on the CPU"),
        (lambda image, target, _: (image, v2.ConvertBoundingBoxFormat("XYWH")(target)), "boxes as .*XYWH"),
    ],
)
def test_what_a_transform_returns_is_checked(transform: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=rf"^transform=<.*: it returned {complaint}"):
        _first(Plain(), transform, longest_side=40, factors=(1, 1))


def test_masks_are_to_be_returned(scenes: ShapesDataset) -> None:
    def dropped(image: Tensor, target: Target, generator: np.random.Generator) -> tuple[Tensor, Target]:
        return image, {"boxes": target["boxes"], "labels": target["labels"]}

    with pytest.raises(ConfigError, match=r"which is to have boxes, labels, masks"):
        augmented(scenes, 0, BASE, np.random.default_rng(0), dropped)


def test_a_transform_that_leaves_no_object() -> None:
    calls: list[int] = []

    def emptied(image: Tensor, target: Target, generator: np.random.Generator) -> tuple[Tensor, Target]:
        calls.append(1)
        kept = torch.zeros(len(target["labels"]), dtype=torch.bool) if len(calls) % 4 else target["labels"] >= 0
        return image, {name: value[kept] for name, value in target.items()}

    assert not len(_first(Plain(), emptied).target["boxes"])
    assert len(_first(Plain(), emptied, keep_empty_crops=False).target["boxes"])  # at the fourth call
    assert len(calls) == 4
    with pytest.raises(ConfigError, match=r"it left no object in 16 images, the last of them \d\.png; let it keep"):
        _first(Plain(), lambda image, target, _: (image, {k: v[:0] for k, v in target.items()}), keep_empty_crops=False)


def test_a_transform_that_workers_cannot_be_given(scenes: ShapesDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    options: dict[str, Any] = {"batch_size": 1, "seed": 0}
    train_loader(scenes, BASE, PreprocessConfig(), transform=shaken, workers=2, **options)
    train_loader(scenes, BASE, PreprocessConfig(), transform=lambda *_: None, **options)
    with pytest.raises(ConfigError, match=r"^transform=<function .*started anew .*local object.*use workers=0$"):
        train_loader(scenes, BASE, PreprocessConfig(), transform=lambda *_: None, workers=2, **options)
    with pytest.raises(ConfigError, match=r"^transform=3: give a function of an image, a target and a generator$"):
        train_loader(scenes, BASE, PreprocessConfig(), transform=3, **options)  # type: ignore[arg-type]


# Runs that resume


def _batches(dataset: Any, name: str, number: int, **options: Any) -> list[TrainBatch]:
    options = {"batch_size": 2, "seed": 3} | options
    preprocessing = PreprocessConfig(longest_side=SIDE, pad_divisor=32)
    return list(itertools.islice(train_loader(dataset, _config(name), preprocessing, **options), number))


def _assert_same(first: list[TrainBatch], second: list[TrainBatch]) -> None:
    for one, other in zip(first, second, strict=True):
        assert (one.sizes, one.image_ids) == (other.sizes, other.image_ids)
        assert torch.equal(one.images, other.images)
        for target, likewise in zip(one.targets, other.targets, strict=True):
            assert target.keys() == likewise.keys()
            assert all(torch.equal(target[name], likewise[name]) for name in target)


@pytest.mark.parametrize(
    ("name", "transform"), [*((name, None) for name in CHOICES), ("recipe", shaken), ("all", shaken)]
)
@pytest.mark.slow
def test_workers_and_restarts_make_the_same_batches(name: str, transform: Any, scenes: ShapesDataset) -> None:
    torch.manual_seed(1)
    whole = _batches(scenes, name, 5, transform=transform)
    torch.manual_seed(2)
    _assert_same(_batches(scenes, name, 3, start_batch=2, transform=transform), whole[2:])
    _assert_same(_batches(scenes, name, 3, start_batch=2, transform=transform, workers=2), whole[2:])


def test_no_random_number_is_taken_from_anybody(scenes: ShapesDataset) -> None:
    def numbers() -> tuple[float, float, float]:
        return float(torch.rand(1)), float(np.random.rand()), random.random()

    taken = []
    for number in (0, 3):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        _batches(scenes, "all", number, transform=shaken)
        taken.append(numbers())
    assert taken[0] == taken[1]


def test_samples_are_those_of_the_batches(scenes: ShapesDataset) -> None:
    samples = train_samples(scenes, _config("all"), seed=3)
    for batch in _batches(scenes, "all", 2):
        for image_id, size, target in zip(batch.image_ids, batch.sizes, batch.targets, strict=True):
            sample = next(samples)
            assert (sample.info.image_id, tuple(sample.image.shape[-2:])) == (image_id, size)
            assert torch.equal(sample.target["boxes"], target["boxes"])


# Refusals and presets


def test_copy_paste_takes_masks() -> None:
    for load in (train_samples, lambda *rest, seed: train_loader(*rest, PreprocessConfig(), batch_size=1, seed=seed)):
        with pytest.raises(ConfigError, match=r"copy_paste=1\.0: objects are cut out by their masks, and .* without;"):
            load(ShapesDataset("train", 2), _config("copy_paste"), seed=0)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"mosaic": 1.5}, r"mosaic=1\.5: it takes a number from 0 to 1"),
        ({"copy_paste": -1}, "copy_paste=-1: it takes a number from 0 to 1"),
        ({"rotate90": None}, "rotate90=None: it takes a number"),
        ({"photometric": 1}, "photometric=1: use one of True, False"),
        ({"iou_crop": "yes"}, "iou_crop='yes': use one of True, False"),
    ],
)
def test_values_that_describe_no_augmentation(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        AugmentConfig(**values)


def test_presets_change_a_recipes_augmentation() -> None:
    own = AugmentConfig(longest_side=320, crop=320, flip=0.1, keep_empty_crops=False)
    assert preset_named("recipe", own) == own
    changed = {name: preset_named(name, own) for name in PRESETS}
    assert len(set(changed.values())) == len(PRESETS)
    assert {(config.crop, config.flip, config.keep_empty_crops) for config in changed.values()} == {(320, 0.1, False)}
    assert changed["lsj"].factors == (0.1, 2.0)
    with pytest.raises(UnknownNameError, match="no augmentation 'srtong': known are recipe, light, strong, lsj, "):
        preset_named("srtong", own)
