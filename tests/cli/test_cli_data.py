"""`fpg-zoo data show`: a page of images as they are trained on."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_folders import annotation, picture, rectangle, write_folder
from command import run
from PIL import Image

CATEGORIES = ({"id": 7, "name": "<b>cell"}, {"id": 2, "name": "dot"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of 40 x 48 with an object each."""
    annotations = [annotation(n, n, [5, 6, 20, 30]) for n in range(3)]
    return write_folder(tmp_path_factory.mktemp("set"), [picture(n) for n in range(3)], annotations, CATEGORIES)


def _show(data: Any, page: Path, *options: Any) -> Any:
    return run("data", "show", "--data", data, "--output", page, *options)


def test_without_splits_all_images_are_shown_as_they_are_trained_on(data: Path, tmp_path: Path) -> None:
    """Label Studio's layout has none."""
    content = (data / "annotations" / "instances_train.json").read_bytes()
    (tmp_path / "result.json").write_bytes(content)
    (tmp_path / "images").symlink_to(data / "train")
    ended = _show(tmp_path, tmp_path / "page.png")
    assert (ended.code, "3 images with 3 objects" in ended.err) == (0, True), ended.err


def test_a_picture_is_a_grid_of_squares(data: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.PNG"
    ended = _show(data, page, "--count", 5)
    assert (ended.code, ended.out) == (0, f"written: {page}\n")
    assert "3 images with 3 objects" in ended.err
    with Image.open(page) as image:
        assert (image.format, image.size) == ("PNG", (4 * 480 + 3 * 8, 2 * 480 + 8))
        pixels = np.asarray(image)
    assert (pixels[:, 480:488] == 255).all()
    assert (pixels[488:, 488:] == 255).all()  # the second row has one image
    before = page.read_bytes()
    assert _show(data, page, "--count", 5).code == 0
    assert page.read_bytes() == before
    _show(data, page, "--count", 5, "--seed", 1)
    assert page.read_bytes() != before


def test_a_page_of_html_stands_alone_and_takes_names_as_text(data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert _show(data, page, "--count", 3, "--augment", "strong").code == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<figure>") == 3
    assert "&lt;b&gt;cell" in text
    assert "<b>" not in text
    assert "augmentation strong, seed 0</title>" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    for encoded in re.findall(r"base64,([^\"]+)", text):
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            assert image.size == (480, 480)


def test_masks_are_drawn_where_there_are_any(tmp_path: Path) -> None:
    pages = []
    for outline in ({}, {"segmentation": rectangle(5, 6, 25, 36)}):
        folder = write_folder(tmp_path / str(len(pages)), [picture(0)], [annotation(0, 0, [5, 6, 20, 30], **outline)])
        assert _show(folder, folder / "page.png", "--count", 1).code == 0
        with Image.open(folder / "page.png") as page:
            pages.append(np.asarray(page).astype(int))
    tinted = (pages[0] != pages[1]).any(-1).mean()
    # 20 x 30 of 40 x 48 pixels, but for what the lines and the name cover; the square is wider than the image.
    assert 0.15 < tinted < 20 * 30 / 48**2 * 1.2**2


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("page.png", ["--count", 0], "--count 0: a page takes 1 to 100 images"),
        ("page.png", ["--count", 101], "--count 101: a page takes 1 to 100 images"),
        ("page.png", ["--seed", -1], "seed=-1: it takes a whole number of at least 0"),
        ("page.png", ["--augment", "all"], "no augmentation 'all': known are recipe, light, strong"),
        ("page.png", ["--augment", "copy_paste"], "copy_paste=0.5: objects are cut out by their masks"),
        ("page.png", ["--split", "test"], "no split 'test' in {data} (COCO): it has train"),
        ("page.jpg", [], "page.jpg: a page is written as .png or .html"),
        ("folder.png", [], "folder.png: a folder; name the file to write"),
        ("file/page.png", [], "file: cannot be a folder"),
    ],
)
def test_what_is_refused_leaves_nothing(
    name: str, options: list[Any], complaint: str, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    ended = _show(data, tmp_path / name, *options)
    assert (ended.code, ended.out) == (2, "")
    assert complaint.format(data=data) in ended.err.splitlines()[-1]
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_no_image_of_the_data_is_written_over(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data, target_is_directory=True)
    image = data / "train" / "1.png"
    before = image.read_bytes()
    for page in (image, tmp_path / "link" / "train" / "1.png"):
        ended = _show(data, page)
        assert ended.code == 2
        assert ended.err.splitlines()[-1].endswith("1.png: a file of the data set; name another to write")
    assert image.read_bytes() == before


@pytest.mark.slow
def test_scenes_are_shown_with_their_masks(tmp_path: Path) -> None:
    ended = _show("shapes", tmp_path / "page.png", "--count", 4, "--augment", "copy_paste")
    assert (ended.code, ended.err) == (0, "")
    assert Image.open(tmp_path / "page.png").size == (4 * 488 - 8, 480)
