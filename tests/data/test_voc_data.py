"""Pascal VOC folders become COCO folders; what is wrong in them is reported with the image's name and left out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO
from voc_folders import GOOD, HEIGHT, WIDTH, voc_object, voc_xml, write_voc

from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.convert_voc import Split, convert_voc
from fpg_zoo.errors import ConfigError, StorageError


def _content(output: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "annotations" / f"instances_{split}.json").read_text("utf-8"))
    return content


def test_boxes_and_classes(tmp_path: Path) -> None:
    hard = voc_object("dot", 1, 1, WIDTH, HEIGHT, rest="<difficult>1</difficult>")
    part = voc_object("cell", 1.5, 2, 3, 4.5, rest="<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>")
    done = convert_voc(write_voc(tmp_path / "voc", {"b": voc_xml(GOOD, hard), "a": voc_xml(part)}), tmp_path / "out")
    assert (done.class_names, dict(done.splits), bool(done.report)) == (("cell", "dot"), {"all": Split(2, 2, 1)}, False)
    content = _content(tmp_path / "out", "all")
    assert content["categories"] == [{"id": 1, "name": "cell"}, {"id": 2, "name": "dot"}]
    assert content["images"] == [
        {"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH},
        {"id": 2, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH},
    ]
    # Pixels 5..14 and 6..25, from 1 and the last one in: 10 x 20 from (4, 5); 1..40 and 1..48 are the whole image.
    rows = [(row["image_id"], row["category_id"], row["bbox"], row["iscrowd"]) for row in content["annotations"]]
    assert rows == [(1, 1, [0.5, 1, 2.5, 3.5], 0), (2, 1, [4, 5, 10, 20], 0), (2, 2, [0, 0, WIDTH, HEIGHT], 1)]
    assert [row["area"] for row in content["annotations"]] == [8.75, 200, WIDTH * HEIGHT]


def test_splits_share_pictures_classes_and_ids(tmp_path: Path) -> None:
    other = voc_object("dot", 1, 1, 9, 9)
    annotations = {"a": voc_xml(GOOD), "b": voc_xml(other), "c": voc_xml(GOOD, other), "unlisted": voc_xml(GOOD)}
    lists = {"train": ["a", " b ", "", "a"], "val": ["c"], "trainval": ["a", "b", "c"], "cell_train": ["a -1"]}
    done = convert_voc(write_voc(tmp_path / "voc", annotations, lists), tmp_path / "out")
    assert dict(done.splits) == {"train": Split(2, 2, 0), "val": Split(1, 2, 0), "trainval": Split(3, 4, 0)}
    train, val, both = (_content(tmp_path / "out", split) for split in ("train", "val", "trainval"))
    for part in ("images", "annotations"):
        assert train[part] + val[part] == both[part]
        assert len({entry["id"] for entry in both[part]}) == len(both[part])
    assert train["categories"] == val["categories"]
    assert sorted(os.listdir(tmp_path / "out" / "images")) == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (voc_object("cell", 9, 9, 9, 9), "box of no size"),
        (voc_object("cell", 9, 9, 12, 9), "box of no size"),
        (voc_object("cell", 9, 9, 5, 12), "box of no size"),
        (voc_object("cell", 41, 9, 45, 12), "box outside its image"),
        (voc_object("cell", 1, 9, 45), "box that is not four numbers"),
        (voc_object("cell", 1, 9, 45, "x"), "box that is not four numbers"),
        (voc_object("cell", 1, 9, 45, "nan"), "box that is not four numbers"),
        (voc_object("cell", 1, 9, 45, "inf"), "box that is not four numbers"),
        ("<object><name>cell</name></object>", "box that is not four numbers"),
        (voc_object(" ", 1, 9, 5, 12), "object without a name"),
        ("<object/>", "object without a name"),
    ],
)
def test_an_object_that_cannot_be_used(wrong: str, kind: str, tmp_path: Path) -> None:
    done = convert_voc(write_voc(tmp_path / "voc", {"a": voc_xml(GOOD, wrong)}), tmp_path / "out")
    assert done.report.ids_by_problem == {kind: ("a/object[1]",)}
    assert [row["bbox"] for row in _content(tmp_path / "out", "all")["annotations"]] == [[4, 5, 10, 20]]


def test_boxes_are_clipped_to_their_picture(tmp_path: Path) -> None:
    # From 0 counts as a slip of one pixel; 4 pixels out at the right are told.
    objects = (voc_object("cell", 0, 0, 10, 10), voc_object("cell", 31, 1, 44, 10))
    done = convert_voc(write_voc(tmp_path / "voc", {"a": voc_xml(*objects)}), tmp_path / "out")
    assert done.report.ids_by_problem == {"box that reaches out of its image (clipped)": ("a/object[1]",)}
    rows = _content(tmp_path / "out", "all")["annotations"]
    assert [row["bbox"] for row in rows] == [[0, 0, 10, 10], [30, 0, 10, 10]]


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]>' + voc_xml("<object>&y;</object>")
OUTSIDE = f'<!DOCTYPE a SYSTEM "file:///etc/passwd">{voc_xml(GOOD)}'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (BOMB, "annotation file with a document type, which can make it endless"),
        (OUTSIDE, "annotation file with a document type, which can make it endless"),
        ("", "annotation file that is not VOC's XML"),
        ("<annotation>", "annotation file that is not VOC's XML"),
        (voc_xml("&y;"), "annotation file that is not VOC's XML"),
        ("<html></html>", "annotation file that is not VOC's XML"),
    ],
)
def test_an_annotation_file_that_cannot_be_used(text: str, kind: str, tmp_path: Path) -> None:
    done = convert_voc(write_voc(tmp_path / "voc", {"a": text, "b": voc_xml(GOOD)}), tmp_path / "out")
    assert done.report.ids_by_problem == {kind: ("a",)}
    assert [entry["file_name"] for entry in _content(tmp_path / "out", "all")["images"]] == ["b.jpg"]


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    names = ("good", "gone", "damaged")
    folder = write_voc(tmp_path / "voc", dict.fromkeys(names, voc_xml(GOOD)), {"train": [*names, "listed", "../good"]})
    (folder / "JPEGImages" / "gone.jpg").unlink()
    (folder / "JPEGImages" / "damaged.jpg").write_bytes(b"nothing")
    done = convert_voc(folder, tmp_path / "out")
    assert done.report.ids_by_problem == {
        "listed image without an annotation file": ("../good", "listed"),
        "image that cannot be read": ("damaged",),
        "image whose file is not there": ("gone",),
    }
    assert done.splits["train"] == Split(1, 1, 0)


def test_a_size_that_is_not_the_pictures(tmp_path: Path) -> None:
    annotations = {"a": voc_xml(GOOD, width=99), "b": voc_xml(GOOD, width=0, height=0), "c": voc_xml(GOOD)}
    done = convert_voc(write_voc(tmp_path / "voc", annotations), tmp_path / "out")
    kind = "image of another size than its annotation says (the image's taken)"
    assert done.report.ids_by_problem == {kind: ("a", "b")}
    assert {(entry["height"], entry["width"]) for entry in _content(tmp_path / "out", "all")["images"]} == {
        (HEIGHT, WIDTH)
    }


@pytest.mark.parametrize("frame", [(WIDTH, HEIGHT), (HEIGHT, WIDTH)], ids=["as stored", "upright"])
def test_a_rotated_picture_keeps_the_frame_that_was_annotated(frame: tuple[int, int], tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": voc_xml(GOOD, width=frame[0], height=frame[1])})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "JPEGImages" / "a.jpg", exif=exif)
    done = convert_voc(folder, tmp_path / "out")
    assert not done.report
    sample = CocoDataset.from_folder(tmp_path / "out", "all")[0]
    assert tuple(sample.image.shape) == (3, frame[1], frame[0])


# Files


@pytest.mark.parametrize("links", [True, False], ids=["linked", "copied"])
def test_pictures_stay_when_the_given_folder_goes(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    folder = write_voc(tmp_path / "voc", {"a": voc_xml(GOOD)})
    given, taken = folder / "JPEGImages" / "a.jpg", tmp_path / "out" / "images" / "a.jpg"
    for _ in range(2):  # again, over what is there
        convert_voc(folder, tmp_path / "out")
        assert given.samefile(taken) == links
    content = given.read_bytes()
    given.unlink()
    assert taken.read_bytes() == content
    assert os.listdir(taken.parent) == ["a.jpg"]


def test_a_failed_conversion_leaves_the_one_before_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_voc(tmp_path / "voc", {"a": voc_xml(GOOD)})
    convert_voc(folder, tmp_path / "out")
    before = _content(tmp_path / "out", "all")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match="No space left on device; make room"):
        convert_voc(write_voc(folder, {"b": voc_xml(GOOD)}), tmp_path / "out")
    assert _content(tmp_path / "out", "all") == before
    assert os.listdir(tmp_path / "out" / "annotations") == ["instances_all.json"]
    assert os.listdir(tmp_path / "out" / "images") == ["a.jpg"]


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": voc_xml(voc_object("cell", 1, 1, 1, 1))})
    with pytest.raises(ConfigError, match="the folder to convert; name another for what is written"):
        convert_voc(folder, folder / ".." / "voc")
    with pytest.raises(ConfigError, match=r"no object that can be used \(1 x box of no size: a/object\[0\]\); correct"):
        convert_voc(folder, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"none/Annotations: cannot be read \(No such file or directory\); name"):
        convert_voc(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty" / "Annotations").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"Annotations: no files ending in \.xml; name a folder in Pascal VOC's"):
        convert_voc(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Real data


def test_blood_cells(data_folder: Path, tmp_path: Path) -> None:
    done = convert_voc(data_folder / "BCCD", tmp_path / "out")
    # Counted in the XML with another parser: 4888 objects (RBC 4155, WBC 372, Platelets 361), two of no size.
    assert done.summary().splitlines() == [
        f"{tmp_path}/out: 3 classes, Platelets, RBC, WBC",
        "  train: 205 images with 2804 objects and 0 difficult ones",
        "  val: 87 images with 1137 objects and 0 difficult ones",
        "  trainval: 292 images with 3941 objects and 0 difficult ones",
        "  test: 72 images with 945 objects and 0 difficult ones",
        "  2 x box of no size: BloodImage_00338/object[12], BloodImage_00343/object[3]",
    ]
    assert 3941 + 945 == 4155 + 372 + 361 - 2
    reference = COCO(tmp_path / "out" / "annotations" / "instances_trainval.json")
    assert len(reference.getAnnIds()) == 3941
    dataset = CocoDataset.from_folder(tmp_path / "out", "test")
    assert (len(dataset), dataset.object_count, dataset.class_names) == (72, 945, ("Platelets", "RBC", "WBC"))
    assert tuple(dataset[0].image.shape) == (3, 480, 640)
    assert not dataset.report
