"""COCO-format files become images with objects; what is wrong in them is reported with its id and left out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folders import CATEGORIES, annotation, draw_picture, picture, rectangle, write_folder
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from fpg_zoo.config.coco_classes import COCO_CATEGORIES, COCO_CLASSES
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.masks import Polygons, RunLengths, decode, rasterize, read_mask
from fpg_zoo.errors import ConfigError, ImageError

GOOD = annotation(1, 1, [4, 5, 10, 20])


def _dataset(folder: Path, images: Any, annotations: Any, **options: Any) -> CocoDataset:
    options = {"allow_losses": True} | options  # one of two entries is wrong in most of these files
    return CocoDataset.from_folder(write_folder(folder, images, annotations), "train", **options)


def test_boxes_and_labels_of_a_picture(tmp_path: Path) -> None:
    dataset = _dataset(
        tmp_path,
        [picture(1), picture("b")],
        [GOOD, annotation(5, "b", [0.5, 1, 2, 3], category_id=2), annotation(3, 1, [0, 0, 40, 48], category_id=2)],
    )
    # In the order of ids: 2 is the dot, label 0; 7 is the cell, label 1.
    assert (dataset.class_names, dataset.category_ids) == (("dot", "cell"), (2, 7))
    assert (len(dataset), dataset.object_count, dataset.crowd_count, bool(dataset.report)) == (2, 3, 0, False)
    first, second = dataset.image_info(0), dataset.image_info(1)
    assert (first.image_id, first.size, first.file) == (1, (48, 40), tmp_path / "train" / "1.png")
    assert first.objects.boxes.tolist() == [[4, 5, 14, 25], [0, 0, 40, 48]]
    assert (first.objects.labels.tolist(), first.objects.ids, first.objects.masks) == ([1, 0], (1, 3), None)
    assert (second.image_id, second.objects.boxes.tolist()) == ("b", [[0.5, 1, 2.5, 4]])
    assert (first.objects.boxes.dtype, first.objects.labels.dtype) == (np.float32, np.int64)
    stored = np.asarray(Image.open(first.file)).transpose(2, 0, 1)
    assert np.array_equal(dataset[0].image.numpy(), stored)
    with pytest.raises(IndexError, match="image 2: there are 2"):
        dataset[2]


def test_a_dataset_travels_to_workers(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, [picture(1)], [GOOD | {"segmentation": rectangle(4, 5, 14, 25)}], masks=True)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.class_names == dataset.class_names
    assert torch.equal(copy[0].image, dataset[0].image)


@pytest.mark.parametrize("pictures", ["train", "images/train", "images", "."])
def test_pictures_are_found_in_the_usual_places(pictures: str, tmp_path: Path) -> None:
    write_folder(tmp_path, [picture(1)], [GOOD], pictures=pictures)
    (tmp_path / "images").mkdir(exist_ok=True)  # an empty one is passed over
    dataset = CocoDataset.from_folder(tmp_path, "train")
    assert dataset.image_info(0).file == tmp_path / pictures / "1.png"
    assert tuple(dataset[0].image.shape) == (3, 48, 40)


def test_a_file_and_a_folder_of_any_name(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", [picture(1)], [GOOD], split="x", pictures="photos")
    dataset = CocoDataset(tmp_path / "set" / "annotations" / "instances_x.json", str(tmp_path / "set" / "photos"))
    assert len(dataset) == 1


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (annotation(9, 1, [4, 4, 0, 5]), "box of no size"),
        (annotation(9, 1, [4, 4, 5, -1]), "box of no size"),
        (annotation(9, 1, [39.9999999, 4, 1e-9, 5]), "box of no size"),  # its sides meet in float32
        (annotation(9, 1, [40, 4, 5, 5]), "box outside its image"),
        (annotation(9, 1, [-9, 4, 5, 5]), "box outside its image"),
        (annotation(9, 1, [4, 4, 5]), "box that is not four numbers"),
        (annotation(9, 1, None), "box that is not four numbers"),
        (annotation(9, 1, [4, 4, 5, "5"]), "box that is not four numbers"),
        (annotation(9, 1, [4, 4, 5, float("nan")]), "box that is not four numbers"),
        (annotation(9, 1, [4, 4, 5, float("inf")]), "box that is not four numbers"),
        (annotation(9, 1, [4, 4, 5, 10**400]), "box that is not four numbers"),
        (annotation(9, 3, [4, 4, 5, 5]), "annotation of an unknown image id"),
        (annotation(9, [1], [4, 4, 5, 5]), "annotation of an unknown image id"),
        (annotation(9, 1, [4, 4, 5, 5], category_id=3), "annotation of an unknown category id"),
        (annotation(9, 1, [4, 4, 5, 5], category_id=True), "annotation of an unknown category id"),
    ],
)
def test_an_annotation_that_cannot_be_used(wrong: dict[str, Any], kind: str, tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, [picture(1)], [wrong, GOOD])
    assert dataset.report.ids_by_problem == {kind: (9,)}
    assert dataset.image_info(0).objects.ids == (1,)


def test_ids_of_annotations_name_them_in_the_report_and_decide_nothing(tmp_path: Path) -> None:
    boxes = [[4, 5, 10, 20], [1, 1, 2, 2], [3, 3, 2, 2], [5, 5, 2, 2], [7, 7, 2, 2]]
    ids: list[Any] = [1, 1, None, [1], {"a": 1.5}]
    good = [annotation(identity, 1, box) for identity, box in zip(ids, boxes, strict=True)]
    del good[2]["id"]
    dataset = _dataset(tmp_path, [picture(1)], [*good, "nothing", {"image_id": 1}, annotation(1, 1, [0, 0, 0, 0])])
    assert dataset.image_info(0).objects.bboxes.tolist() == boxes
    assert dataset.image_info(0).objects.ids == (1, 1, "annotations[2]", "annotations[3]", "annotations[4]")
    assert dataset.report.ids_by_problem == {
        "annotation of an unknown image id": ("annotations[5]",),
        "annotation of an unknown category id": ("annotations[6]",),
        "box of no size": (1,),
    }


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    images = [picture(1), picture(1, 99), {"id": 2}, picture(3) | {"file_name": 3}, picture(4) | {"file_name": ""}, 5]
    annotations = [GOOD, annotation(2, 2, [1, 1, 2, 2]), annotation(3, 6, [1, 1, 2, 2])]
    write_folder(tmp_path, [picture(1)], [])
    content = {"images": [*images, picture(6)], "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content), encoding="utf-8")
    dataset = CocoDataset.from_folder(tmp_path, "train")
    # Nothing is said of the objects in images that are reported themselves.
    assert dataset.report.ids_by_problem == {
        "image id used before": (1,),
        "image entry without an id or file name": (2, 3, 4, "images[5]"),
        "image whose file is not there": (6,),
    }
    assert dataset.image_info(0).size == (48, 40)


def test_boxes_are_clipped_to_their_picture(tmp_path: Path) -> None:
    # 40 x 48 pixels: the first reaches out by half a pixel, as rounding makes it, the second by 2 and 12.
    boxes = [[30, 0, 10.5, 48], [-2, 40, 10, 20]]
    dataset = _dataset(tmp_path, [picture(1)], [annotation(8 + i, 1, box) for i, box in enumerate(boxes)])
    assert dataset.image_info(0).objects.boxes.tolist() == [[30, 0, 40, 48], [0, 40, 8, 48]]
    assert dataset.report.ids_by_problem == {"box that reaches out of its image (clipped)": (9,)}


def test_crowds_are_kept_apart(tmp_path: Path) -> None:
    crowds = [annotation(2, 1, [1, 2, 3, 4], iscrowd=1), annotation(3, 2, [0, 0, 9, 9], iscrowd=1)]
    images = [picture(1), picture(2)]
    dataset = _dataset(tmp_path, images, [GOOD, *crowds])
    assert (len(dataset), dataset.object_count, dataset.crowd_count) == (1, 1, 1)
    assert dataset.image_info(0).objects.ids == (1,)
    assert (dataset.image_info(0).crowds.ids, dataset.image_info(0).crowds.boxes.tolist()) == ((2,), [[1, 2, 4, 6]])
    # A crowd alone is nothing to train on.
    assert dataset.report.ids_by_problem == {"image without an object to train on": (2,)}
    assert _dataset(tmp_path, images, [GOOD, *crowds], training=False).crowd_count == 2


def test_small_and_empty_pictures_are_kept_for_evaluation(tmp_path: Path) -> None:
    images = [picture(1), picture(2, 31, 99), picture(3, 32, 32), picture(4)]
    annotations = [annotation(n, n, [1, 1, 5, 5]) for n in (1, 2, 3)]
    training = _dataset(tmp_path, images, annotations)
    assert [training.image_info(i).image_id for i in range(len(training))] == [1, 3]
    assert training.report.counts == {"image too small to train on": 1, "image without an object to train on": 1}
    whole = _dataset(tmp_path, images, annotations, training=False)
    assert [whole.image_info(i).image_id for i in range(len(whole))] == [1, 2, 3, 4]
    assert whole.image_info(3).objects.boxes.shape == (0, 4)
    assert not whole.report


def test_the_summary_counts_and_names_the_first_ids(tmp_path: Path) -> None:
    wrong = [annotation(n, 1, [1, 1, 0, 0]) for n in range(10, 17)]
    dataset = _dataset(tmp_path, [picture(1)], [GOOD, *wrong])
    assert dataset.summary().splitlines() == [
        f"{tmp_path}/annotations/instances_train.json: 1 images with 1 objects and 0 crowds of 2 classes",
        "  7 x box of no size: 10, 11, 12, 13, 14, ...",
    ]
    assert dataset.report.ids_by_problem["box of no size"] == tuple(range(10, 17))


# Masks


def test_masks_stay_as_they_are_written(tmp_path: Path) -> None:
    bitmap = np.zeros((48, 40), dtype=np.uint8, order="F")
    bitmap[5:25, 4:14] = 1
    text = mask_api.encode(bitmap)["counts"].decode()
    # Down the columns: 4 columns and 5 rows of nothing, then 20 of 48 ten times, then the rest.
    lengths = [4 * 48 + 5, *[20, 28] * 9, 20, 48 * 40 - 13 * 48 - 25]
    written: list[Any] = [
        rectangle(4, 5, 14, 25),
        {"size": [48, 40], "counts": text},
        {"size": [48, 40], "counts": lengths},
    ]
    annotations = [annotation(n, 1, [4, 5, 10, 20], segmentation=value) for n, value in enumerate(written)]
    masks = _dataset(tmp_path, [picture(1)], annotations, masks=True).image_info(0).objects.masks
    assert masks is not None
    polygons, *run_lengths = masks
    assert isinstance(polygons, Polygons)
    assert [part.tolist() for part in polygons.parts] == [[[4, 5], [14, 5], [14, 25], [4, 25]]]
    assert np.array_equal(rasterize(polygons, (48, 40)), bitmap)
    for mask in run_lengths:
        assert isinstance(mask, RunLengths)
        assert np.array_equal(decode(mask), bitmap)


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        (None, "annotation without polygons or RLE"),
        ([], "annotation without polygons or RLE"),
        ({}, "annotation without polygons or RLE"),
        ([[1, 1, 5, 5]], "malformed polygons or RLE"),
        ([[1, 1, 5, 5, 1]], "malformed polygons or RLE"),
        ([[1, 1, 5, 5, 1, "5"]], "malformed polygons or RLE"),
        ([[[1, 1], [5, 5], [1, 5]]], "malformed polygons or RLE"),
        ([[1, 1, 5, 5, 1, float("nan")]], "malformed polygons or RLE"),
        ([[1, 1, 5, 5, 1, 1e9]], "malformed polygons or RLE"),  # its outline would take gigabytes
        ([[1, 1, 5, 5, 1, 10**400]], "malformed polygons or RLE"),
        ([[1, 1, 5, 5, 1, 5], 3], "malformed polygons or RLE"),
        ("polygon", "malformed polygons or RLE"),
        ({"size": [40, 48], "counts": [40 * 48]}, "malformed polygons or RLE"),
        ({"size": [48, 40], "counts": [40 * 48 - 1]}, "malformed polygons or RLE"),
        ({"size": [48, 40], "counts": [40 * 48 + 1, -1]}, "malformed polygons or RLE"),
        ({"size": [48, 40], "counts": [1.5]}, "malformed polygons or RLE"),
        ({"size": [48, 40], "counts": ""}, "malformed polygons or RLE"),
        ({"size": [48, 40], "counts": "P"}, "malformed polygons or RLE"),  # more is to follow
        ({"size": [48, 40], "counts": "1"}, "malformed polygons or RLE"),  # one pixel of 1920
        ({"size": [48, 40], "counts": "é"}, "malformed polygons or RLE"),
        ({"size": [48, 40], "counts": "\x00abc"}, "malformed polygons or RLE"),
        ({"size": [48, 40], "counts": "ooooooooooooooooooo0"}, "malformed polygons or RLE"),
        ({"size": [48, 40]}, "malformed polygons or RLE"),
    ],
)
def test_an_object_without_a_usable_mask(segmentation: Any, kind: str, tmp_path: Path) -> None:
    good = GOOD | {"segmentation": rectangle(4, 5, 14, 25)}
    wrong = annotation(9, 1, [1, 1, 4, 4], segmentation=segmentation)
    dataset = _dataset(tmp_path, [picture(1)], [wrong, good], masks=True, allow_losses=False)
    # Its box is as good as any.
    assert dataset.report.ids_by_problem == {f"{kind} (kept, without a mask)": (9,)}
    objects = dataset.image_info(0).objects
    assert (objects.ids, [mask is None for mask in objects.masks or ()]) == ((9, 1), [True, False])
    assert (dataset.object_count, dataset.mask_count) == (2, 1)
    plain = _dataset(tmp_path, [picture(1)], [wrong, good])
    assert (plain.image_info(0).objects.ids, bool(plain.report)) == ((9, 1), False)


def test_polygons_without_area_are_left_out_beside_others(tmp_path: Path) -> None:
    segmentation = [*rectangle(4, 5, 14, 25), [1, 1, 2, 2], []]
    dataset = _dataset(tmp_path, [picture(1)], [GOOD | {"segmentation": segmentation}], masks=True)
    assert dataset.report.ids_by_problem == {"polygon of fewer than three points (the others kept)": (1,)}
    (mask,) = dataset.image_info(0).objects.masks or ()
    assert isinstance(mask, Polygons)
    assert len(mask.parts) == 1


@pytest.mark.parametrize(
    "segmentation", [{"size": [48, 40], "counts": [1920]}, {"size": [48, 40], "counts": [0, 0, 1920]}, [[5, 5] * 4]]
)
def test_a_mask_without_a_pixel_is_none(tmp_path: Path, segmentation: object) -> None:
    whole = GOOD | {"id": 8, "segmentation": rectangle(4, 5, 14, 25)}
    dataset = _dataset(tmp_path, [picture(1)], [GOOD | {"segmentation": segmentation}, whole], masks=True)
    assert list(dataset.report.ids_by_problem.values()) == [(1,)]
    empty, mask = dataset.image_info(0).objects.masks or ()
    assert (empty, isinstance(mask, Polygons)) == (None, True)


def test_run_lengths_of_any_mask_pass(tmp_path: Path) -> None:
    generator, wrong = np.random.default_rng(0), list[str]()
    for size in ((1, 1), (3, 5), (64, 2), (300, 401)):
        for density in (0.0, 0.01, 0.5, 1.0):
            bitmap = np.asfortranarray(generator.random(size) < density, dtype=np.uint8)
            text = mask_api.encode(bitmap)["counts"].decode()
            mask = read_mask({"size": list(size), "counts": text}, size, wrong.append)
            assert isinstance(mask, RunLengths)
            assert np.array_equal(decode(mask), bitmap)
    assert wrong == []


# Refusals


def _refusal(file: Path, pictures: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        CocoDataset(file, pictures)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not JSON .*; name an annotation file in COCO's format"),
        ("[" * 10**5, "not JSON"),
        ("[1]", "no list 'images' in it"),
        ('{"images": [], "annotations": {}}', "no list 'annotations' in it"),
        ('{"images": [], "annotations": [], "categories": []}', "no categories in it"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"categories\[0\]=.*give it a whole number"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "the file lists none"),
    ],
)
def test_a_file_that_is_not_cocos(content: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    file.write_text(content, encoding="utf-8")
    message = _refusal(file, tmp_path)
    assert message.startswith(str(file))
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(message)


@pytest.mark.parametrize(
    ("categories", "complaint"),
    [
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "category id 1 is there twice"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "category name 'a' is there twice"),
    ],
)
def test_categories_that_stand_for_two_things(categories: Any, complaint: str, tmp_path: Path) -> None:
    write_folder(tmp_path, [picture(1)], [GOOD], categories)
    assert complaint in _refusal(tmp_path / "annotations" / "instances_train.json", tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    write_folder(tmp_path, [picture(1)], [GOOD], split="val")
    write_folder(tmp_path, [picture(1)], [GOOD], split="train2")
    with pytest.raises(ConfigError, match="no split 'train' in this folder; it has train2, val"):
        CocoDataset.from_folder(tmp_path, "train")
    with pytest.raises(ConfigError, match=r"name a folder with annotations/instances_SPLIT\.json"):
        CocoDataset.from_folder(tmp_path / "none", "train")
    assert "no such file" in _refusal(tmp_path / "none.json", tmp_path)
    assert "cannot be read" in _refusal(tmp_path, tmp_path)
    message = _refusal(tmp_path / "annotations" / "instances_val.json", tmp_path / "none")
    missing = f"1 x image whose file is not there: 1 (looked for {tmp_path}/none/1.png)"
    assert f"of 1 looked for in {tmp_path}/none ({missing})" in message


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    write_folder(tmp_path, [picture(1)], [annotation(4, 1, [1, 1, 0, 0])])
    message = _refusal(tmp_path / "annotations" / "instances_train.json", tmp_path / "train")
    assert "(1 x box of no size: 4; 1 x image without an object to train on: 1)" in message


# Pixels


@pytest.mark.parametrize(("width", "height", "frame"), [(40, 48, "stored"), (48, 40, "upright")])
def test_a_rotated_picture_is_read_in_the_frame_that_was_annotated(
    width: int, height: int, frame: str, tmp_path: Path
) -> None:
    write_folder(tmp_path, [picture(1, width, height)], [GOOD])
    draw_picture(tmp_path / "train" / "1.png", 40, 48)
    with Image.open(tmp_path / "train" / "1.png") as stored:
        stored.load()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    stored.save(tmp_path / "train" / "1.png", exif=exif)
    pixels = np.asarray(stored)
    expected = pixels if frame == "stored" else np.rot90(pixels, -1)
    sample = CocoDataset.from_folder(tmp_path, "train")[0]
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), expected)


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, [picture(1)], [GOOD])
    for width, height in ((41, 48), (48, 40)):
        draw_picture(tmp_path / "train" / "1.png", width, height)
        with pytest.raises(ImageError, match=rf"1.png: {width}x{height} pixels, annotated as 40x48; bring back"):
            dataset[0]


# Real data


def test_the_coco_photographs(data_folder: Path) -> None:
    folder = data_folder / "coco"
    dataset = CocoDataset.from_folder(folder, "val2017", masks=True, training=False)
    # 44 photographs with 304 annotations, 3 of them crowds, as the folder's description says.
    assert (len(dataset), dataset.object_count, dataset.crowd_count, bool(dataset.report)) == (44, 301, 3, False)
    assert (dataset.class_names, dataset.category_ids) == (COCO_CLASSES, tuple(COCO_CATEGORIES.values()))
    assert len(CocoDataset.from_folder(folder, "val2017")) == 42  # two show none of the classes
    reference = COCO(folder / "annotations" / "instances_val2017.json")
    for index in range(len(dataset)):
        found = dataset.image_info(index)
        for kind in (found.objects, found.crowds):
            rows = reference.loadAnns(list(kind.ids))
            assert [dataset.category_ids[label] for label in kind.labels] == [row["category_id"] for row in rows]
            for box, row in zip(kind.boxes.tolist(), rows, strict=True):
                x, y, width, height = row["bbox"]
                assert box == pytest.approx([x, y, x + width, y + height], abs=1e-4)


def test_masks_are_those_that_pycocotools_makes(data_folder: Path) -> None:
    file = data_folder / "coco_known_answers" / "instances_val2014_100.json"
    reference, wrong = COCO(file), list[str]()
    for row in reference.dataset["annotations"][::4]:
        image = reference.imgs[row["image_id"]]
        size = (image["height"], image["width"])
        mask = read_mask(row["segmentation"], size, wrong.append)
        assert mask is not None
        made = rasterize(mask, size) if isinstance(mask, Polygons) else decode(mask)
        assert np.array_equal(made, reference.annToMask(row)), row["id"]
    assert wrong == []
