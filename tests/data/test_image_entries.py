"""Entries of images: file names of other machines and systems are found, missing sizes read, and nothing is guessed."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from coco_folders import CATEGORIES, annotation, draw_picture, picture
from command import run
from PIL import Image

from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.coco_images import find_image, image_sizes, resolve_inside
from fpg_zoo.errors import ConfigError, ImageError

BOX = [4, 5, 10, 20]
SCRATCH = ("--recipe", "scratch")
NFC, NFD = (unicodedata.normalize(form, "é ü.png") for form in ("NFC", "NFD"))


def _folder(folder: Path, files: dict[str, str] | list[str], **changes: Any) -> Path:
    """A data set's folder: an image at each key, listed under its value with ids from 1 on, and an object in each."""
    names = files if isinstance(files, dict) else dict(zip(files, files, strict=True))
    for file in names:
        draw_picture(folder / file, 40, 48)
    images = [picture(number) | {"file_name": name} | changes for number, name in enumerate(names.values(), 1)]
    _write(folder, images)
    return folder


def _write(folder: Path, images: Sequence[dict[str, Any]]) -> None:
    """An annotation file with an object in each image."""
    rows = [annotation(number, image["id"], BOX) for number, image in enumerate(images, 1)]
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": rows, "categories": CATEGORIES}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))


# File names


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("images/a b.png", "images/a b.png"),
        ("images/sub/deep/a.png", "./sub/deep//a.png"),
        ("images/sub/a.png", "sub\\a.png"),
        ("images/a.png", "images\\a.png"),
        ("images/a.png", ".\\a.png"),
        ("train/a.png", "..\\train\\a.png"),
        ("images/my photo (1).png", "my%20photo%20%281%29.png"),
        ("images/猫/1.png", "%E7%8C%AB%5C1.png"),
        (f"images/{NFC}", NFD),
        (f"images/{NFD}", NFC),
        (f"images/{NFD}", "%C3%A9%20%C3%BC.png"),
        ("train/a.png", "/home/alice/data/train/a.png"),
        ("images/train/sub/a.png", "/home/alice/data/images/train/sub/a.png"),
        ("images/a.png", "/home/alice/../bob/a.png"),
        ("images/train/a.png", "C:\\Users\\alice\\train\\a.png"),
        ("train/a.png", "D:/data/train/a.png"),
        ("train/a.png", "\\\\server\\share\\train\\a.png"),
        ("train/a b.png", "file:///home/alice/data/train/a%20b.png"),
        ("images/a b.png", "https://example.org/bucket/a%20b.png?token=1/2#x"),
        ("train/a.png", "s3://bucket/train/a.png"),
    ],
)
def test_a_name_that_can_only_mean_one_file(file: str, name: str, tmp_path: Path) -> None:
    dataset = CocoDataset.from_folder(_folder(tmp_path, {file: name}), "train")
    assert dataset.image_info(0).file.samefile(tmp_path / file)
    assert tuple(dataset[0].image.shape) == (3, 48, 40)
    plain = name.startswith(("images/", "./"))
    assert dataset.report.counts == ({} if plain else {"image found under a corrected file name": 1})
    if not plain:
        assert f"({name} as {dataset.image_info(0).file})" in dataset.summary()


@pytest.mark.parametrize(
    ("name", "other"),
    [("sub\\a.png", "sub/a.png"), ("a%20b.png", "a b.png"), (NFD, NFC), ("x/y%2Fa.png", "x/y/a.png")],
)
def test_a_file_that_is_really_named_so_comes_first(name: str, other: str, tmp_path: Path) -> None:
    for file in (name, other):
        draw_picture(tmp_path / file, 40, 48)
    assert find_image(tmp_path, name) == tmp_path / name
    (tmp_path / name).unlink()
    assert find_image(tmp_path, name) == tmp_path / other


def test_the_longest_end_of_an_absolute_path_is_taken(tmp_path: Path) -> None:
    for file in ("a.png", "cam1/a.png", "day/cam1/a.png"):
        draw_picture(tmp_path / file, 40, 48)
    assert find_image(tmp_path, "/data/day/cam1/a.png") == tmp_path / "day/cam1/a.png"
    assert find_image(tmp_path, "/data/night/cam1/a.png") == tmp_path / "cam1/a.png"
    assert find_image(tmp_path, "C:\\data\\day\\cam2\\a.png") == tmp_path / "a.png"
    assert find_image(tmp_path, str(tmp_path / "cam1/a.png")) == tmp_path / "cam1/a.png"
    # Of a path that is not absolute nothing is cut off: in cam2 there is none.
    assert find_image(tmp_path, "cam2/a.png") is None
    assert find_image(tmp_path, "cam2\\a.png") is None


@pytest.mark.parametrize(
    "name",
    ["no\0ne.png", "%00.png", "\ud800.png", "a" * 5000, "/" + "a/" * 100_000, "http://[", "/", "..", "%2e", "C:/"],
)
def test_a_name_of_no_file(name: str, tmp_path: Path) -> None:
    draw_picture(tmp_path / "a.png", 40, 48)
    assert find_image(tmp_path, name) is None


def test_two_images_that_could_only_be_one_file_are_left_out(tmp_path: Path) -> None:
    # Two cameras of another machine; only one of the folders is here, nobody knows which.
    names = {"train/a.png": "/data/cam1/a.png", "train/b.png": "/data/cam1/b.png", "train/x.png": "/data/cam2/a.png"}
    folder = _folder(tmp_path, names)
    (folder / "train" / "x.png").unlink()
    dataset = CocoDataset.from_folder(folder, "train")
    assert [dataset.image_info(place).image_id for place in range(len(dataset))] == [2]
    assert dataset.report.ids_by_problem == {
        "image whose file name, as corrected, is that of another image": (1, 3),
        "image found under a corrected file name": (2,),
    }


def test_one_image_under_two_spellings_is_no_contradiction(tmp_path: Path) -> None:
    draw_picture(tmp_path / "train" / "sub" / "a.png", 40, 48)
    _write(tmp_path, [picture(number) | {"file_name": name} for number, name in enumerate(("sub/a.png", "sub\\a.png"))])
    assert len(CocoDataset.from_folder(tmp_path, "train")) == 2


def test_a_url_stands_in_for_a_missing_file_name(tmp_path: Path) -> None:
    # As in LVIS, whose files have no file names.
    images = [
        {"id": 1, "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg", "width": 40, "height": 48}
    ]
    _write(tmp_path, images)
    draw_picture(tmp_path / "train2017" / "000000391895.jpg", 40, 48)
    dataset = CocoDataset.from_folder(tmp_path, "train")
    assert dataset.image_info(0).file == tmp_path / "train2017" / "000000391895.jpg"


def test_images_are_read_through_links(tmp_path: Path) -> None:
    """Image folders that are links, and images that are links into a store of blobs (git-annex, DVC)."""
    draw_picture(tmp_path / "store" / "blob.png", 40, 48)
    draw_picture(tmp_path / "elsewhere" / "sub" / "b.png", 40, 48)
    folder = _folder(tmp_path / "set", {"val/x.png": "a.png", "val/y.png": "sub/b.png"})
    (folder / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "a.png").symlink_to(tmp_path / "store" / "blob.png")
    (tmp_path / "link").symlink_to(folder)
    dataset = CocoDataset.from_folder(tmp_path / "link", "train")
    assert (len(dataset), bool(dataset.report)) == (2, False)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("images\\1.png", "train/images/1.png"),
        ("images/1.png", "train/images/1.png"),
        ("/home/alice/1.png", "train/1.png"),
        ("C:\\data\\1%20.png", "train/1 .png"),
        ("https://example.org/x/1.png?a", "train/1.png"),
    ],
)
def test_a_missing_image_is_shown_by_a_path_that_was_looked_for(name: str, path: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"train/good.png": "good.png", "train/x.png": name})
    assert f"is not there: 2 (looked for {folder / path})" in CocoDataset.from_folder(folder, "train").summary()


def test_all_images_missing_end_the_command_with_one_path(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {f"val/{number}.png": f"images\\{number}.png" for number in range(9)})
    ended = run("train", "--model", "retinanet_nano_fpg", "--data", folder, "--output", tmp_path / "run", *SCRATCH)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert f"9 x image whose file is not there: 1, 2, 3, 4, 5, ... (looked for {folder}/train/images/0.png)" in line
    assert not (tmp_path / "run").exists()


# Sizes


@pytest.mark.parametrize(
    ("sides", "repaired"),
    [
        ({"width": 40.0, "height": 48.0}, False),
        ({"width": 40, "height": 48.0}, False),
        ({"width": None, "height": None}, True),
        ({"width": 40, "height": None}, True),
        ({"width": 0, "height": 0}, True),
        ({"width": -1, "height": -1}, True),
        ({"width": "40", "height": "48"}, True),
        ({"width": 40.5, "height": 48}, True),
        ({"width": True, "height": 48}, True),
        ({"width": float("nan"), "height": float("inf")}, True),
        ({"width": 10**400, "height": [48]}, True),
    ],
)
def test_a_size_that_is_none_is_read_from_the_file(sides: dict[str, Any], repaired: bool, tmp_path: Path) -> None:
    dataset = CocoDataset.from_folder(_folder(tmp_path, ["train/a.png"], file_name="a.png", **sides), "train")
    assert dataset.image_info(0).size == (48, 40)
    assert all(type(side) is int for side in dataset.image_info(0).size)
    assert tuple(dataset[0].image.shape) == (3, 48, 40)
    kind = "image without a usable size (read from its file)"
    assert dataset.report.ids_by_problem == ({kind: (1,)} if repaired else {})


def test_entries_without_sizes(tmp_path: Path) -> None:
    names = ("turned.jpg", "small.png", "damaged.png", "a.jpg")
    images = [{"id": name, "file_name": name} for name in names]
    _write(tmp_path, images)
    draw_picture(tmp_path / "train" / "small.png", 40, 31)
    draw_picture(tmp_path / "train" / "a.jpg", 40, 48)
    (tmp_path / "train" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    exif = Image.Exif()
    exif[0x0112] = 8  # to be shown turned a quarter
    Image.new("RGB", (40, 48)).save(tmp_path / "train" / "turned.jpg", exif=exif)
    dataset = CocoDataset.from_folder(tmp_path, "train")
    assert dataset.report.ids_by_problem == {
        "image without a usable size (read from its file)": ("turned.jpg", "small.png", "a.jpg"),
        "image too small to train on": ("small.png",),
        "image that cannot be read": ("damaged.png",),
    }
    assert [dataset.image_info(place).size for place in range(len(dataset))] == [(40, 48), (48, 40)]  # upright
    assert [tuple(dataset[place].image.shape) for place in range(len(dataset))] == [(3, 40, 48), (3, 48, 40)]


def test_sizes_of_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("text")
    draw_picture(tmp_path / "cut.png", 40, 48)
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    for name in ("pipe", "zero", "folder", "text", "none"):
        assert image_sizes(tmp_path / f"{name}.png") == []
    assert image_sizes(tmp_path / "cut.png") == [(48, 40)]
    assert image_sizes(tmp_path / "cut.png", verify=True) == []


def test_the_split_of_an_annotation_file_that_is_a_pipe(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["train/a.png"])
    os.mkfifo(folder / "annotations" / "instances_val.json")
    with pytest.raises(ConfigError, match=r"instances_val\.json: cannot be read \(not a regular file\)"):
        CocoDataset.from_folder(folder, "val")


# The guard of what is passed on


def test_a_file_must_lie_in_the_folder_behind_all_links(tmp_path: Path) -> None:
    folder, private = tmp_path / "set", tmp_path / "private"
    for file in (folder / "val" / "a.png", folder / "blobs" / "b.png", private / "p.png", tmp_path / "set2" / "a.png"):
        draw_picture(file, 40, 48)
    (folder / "val" / "out.png").symlink_to(private / "p.png")
    (folder / "val" / "twice.png").symlink_to("out.png")
    (folder / "val" / "sub").symlink_to(private)
    (folder / "val" / "in.png").symlink_to(Path("..", "blobs", "b.png"))
    (folder / "val" / "broken.png").symlink_to(private / "none.png")
    (tmp_path / "link").symlink_to(folder)
    for name in (
        "out.png",
        "twice.png",
        "sub/p.png",
        "broken.png",
        "../../private/p.png",
        str(private / "p.png"),
        "/etc",
    ):
        with pytest.raises(ImageError, match=r": leads out of .*; copy the image into this folder"):
            resolve_inside(folder / "val" / name, folder)
    with pytest.raises(ImageError, match="leads out"):
        resolve_inside(folder / "../set2/a.png", folder)  # a beginning in common is not enough
    for root in (folder, tmp_path / "link"):
        assert resolve_inside(root / "val" / "a.png", root) == folder / "val" / "a.png"
        assert resolve_inside(root / "val" / "in.png", root) == folder / "blobs" / "b.png"
        assert resolve_inside(root / "val" / ".." / "blobs" / "b.png", root) == folder / "blobs" / "b.png"
