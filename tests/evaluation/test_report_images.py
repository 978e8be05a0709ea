"""A report, which may be passed on, shows images of the folder that the user named, and of nowhere else."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from command import run
from PIL import Image

from fpg_zoo.data.shapes.outlines import CLASSES

PRIVATE, OWN = (12, 200, 34), (200, 34, 12)


def _image(file: Path, color: tuple[int, int, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (96, 96), color).save(file)


def _colors(page: Path) -> list[tuple[int, ...]]:
    """Of the corner of each image that the page holds, to the nearest 20, as JPEG keeps them."""
    found = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", page.read_text(encoding="utf-8"))
    images = [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in found]
    return [tuple(20 * round(value / 20) for value in image.getpixel((2, 2))) for image in images]  # type: ignore[union-attr]


def _near(color: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(20 * round(value / 20) for value in color)


def _dataset(folder: Path, name: str) -> None:
    """The image of this name and `own.png`, each with an object that nobody finds in one color."""
    _image(folder / "val" / "own.png", OWN)
    content: dict[str, Any] = {
        "images": [
            {"id": 1, "file_name": name, "width": 96, "height": 96},
            {"id": 2, "file_name": "own.png", "width": 96, "height": 96},
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [5, 5, 40, 40], "area": 1600, "iscrowd": 0}
            for number in (1, 2)
        ],
    }
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))


def _report(folder: Path, page: Path, by: Literal["data", "images"]) -> None:
    if by == "data":
        options = ["--model", "retinanet_nano_fpg", "--data", folder, "--workers", 0, "--device", "cpu"]
    else:
        page.with_suffix(".json").write_text("[]")
        truth = folder / "annotations" / "instances_val.json"
        options = ["--results", page.with_suffix(".json"), "--annotations", truth, "--images", folder / "val"]
    ended = run("eval", *options, "--report", page)
    assert ended.code == 0, ended.err


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Somebody's folder, with a private image, a data set `set` and links into and out of it."""
    home = tmp_path / "home"
    _image(home / "private" / "p.png", PRIVATE)
    _image(home / "set" / "val" / "blobs" / "b.png", OWN)
    val = home / "set" / "val"
    (val / "link.png").symlink_to(home / "private" / "p.png")
    (val / "again.png").symlink_to("link.png")
    (val / "sub").symlink_to(Path("..", "..", "private"))
    (val / "inside.png").symlink_to(Path("blobs", "b.png"))
    return home


@pytest.mark.parametrize("by", ["data", "images"])
@pytest.mark.parametrize(
    "name",
    [
        "ABSOLUTE",
        "../../private/p.png",
        "blobs/../../../private/p.png",
        "..\\..\\private\\p.png",
        "%2e%2e/%2e%2e/private/p.png",
        "link.png",
        "again.png",
        "sub/p.png",
    ],
)
def test_an_image_from_elsewhere_is_not_in_the_page(
    name: str, by: Literal["data", "images"], home: Path, tmp_path: Path
) -> None:
    _dataset(home / "set", str(home / "private" / "p.png") if name == "ABSOLUTE" else name)
    _report(home / "set", tmp_path / "r.html", by)
    assert _colors(tmp_path / "r.html") == [_near(OWN)]
    (note,) = re.findall(r'<p class="note">Without the image: ([^<]*)', (tmp_path / "r.html").read_text("utf-8"))
    folder = home / "set" if by == "data" else home / "set" / "val"
    assert f": leads out of {folder}; copy the image into this folder to have it shown" in note


@pytest.mark.parametrize("by", ["data", "images"])
@pytest.mark.parametrize("name", ["blobs/b.png", "inside.png", "blobs\\b.png", "/nowhere/blobs/b.png", "ABSOLUTE"])
def test_an_image_of_the_folder_is_in_the_page_whatever_its_name(
    name: str, by: Literal["data", "images"], home: Path, tmp_path: Path
) -> None:
    """A folder that the user names may be a link itself."""
    (tmp_path / "linked").symlink_to(home / "set")
    _dataset(home / "set", str(tmp_path / "linked" / "val" / "blobs" / "b.png") if name == "ABSOLUTE" else name)
    _report(tmp_path / "linked", tmp_path / "r.html", by)
    assert _colors(tmp_path / "r.html") == [_near(OWN)] * 2


def test_a_folder_of_images_that_is_a_link_is_shown_only_if_it_is_named(home: Path, tmp_path: Path) -> None:
    """An archive can bring such a link along; `--images` names the folder itself."""
    _dataset(home / "set", "p.png")
    (home / "set" / "val").rename(tmp_path / "aside")
    (home / "set" / "val").symlink_to(home / "private")
    _report(home / "set", tmp_path / "r.html", "data")
    assert _colors(tmp_path / "r.html") == []
    _report(home / "set", tmp_path / "r.html", "images")
    assert _colors(tmp_path / "r.html") == [_near(PRIVATE)]


def test_a_converted_image_from_elsewhere_is_read_and_not_shown(home: Path, tmp_path: Path) -> None:
    """Its hard link or copy in the converted folder would look like a part of it."""
    voc = tmp_path / "voc"
    _image(voc / "JPEGImages" / "own.png", OWN)
    (voc / "JPEGImages" / "out.png").symlink_to(home / "private" / "p.png")
    (voc / "Annotations").mkdir()
    sides = "<xmin>5</xmin><ymin>5</ymin><xmax>45</xmax><ymax>45</ymax>"
    size = "<size><width>96</width><height>96</height></size>"
    objects = "".join(f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>" for name in CLASSES)
    for name in ("own", "out"):
        (voc / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    (voc / "ImageSets" / "Main" / "val.txt").write_text("own\nout\n")
    for _ in range(2):
        assert run("convert-data", voc, tmp_path / "set").code == 0
    assert (tmp_path / "set" / "images" / "out.png").readlink() == home / "private" / "p.png"
    _report(tmp_path / "set", tmp_path / "r.html", "data")
    assert _colors(tmp_path / "r.html") == [_near(OWN)]
    assert "2 images" in run("convert-data", voc, tmp_path / "set").out
