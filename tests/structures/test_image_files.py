"""Image files of others: which formats are read, how they are opened, what damage does, how much memory is taken."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import python
from PIL import EpsImagePlugin, Image

from fpg_zoo.data.annotation_problems import IMAGE_UNREADABLE
from fpg_zoo.data.convert_voc import convert_voc
from fpg_zoo.data.dataset import read_pixels
from fpg_zoo.errors import ConfigError, ImageError
from fpg_zoo.structures.images import find_images, image_suffixes, read_image, read_stored_image, to_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
ORIENTATION = 0x0112


def _encoded(file_format: str, image: Image.Image = IMAGE, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def _refusal(source: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source)
    return str(caught.value)


# Formats


def test_no_program_is_started_for_a_file_of_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    for name in ("check_call", "check_output", "run", "Popen"):
        monkeypatch.setattr(subprocess, name, lambda *given, **_: started.append(given))
    (tmp_path / "photo.jpg").write_bytes(_encoded("EPS"))
    assert "not an image in a format that is read" in _refusal(tmp_path / "photo.jpg")
    assert started == []


@pytest.mark.parametrize("file_format", ["EPS", "PCX", "TGA", "ICO", "SGI", "MSP", "XBM"])
def test_formats_that_are_not_named_are_not_read_anywhere(file_format: str, tmp_path: Path) -> None:
    image = IMAGE.convert("1") if file_format in ("MSP", "XBM") else IMAGE
    content = _encoded(file_format, image)
    # Pillow reads it, whatever its name ends in.
    assert Image.open(io.BytesIO(content)).format == file_format
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "JPEGImages" / "photo.jpg"
    file.write_bytes(content)
    assert _refusal(file).startswith(f"{file}: not an image in a format that is read (JPEG, ")
    with pytest.raises(ImageError, match="not an image"):
        read_pixels(file, (24, 32))
    (tmp_path / "Annotations" / "photo.xml").write_text(
        "<annotation><object><name>a</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "</object></annotation>"
    )
    with pytest.raises(ConfigError, match=IMAGE_UNREADABLE):
        convert_voc(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("suffix", "file_format"),
    [
        (".jfif", "JPEG"),
        (".jpe", "JPEG"),
        (".mpo", "MPO"),
        (".apng", "PNG"),
        (".dib", "DIB"),
        (".pbm", "PPM"),
        (".pnm", "PPM"),
        (".jp2", "JPEG2000"),
        (".j2k", "JPEG2000"),
        (".avif", "AVIF"),
    ],
)
def test_all_endings_of_the_formats_that_are_read_are_found(suffix: str, file_format: str, tmp_path: Path) -> None:
    Image.init()
    if file_format not in Image.SAVE:
        pytest.skip(f"this Pillow has no {file_format}")
    options = {"save_all": True, "append_images": [IMAGE]} if file_format == "MPO" else {}
    file = tmp_path / f"photo{suffix.upper()}"
    file.write_bytes(_encoded(file_format, **options))
    assert find_images([str(tmp_path)]) == [str(file)]
    assert read_image(file).size == (32, 24)


def test_endings_of_formats_that_are_not_read_are_none_of_images() -> None:
    assert not {".eps", ".ps", ".pdf", ".psd", ".ico", ".txt", ""} & set(image_suffixes())
    assert {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"} <= set(image_suffixes())


# Files that are none


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.png").symlink_to("pipe.jpg")
    (tmp_path / "zero.bmp").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "link.png", "zero.bmp"):
        assert _refusal(tmp_path / name) == f"{tmp_path / name}: cannot be read whole (not a regular file)"
    (tmp_path / "photo.png").write_bytes(_encoded("PNG"))
    assert find_images([str(tmp_path)]) == [str(tmp_path / "photo.png")]


@pytest.mark.parametrize("file_format", ["WEBP", "BMP", "TIFF"])
def test_a_file_without_end_is_not_read(file_format: str, tmp_path: Path) -> None:
    file = tmp_path / "sparse.img"
    file.write_bytes(_encoded(file_format))
    os.truncate(file, 1 << 40)
    assert "1099511627776 bytes, more than the 4294967296 that are read" in _refusal(file)


def test_links_that_lead_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert _refusal(tmp_path / "a.jpg").startswith(f"{tmp_path / 'a.jpg'}: cannot be read whole (")


# As it is stored


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
def test_an_image_can_be_read_as_it_is_stored(name: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    IMAGE.save(tmp_path / name, exif=exif, **({"lossless": True} if name == "x.webp" else {}))
    assert read_image(tmp_path / name).size == ((24, 32) if orientation > 4 else (32, 24))
    assert np.array_equal(np.array(read_stored_image(tmp_path / name)), PIXELS)
    assert np.array_equal(read_pixels(tmp_path / name, (24, 32)).permute(1, 2, 0).numpy(), PIXELS) or orientation < 5


def test_sixteen_bits_annotated_as_stored_are_scaled_not_clipped(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.full((2, 3), 128 * 257, np.uint16)).save(tmp_path / "x.tif", exif=exif)
    assert read_pixels(tmp_path / "x.tif", (2, 3)).unique().tolist() == [128]
    assert read_pixels(tmp_path / "x.tif", (3, 2)).unique().tolist() == [128]


# Damage


def _seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    seeds = [
        _encoded("JPEG", exif=exif),
        _encoded("JPEG", IMAGE.convert("CMYK"), progressive=True),
        _encoded("PNG", IMAGE.convert("P"), transparency=3),
        _encoded("PNG", IMAGE.convert("LA")),
        _encoded("GIF", IMAGE.convert("P"), save_all=True, append_images=[IMAGE.convert("P")]),
        _encoded("BMP"),
        _encoded("TIFF", compression="tiff_lzw", exif=exif),
        _encoded("TIFF", IMAGE.convert("1"), compression="group4"),
        _encoded("WEBP"),
        _encoded("PPM"),
        _encoded("JPEG2000"),
    ]
    return [*seeds, _encoded("EPS")]


def _mutated(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    place = int(random.integers(0, len(content)))
    kind = int(random.integers(0, 6))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + other[int(random.integers(0, len(other))) :]
    if kind == 2:
        return content[:place] + random.bytes(int(random.integers(1, 40))) + content[place:]
    if kind == 3:
        return content[:place] + content[place + int(random.integers(1, 40)) :]
    changed = bytearray(content)
    end = len(content) if kind == 4 else min(len(content), 100)  # headers have most to get wrong
    for _ in range(int(random.integers(1, 9))):
        changed[int(random.integers(0, end))] = int(random.choice([0, 1, 127, 128, 255, random.integers(0, 256)]))
    return bytes(changed)


def test_mutated_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    random, seeds = np.random.default_rng(0), _seeds()
    messages: list[tuple[Path, str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
        for number in range(120):
            file = tmp_path / f"{number}.jpg"
            file.write_bytes(_mutated(seeds[number % len(seeds)], seeds[int(random.integers(len(seeds)))], random))
            try:
                found = read_image(file)
            except ImageError as error:
                messages.append((file, str(error)))
            else:
                assert found.mode == "RGB"
                assert len(to_pixels(found)) == 3
    assert all(message.startswith(f"{file}: ") and message.isprintable() for file, message in messages)
    assert 10 < len(messages) < 110
    assert len(find_images([str(tmp_path)])) == 120


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a process's greatest memory here")
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
@pytest.mark.slow
def test_a_large_image_of_a_small_file_takes_little_more_than_its_pixels(mode: str, tmp_path: Path) -> None:
    side = 5000  # 25 million pixels: 100 MB as Pillow keeps RGB, 75 MB as bytes; widened to 32 bits, 300 MB
    Image.new(mode, (side, side)).save(tmp_path / "x.tif", compression="group4" if mode == "1" else "tiff_lzw")
    code = f"""
import fpg_zoo.inference.predictor
from fpg_zoo.structures.images import read_image, to_pixels
from fpg_zoo.modeling.preprocess import resize
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1000
before = peak()
image = read_image({str(tmp_path / "x.tif")!r})
read = peak()
resize(to_pixels(image), (640, 640))
print(read - before, peak() - before)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    read, resized = map(int, done.stdout.split())
    # Read: the pixels as they are stored, and in RGB. Resized: Pillow's and the bytes of all, and of the rows needed.
    # The rest is libraries loaded on the way, which differ by version; the whole widened at once would take 300 more.
    assert read < 100 + (0 if mode == "RGB" else 25) + 20
    assert resized < 100 + 75 + 120
