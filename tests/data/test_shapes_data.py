"""Scenes of shapes are what their annotations say, learnable, and the same ones everywhere."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

from fpg_zoo.config import PreprocessConfig
from fpg_zoo.config.training import AugmentConfig
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.dataset import Dataset, ImageInfo
from fpg_zoo.data.loader import train_loader
from fpg_zoo.data.masks import RunLengths, decode
from fpg_zoo.data.shapes import NUM_IMAGES, SIZE, ShapesDataset, write_coco
from fpg_zoo.data.shapes import scenes as shapes_scenes
from fpg_zoo.data.shapes.outlines import (
    CLASSES,
    FINE,
    SINES,
    TURNS,
    Convex,
    Disc,
    Outline,
    cover,
    eroded,
    placed,
    rasterised,
)
from fpg_zoo.data.shapes.scenes import LEAST_PIXELS, LEAST_SHARE, MOST_OBJECTS, Draws, scene
from fpg_zoo.errors import ConfigError, StorageError
from fpg_zoo.evaluation.coco_metrics import coco_scores

SCENES = 60  # that are looked at, of each split


def _digest(dataset: ShapesDataset, index: int) -> str:
    """Of a scene's pixels and all that its annotations say."""
    sample = dataset[index]
    objects = sample.info.objects
    assert objects.masks is not None
    masks = [mask.counts.decode() for mask in objects.masks if isinstance(mask, RunLengths)]
    said = [objects.boxes.tolist(), objects.labels.tolist(), masks, objects.ids, sample.info.image_id]
    return hashlib.sha256(sample.image.numpy().tobytes() + json.dumps(said).encode()).hexdigest()


def _bitmaps(picture: ImageInfo) -> np.ndarray:
    """(G, H, W) bool."""
    assert picture.objects.masks is not None
    masks = [decode(mask) for mask in picture.objects.masks if isinstance(mask, RunLengths)]
    return np.stack(masks).astype(bool)


@pytest.fixture(scope="module", params=["train", "val"])
def dataset(request: pytest.FixtureRequest) -> ShapesDataset:
    return ShapesDataset(request.param, SCENES, masks=True)


# The same everywhere


def test_scenes_never_change() -> None:
    """Whoever changes these makes published metrics incomparable."""
    found = {
        (split, index): _digest(ShapesDataset(split, 20, masks=True), index)
        for split, index in (("train", 0), ("train", 7), ("train", 19), ("val", 0), ("val", 7), ("val", 19))
    }
    assert found == {
        ("train", 0): "4fa0415d6f81e04cb3fad69f0cda09a34a2249f7121bf7467c718085aad84ef6",
        ("train", 7): "7cab9f5104596337aa90a0bee51b5f22848e98cd42dc89a313ffc675b74b5da9",
        ("train", 19): "71c992c091bdc311099e4163b3e961166540d9adfd0dd2d541017135214fe5d9",
        ("val", 0): "e24083b2dc22f119c480dd436af5209dcb83e2d7cff555e89f8f4af87f6b435d",
        ("val", 7): "ac9e344f822e529785845310ad525ad3f354ecb40b7ae54bffdeac4c0f0e0d7d",
        ("val", 19): "c523544e9d4a000fd226a1b251e03cc95193ddffcc95293a6634e21fdc910d4c",
    }
    assert _digest(ShapesDataset("val", 1, masks=True, size=(96, 128)), 0) == (
        "6ec69727cfd505097ff6b1ab112e1c19cd121da88a113871d1c90339c7ed2313"
    )


def test_random_numbers_are_those_of_pcg64() -> None:
    # numpy's documented raw stream; below(n) is the n-th part of 2**64 that a number falls into. A block of 256 is used
    # from its end.
    raw = np.random.PCG64(np.random.SeedSequence(1, spawn_key=(3, 4))).random_raw(258)
    draws = Draws(3, 4)
    assert [draws.below(1000) for _ in range(2)] == [int(raw[255]) * 1000 // 2**64, int(raw[254]) * 1000 // 2**64]
    # Bytes come after the block, the lowest of each number first: nine of them are of two.
    assert draws.octets(3, 3).ravel().tolist() == [*int(raw[256]).to_bytes(8, "little"), int(raw[257]) & 255]
    several = Draws(5)
    assert {several.between(2, 4) for _ in range(60)} == {2, 3, 4}
    assert not any(several.happens(0) for _ in range(60))
    assert all(several.happens(100) for _ in range(60))


def test_sines_round_the_same_everywhere() -> None:
    # A platform's sine may be wrong in its last bit, about 1e-16 of 1; none is so near to where rounding changes.
    exact = [math.sin(2 * math.pi * angle / TURNS) * 2**14 for angle in range(TURNS)]
    assert min(abs(value - math.floor(value) - 0.5) for value in exact) > 1e-4
    assert (SINES[0], SINES[64], SINES[128], SINES[192]) == (0, 2**14, 0, -(2**14))


def test_a_scene_depends_on_its_index_only(dataset: ShapesDataset) -> None:
    other = ShapesDataset(dataset.split, SCENES // 2, masks=True)
    before = [_digest(dataset, index) for index in (3, 4, 5)]
    assert [_digest(other, index) for index in (5, 4, 3)] == before[::-1]
    scene.cache_clear()
    assert [_digest(pickle.loads(pickle.dumps(dataset)), index) for index in (3, 4, 5)] == before


def test_masks_do_not_change_the_rest(dataset: ShapesDataset) -> None:
    plain = ShapesDataset(dataset.split, SCENES)
    assert torch.equal(plain[2].image, dataset[2].image)
    ours, theirs = plain.image_info(2), dataset.image_info(2)
    assert np.array_equal(ours.objects.boxes, theirs.objects.boxes)
    assert (ours.objects.masks, ours.crowds.masks, theirs.crowds.masks) == (None, None, ())


@pytest.mark.slow
def test_no_two_scenes_are_alike() -> None:
    seen = [
        dataset[index].image.numpy().tobytes()
        for dataset in (ShapesDataset("train", SCENES), ShapesDataset("val", SCENES))
        for index in range(SCENES)
    ]
    assert len(set(seen)) == 2 * SCENES


# What annotations say


def test_the_dataset_says_what_it_has(dataset: ShapesDataset) -> None:
    a_dataset: Dataset = dataset
    assert a_dataset.class_names == tuple(CLASSES)
    assert (len(CLASSES), dataset.category_ids) == (10, tuple(range(1, 11)))
    assert len(dataset) == SCENES
    assert [len(ShapesDataset(split)) for split in ("train", "val")] == [NUM_IMAGES["train"], NUM_IMAGES["val"]]
    picture = dataset.image_info(4)
    assert (picture.image_id, picture.size, picture.file) == (5, SIZE, Path(dataset.split, "000005.png"))
    assert len(picture.crowds) == 0
    image = dataset[4].image
    assert (tuple(image.shape), image.dtype, image.is_contiguous()) == ((3, *SIZE), torch.uint8, True)


def test_boxes_are_tight_around_disjoint_masks(dataset: ShapesDataset) -> None:
    ids = list[int | str]()
    for index in range(SCENES):
        picture = dataset.image_info(index)
        objects, bitmaps = picture.objects, _bitmaps(picture)
        assert 1 <= len(objects) == len(bitmaps) == len(objects.labels) <= MOST_OBJECTS
        assert (objects.boxes.dtype, objects.labels.dtype) == (np.float32, np.int64)
        assert objects.labels.min() >= 0
        assert objects.labels.max() < len(CLASSES)
        assert bitmaps.shape[1:] == SIZE
        assert bitmaps.sum(axis=0).max() == 1
        for box, bitmap in zip(objects.boxes.tolist(), bitmaps, strict=True):
            y, x = bitmap.nonzero()
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        ids.extend(objects.ids)
    assert len(set(ids)) == len(ids)
    assert 0 not in ids  # pycocotools takes 0 for no match


def test_enough_of_each_object_is_visible(dataset: ShapesDataset) -> None:
    whole = hidden = 0
    for index in range(SCENES):
        objects = scene(({"train": 0, "val": 1}[dataset.split], index), SIZE).objects
        for thing, bitmap in zip(objects, _bitmaps(dataset.image_info(index)), strict=True):
            pixels = np.count_nonzero(thing.stamp.cover >= 2)
            seen = np.count_nonzero(bitmap)
            assert seen >= LEAST_PIXELS
            assert seen * 100 >= pixels * LEAST_SHARE
            # Nothing is seen where the object is not.
            (top, left), (height, width) = thing.stamp.corner, thing.stamp.cover.shape
            bitmap[max(top, 0) : top + height, max(left, 0) : left + width] = False
            assert not bitmap.any()
            whole, hidden = whole + (seen == pixels), hidden + (seen < pixels)
    assert min(whole, hidden) > 0.25 * (whole + hidden)


def test_later_objects_are_in_front() -> None:
    for index in range(10):
        found = scene((0, index), SIZE)
        expected = np.full(SIZE, -1)
        for place, thing in enumerate(found.objects):
            for y, x in np.argwhere(thing.stamp.cover >= 2) + thing.stamp.corner:
                if 0 <= y < SIZE[0] and 0 <= x < SIZE[1]:
                    expected[y, x] = place
        assert np.array_equal(found.owner, expected)


def test_objects_are_of_all_classes_and_sizes() -> None:
    found = [scene((0, index), SIZE) for index in range(400)]
    counts = np.bincount([len(each.objects) for each in found], minlength=MOST_OBJECTS + 1)
    assert counts[0] == 0
    assert counts[1:].min() >= 10  # 33 of each expected
    labels = np.bincount([thing.label for each in found for thing in each.objects], minlength=len(CLASSES))
    assert labels.min() > 0.75 * labels.mean()
    boxes = np.concatenate([each.boxes() for each in found])
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert np.percentile(sides, 5) < 20
    assert 35 < np.median(sides) < 55
    assert np.percentile(sides, 95) > 80


# The drawing


def _area(part: Convex | Disc) -> float:
    if isinstance(part, Disc):
        return math.pi * part.radius**2
    pairs = zip(part.corners, part.corners[1:] + part.corners[:1], strict=True)
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs) / 2


@pytest.mark.parametrize("name", CLASSES)
def test_outlines_are_convex_clockwise_and_within_their_circle(name: str) -> None:
    for part in CLASSES[name].added:
        if isinstance(part, Disc):
            assert math.hypot(*part.centre) + part.radius <= 1024
            continue
        assert max(math.hypot(*corner) for corner in part.corners) <= 1025  # a corner is rounded
        around = part.corners + part.corners[:2]
        for (x1, y1), (x2, y2), (x3, y3) in zip(around, around[1:], around[2:], strict=False):
            assert (x2 - x1) * (y3 - y2) > (y2 - y1) * (x3 - x2)


def test_rasterised_outlines_have_their_area() -> None:
    # A disc of 20 pixels and a square of side 20 out of it: pi 400 - 400 = 856.6 pixels, each of 4 samples.
    ring = Outline((Disc((0, 0), 20 * FINE),), (Convex(tuple((x * FINE, y * FINE) for x, y in _SQUARE)),))
    stamp = rasterised(ring)
    assert stamp.corner == (-21, -21)
    assert stamp.cover.sum() / 4 == pytest.approx(math.pi * 400 - 400, abs=4)
    assert np.array_equal(stamp.cover, stamp.cover.T)
    # Its pixels from -10 to 10 both ways are empty, those that touch them full.
    assert stamp.cover[11:31, 11:31].max() == 0
    assert stamp.cover[10, 11:31].min() == 4


_SQUARE = ((-10, -10), (10, -10), (10, 10), (-10, 10))


@pytest.mark.parametrize("angle", [0, 21, 64, 200])
def test_an_outline_is_placed_in_the_picture(angle: int) -> None:
    # The triangle's side is sqrt(3) radii, its area 3/4 sqrt(3) radii^2; its middle stays where it is put.
    stamp = rasterised(placed(CLASSES["triangle"], 30 * FINE, angle, (100 * FINE + 32, 50 * FINE)))
    assert stamp.cover.sum() / 4 == pytest.approx(0.75 * math.sqrt(3) * 900, rel=0.01)
    y, x = (stamp.cover * grid for grid in np.mgrid[: stamp.cover.shape[0], : stamp.cover.shape[1]] + 0.5)
    middle = [stamp.corner[axis] + grid.sum() / stamp.cover.sum() for axis, grid in enumerate((y, x))]
    assert middle == pytest.approx([50, 100.5], abs=0.1)
    # At angle 0 its tip is up: 30 above the middle, and 15 below. 64 of 256 is a quarter clockwise: the tip is right.
    if angle in (0, 64):
        mask = stamp.cover >= 2
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) + stamp.corner[1 - axis] for axis in (1, 0))
        extent = (rows if angle == 0 else columns)[[0, -1]] + [0, 1] - np.array(50 if angle == 0 else 100.5)
        assert extent == pytest.approx([-30, 15] if angle == 0 else [-15, 30], abs=1)


def test_masks_of_quarter_turns_are_turned() -> None:
    straight, turned = (rasterised(placed(CLASSES["arrow"], 20 * FINE, angle, (0, 0))).inside for angle in (0, 64))
    ours, theirs = (np.argwhere(bitmap) for bitmap in (np.rot90(straight, -1), turned))
    # Samples on the very border may fall to either side.
    assert abs(len(ours) - len(theirs)) <= 0.02 * len(ours)
    assert np.abs(ours.mean(axis=0) - ours.min(axis=0) - theirs.mean(axis=0) + theirs.min(axis=0)).max() < 1


def test_erosion_takes_an_octagon_off() -> None:
    inside = np.zeros((24, 24), dtype=bool)
    inside[4:20, 2:22] = True
    assert np.argwhere(eroded(inside, 3)).tolist() == list(map(list, itertools.product(range(7, 17), range(5, 19))))
    hole = np.ones((24, 24), dtype=bool)
    hole[12, 12] = False
    # A step by the plus, one by the square, one by the plus, around the hole: 3 either way, and no corners.
    missing = np.argwhere(~eroded(hole, 3)) - 12
    assert sorted(map(tuple, missing)) == [(y, x) for y in range(-3, 4) for x in range(-3, 4) if abs(x) + abs(y) <= 4]
    assert cover(inside)[:, 6].tolist() == [0, 0, *[4] * 8, 0, 0]


def test_objects_stand_out_from_what_is_behind() -> None:
    """The mean color inside each object differs from that around it, or nobody could learn it."""
    differences = []
    for index in range(20):
        dataset = ShapesDataset("train", 20, masks=True)
        pixels = dataset[index].image.permute(1, 2, 0).numpy().astype(float)
        background = scene((0, index), SIZE).owner < 0
        for bitmap, (x1, y1, x2, y2) in zip(
            _bitmaps(dataset.image_info(index)), dataset.image_info(index).objects.boxes.astype(int), strict=True
        ):
            near = np.zeros_like(bitmap)
            near[max(y1 - 8, 0) : y2 + 8, max(x1 - 8, 0) : x2 + 8] = True
            if (around := near & background).sum() > 50:
                differences.append(np.abs(pixels[bitmap].mean(axis=0) - pixels[around].mean(axis=0)).sum())
    assert len(differences) > 80
    assert np.percentile(differences, 2) > 40


# Files


def test_written_scenes_are_read_back(dataset: ShapesDataset, tmp_path: Path) -> None:
    written = write_coco(tmp_path, dataset.split, 8)
    assert len(written) == 8
    read = CocoDataset.from_folder(tmp_path, dataset.split, masks=True)
    assert not read.report
    assert (read.class_names, read.category_ids) == (dataset.class_names, dataset.category_ids)
    assert len(read) == 8
    for index in range(8):
        ours, theirs = dataset[index], read[index]
        assert torch.equal(ours.image, theirs.image)
        assert (ours.info.image_id, ours.info.size) == (theirs.info.image_id, theirs.info.size)
        assert tmp_path / ours.info.file == theirs.info.file
        one, other = ours.info.objects, theirs.info.objects
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.labels, other.labels)
        assert (one.masks, one.ids) == (other.masks, other.ids)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", dataset.split]
    content = json.loads((tmp_path / "annotations" / f"instances_{dataset.split}.json").read_text("utf-8"))
    assert content == ShapesDataset(dataset.split, 8).annotations()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot write in"):
        write_coco(tmp_path / "file", "val", 1)


def test_pycocotools_finds_the_truth_perfect(dataset: ShapesDataset) -> None:
    content = dataset.annotations()
    for row in content["annotations"]:
        assert row["area"] == mask_api.area(row["segmentation"])
        assert row["bbox"] == mask_api.toBbox(row["segmentation"]).tolist()
    results: list[dict[str, Any]] = [
        {key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 1.0}
        for row in content["annotations"]
    ]
    image_ids = [image["id"] for image in content["images"]]
    assert coco_scores(content, results, "segm", image_ids).metrics["AP"] == pytest.approx(1)
    for row in results:
        del row["segmentation"]
    assert coco_scores(content, results, "bbox", image_ids).metrics["AP"] == pytest.approx(1)


def test_it_is_trained_on_like_any_other() -> None:
    dataset = ShapesDataset("train", 4, masks=True)
    config = AugmentConfig(longest_side=320, crop=320)
    batches = train_loader(dataset, config, PreprocessConfig(longest_side=320), batch_size=2, seed=0, workers=1)
    batch = next(batches)
    assert {*batch.image_ids} <= {1, 2, 3, 4}
    for target in batch.targets:
        assert len(target["masks"]) == len(target["boxes"]) > 0


# Refusals and the edges of what is taken


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"split": "test"}, "split='test': use one of 'train', 'val'"),
        ({"num_images": 0}, "num_images=0: it takes a whole number of at least 1"),
        ({"size": (31, 64)}, r"size=\(31, 64\): its sides take at least 32 pixels"),
        ({"size": (64, 1025)}, r"size\[1\]=1025: it takes at most 1024"),
        ({"size": 64}, "size=64: give a tuple"),
    ],
)
def test_what_cannot_be_drawn(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ShapesDataset(**({"split": "train"} | wrong))


@pytest.mark.parametrize("size", [(32, 32), (33, 71), (1024, 40)])
def test_pictures_of_other_sizes(size: tuple[int, int]) -> None:
    dataset = ShapesDataset("train", 10, masks=True, size=size)
    for index in range(10):
        sample = dataset[index]
        assert tuple(sample.image.shape) == (3, *size)
        assert len(sample.info.objects) >= 1
        assert _bitmaps(sample.info).shape[1:] == size


def test_no_scene_beyond_the_last(dataset: ShapesDataset) -> None:
    for index in (-1, SCENES):
        with pytest.raises(IndexError, match=rf"image {index}: there are {SCENES}, from 0 on"):
            dataset[index]


def test_a_first_object_that_finds_no_place_is_followed_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are out of the image, a scene has an object."""
    real, calls = shapes_scenes._place, []

    def outside(*given: Any) -> tuple[int, int]:
        calls.append(given)
        return real(*given) if len(calls) > 200 else (-1000, 0)

    monkeypatch.setattr(shapes_scenes, "_place", outside)
    assert len(scene.__wrapped__((0, 1), SIZE).objects) >= 1


def test_pixels_are_those_of_a_png(tmp_path: Path) -> None:
    write_coco(tmp_path, "val", 1, size=(48, 64))
    with Image.open(tmp_path / "val" / "000001.png") as stored:
        assert (stored.mode, stored.size) == ("RGB", (64, 48))
