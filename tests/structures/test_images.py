"""Images of any kind become RGB pixels, or are refused with the value and the cause."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, features

from fpg_zoo.errors import ImageError
from fpg_zoo.structures.images import read_image, to_pixels

ORIENTATION = 0x0112
GRADIENT = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3) * 4  # all values differ, height 4, width 5


def _colors(image: Image.Image) -> list[list[list[int]]]:
    """Rows of RGB triples."""
    assert image.mode == "RGB"
    return np.array(image).tolist()


def _encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def _refusal(source: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source)
    return str(caught.value)


def _picture(width: int, height: int) -> Image.Image:
    """An image that no compression makes small."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# Pixel formats


def test_to_pixels_puts_channels_first_and_keeps_every_value() -> None:
    pixels = to_pixels(Image.fromarray(GRADIENT))
    assert (pixels.dtype, tuple(pixels.shape), pixels.is_contiguous()) == (torch.uint8, (3, 4, 5), True)
    # Channel 2 of row 3, column 1: ((3 * 5 + 1) * 3 + 2) * 4 = 200.
    assert int(pixels[2, 3, 1]) == 200
    assert int(pixels.int().sum()) == 4 * 59 * 60 // 2


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("1", [0, 255], [(0, 0, 0), (255, 255, 255)]),
        ("L", [7, 200], [(7, 7, 7), (200, 200, 200)]),
        ("LA", [(90, 0), (30, 255)], [(90, 90, 90), (30, 30, 30)]),  # transparency is dropped, the gray stays
        ("RGBA", [(1, 2, 3, 0), (4, 5, 6, 128)], [(1, 2, 3), (4, 5, 6)]),
        # No ink is white, all cyan takes the red away, all black takes everything.
        ("CMYK", [(0, 0, 0, 0), (255, 0, 0, 0)], [(255, 255, 255), (0, 255, 255)]),
        ("CMYK", [(0, 0, 0, 255), (0, 255, 255, 0)], [(0, 0, 0), (255, 0, 0)]),
    ],
)
def test_pixel_formats_become_rgb(mode: str, values: list[Any], expected: list[Any], tmp_path: Path) -> None:
    image = Image.new(mode, (2, 1))
    image.putdata(values)
    image.save(tmp_path / "picture.tif")
    for source in (image, tmp_path / "picture.tif"):
        assert _colors(read_image(source)) == [[list(color) for color in expected]]


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80"], ids=["opaque", "one colour", "alpha per colour"])
def test_palette_colours_are_looked_up_silently(transparency: Any, tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "picture.png", **({} if transparency is None else {"transparency": transparency}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of Pillow's tells its programmer something, not the user
        found = read_image(tmp_path / "picture.png")
    assert _colors(found) == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize(
    ("mode", "color", "transparency"),
    [("1", 255, [1]), ("L", 40, [40]), ("RGB", (9, 80, 70), [9, 80, 70]), ("I;16", 257 * 40, [257 * 40])],
)
def test_a_colour_that_counts_as_transparent_is_kept_silently(
    mode: str, color: Any, transparency: list[int], tmp_path: Path
) -> None:
    whole = _encoded(Image.new(mode, (2, 1), color), "PNG")
    # Not every Pillow writes the chunk of each mode: 16 bits a channel, before the pixels' chunk.
    chunk = b"tRNS" + struct.pack(f">{len(transparency)}H", *transparency)
    pixels = whole.index(b"IDAT") - 4
    extra = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "picture.png").write_bytes(whole[:pixels] + extra + whole[pixels:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_image(tmp_path / "picture.png")
    expected = {"1": [255] * 3, "L": [40] * 3, "RGB": [9, 80, 70], "I;16": [40] * 3}[mode]
    assert _colors(found) == [[expected, expected]]


# 65535 is 255 * 257, so v / 257 takes 16 bits to 8: 128 / 257 = 0.498, 32639 / 257 = 127, 32768 / 257 = 127.502.
SIXTEEN_BITS = np.array([[0, 128, 32639, 32768, 65535]])
EIGHT_BITS = [0, 0, 127, 128, 255]


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "big_endian.tif", "i.tif"])
def test_sixteen_bits_are_scaled_not_clipped(name: str, tmp_path: Path) -> None:
    dtype = {"big_endian.tif": ">u2", "i.tif": "<i4"}.get(name, "<u2")
    Image.fromarray(SIXTEEN_BITS.astype(dtype)).save(tmp_path / name)
    assert _colors(read_image(tmp_path / name)) == [[[value] * 3 for value in EIGHT_BITS]]


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536]])
def test_mode_i_beyond_sixteen_bits_is_refused(values: list[int]) -> None:
    assert "the PIL image: 32-bit pixels outside 0..65535" in _refusal(Image.fromarray(np.array([values], np.int32)))


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    Image.fromarray(np.array([[0.5, 2.5]], np.float32)).save(path)
    message = _refusal(path)
    assert str(path) in message
    assert "floating-point pixels without a known range" in message


def test_only_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("P", (2, 2), 1), Image.new("P", (2, 2), 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.gif").getpixel((0, 0)) == (250, 0, 0)


# EXIF: the tag says where the stored row 0 and column 0 are to be seen (TIFF 6.0, tag 274).
CORNERS = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left"} | {
    5: "top left", 6: "top right", 7: "bottom right", 8: "bottom left"}  # fmt: skip


@pytest.mark.parametrize("kind", ["file", "PIL image"])
@pytest.mark.parametrize("orientation", CORNERS)
def test_exif_rotation_puts_the_bright_corner_where_it_belongs(orientation: int, kind: str, tmp_path: Path) -> None:
    stored = Image.new("RGB", (48, 32))
    stored.paste((255, 255, 255), (0, 0, 16, 16))  # a whole JPEG block of 16x16
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "rotated.jpg"
    stored.save(path, exif=exif, quality=95)
    if kind == "file":
        found = read_image(path)
    else:
        with Image.open(path) as image:
            found = read_image(image)
            assert image.size == (48, 32)
    # From 5 on, stored rows are seen as columns.
    assert found.size == ((48, 32) if orientation < 5 else (32, 48))
    right, bottom = found.width - 1, found.height - 1
    places = {"top left": (0, 0), "top right": (right, 0), "bottom right": (right, bottom), "bottom left": (0, bottom)}
    bright = [name for name, place in places.items() if min(found.getpixel(place)) > 200]
    assert bright == [CORNERS[orientation]]


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
def test_exif_rotation_is_applied_once_in_other_formats(name: str, tmp_path: Path) -> None:
    stored = Image.new("RGB", (3, 2))
    stored.putpixel((0, 0), (250, 250, 250))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored.save(tmp_path / name, exif=exif, **({"lossless": True} if name == "x.webp" else {}))
    found = read_image(tmp_path / name)
    assert found.size == (2, 3)
    assert found.getpixel((1, 0)) == (250, 250, 250)


def test_a_damaged_exif_block_is_no_way_past_image_error(tmp_path: Path) -> None:
    # Two tags: ImageLength (0x0101), a number, given as the text "hello"; and the orientation 6.
    tags = struct.pack(">HHHIIHHII", 2, 0x0101, 2, 6, 38, ORIENTATION, 3, 1, 6 << 16) + bytes(4) + b"hello\0"
    path = tmp_path / "damaged.jpg"
    _picture(24, 16).save(path, exif=b"Exif\0\0MM\0*" + struct.pack(">I", 8) + tags)
    with contextlib.suppress(ImageError):  # reading it all the same would be as good
        assert read_image(path).size in ((24, 16), (16, 24))


# Files


@pytest.mark.parametrize(("file_format", "shares"), [("JPEG", (0.3, 0.5, 0.9)), ("PNG", (0.3, 0.9)), ("WEBP", (0.5,))])
def test_a_truncated_picture_is_refused_with_its_path(file_format: str, shares: tuple[float], tmp_path: Path) -> None:
    whole = _encoded(_picture(64, 48), file_format)
    path = tmp_path / f"cut.{file_format.lower()}"
    path.write_bytes(whole)
    assert read_image(path).size == (64, 48)
    for share in shares:
        path.write_bytes(whole[: int(len(whole) * share)])
        message = _refusal(path)
        assert message.startswith(f"{path}: ")
        assert "cannot be read whole" in message or "not an image" in message


def test_a_truncated_picture_that_pillow_opened_lazily_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    whole = _encoded(_picture(64, 48), "JPEG")
    path.write_bytes(whole[: len(whole) // 2])
    with Image.open(path) as image:
        assert "truncated" in _refusal(image)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "damaged.avif"
    path.write_bytes(_encoded(_picture(16, 16), "AVIF").replace(b"pitm", b"free"))
    assert str(path) in _refusal(path)


@pytest.mark.parametrize("content", [b"This is no image.\n" * 20, b"", b"\xff\xd8\xff"])
def test_what_is_no_picture_is_refused_whatever_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_bytes(content)
    message = _refusal(path)
    assert message.startswith(f"{path}: not an image in a format that is read (JPEG, ")
    assert message.endswith("; convert it to JPEG or PNG")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_missing_file_is_named(kind: Any, tmp_path: Path) -> None:
    assert _refusal(kind(tmp_path / "gone.jpg")) == f"{tmp_path / 'gone.jpg'}: no such file"


def test_a_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    message = _refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: a folder")
    assert "find_images" in message


@pytest.mark.parametrize("path", ["~no-such-user-here/a.jpg", "a" * 300 + ".jpg", "nul\0byte.jpg"])
def test_a_path_that_cannot_exist_is_refused(path: str) -> None:
    assert path.replace("\0", "\\x00") in _refusal(path)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _picture(3, 2).save(tmp_path / "a.png")
    assert read_image("~/a.png").size == (3, 2)


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
def test_extreme_sizes_are_read_whole(size: tuple[int, int], tmp_path: Path) -> None:
    given = _picture(*size)
    given.save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tobytes() == given.tobytes()


def test_a_pil_image_without_pixels_is_refused() -> None:
    assert _refusal(Image.new("RGB", (0, 5))) == "the PIL image: empty, 0x5 pixels"


def test_the_picture_read_is_a_copy() -> None:
    given = Image.fromarray(GRADIENT)
    array = GRADIENT.copy()
    for found in (read_image(given), read_image(array)):
        found.putpixel((0, 0), (99, 99, 99))
    assert np.array_equal(np.array(given), GRADIENT)
    assert np.array_equal(array, GRADIENT)


@pytest.mark.parametrize("limit", [40, 20, 10], ids=["below", "warned of", "refused"])
def test_the_limits_of_pillow_are_pillows(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow warns over the limit and refuses over twice the limit. The image has 30 pixels.
    path = tmp_path / "x.png"
    _picture(6, 5).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if limit == 10:
            assert f"{path}: cannot be read whole (Image size (30 pixels) exceeds limit of 20 pixels" in _refusal(path)
        else:
            assert read_image(path).size == (6, 5)
    assert [warning.category for warning in told] == ([Image.DecompressionBombWarning] if limit == 20 else [])


def test_reading_on_several_threads_leaves_the_warning_filters_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    _picture(64, 48).save(path)
    before = list(warnings.filters)
    seen = []

    def read(_: int) -> None:
        read_image(path)
        seen.append(list(warnings.filters))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(400)))
    assert len(seen) == 400
    assert all(filters == before for filters in seen)
    assert warnings.filters == before


def test_a_picture_that_memory_does_not_suffice_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _picture(6, 5).save(tmp_path / "x.png")

    def exhausted(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", exhausted)
    assert _refusal(tmp_path / "x.png") == f"{tmp_path / 'x.png'}: not enough memory to read it; make it smaller"


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.webp"])
def test_reading_what_was_read_changes_nothing(name: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    _picture(6, 5).save(tmp_path / name, exif=exif)
    once = read_image(tmp_path / name)
    assert once.size == (5, 6)
    assert np.array_equal(np.array(read_image(once)), np.array(once))


# Arrays and tensors


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
@pytest.mark.parametrize("flipped", [False, True])
def test_arrays_of_uint8_keep_their_values(shape: tuple[int, ...], flipped: bool) -> None:
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    array = array[::-1, ::-1] if flipped else array  # negative strides
    colors = np.broadcast_to(array.reshape(4, 5, -1)[:, :, :3], (4, 5, 3))
    assert _colors(read_image(array)) == colors.tolist()


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_arrays_of_uint16_are_scaled(channels: int, dtype: str) -> None:
    array = SIXTEEN_BITS.astype(dtype)
    array = np.repeat(array[:, :, None], channels, 2) if channels else array
    assert _colors(read_image(array)) == [[[value] * 3 for value in EIGHT_BITS]]


@pytest.mark.parametrize(
    ("array", "said", "cause"),
    [
        (np.zeros((2, 2, 3), np.float32), "(2, 2, 3) and dtype float32", "pass uint8 in 0..255"),
        (np.zeros((2, 2), np.int64), "(2, 2) and dtype int64", "pass uint8"),
        (np.zeros((2, 2), bool), "(2, 2) and dtype bool", "pass uint8"),
        (np.zeros(4, np.uint8), "(4,)", "not an image"),
        (np.zeros((1, 2, 2, 3), np.uint8), "(1, 2, 2, 3)", "pass (H, W)"),
        (np.zeros((2, 2, 2), np.uint8), "(2, 2, 2)", "not an image"),
        (np.zeros((3, 4, 5), np.uint8), "(3, 4, 5)", "(H, W, 3)"),
        (np.zeros((0, 5), np.uint8), "(0, 5)", "empty"),
        (np.zeros((5, 0, 3), np.uint8), "(5, 0, 3)", "empty"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array: np.ndarray, said: str, cause: str) -> None:
    message = _refusal(array)
    assert f"array of shape {said}" in message
    assert cause in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_floating_point_tensors_are_scaled_by_255(dtype: torch.dtype) -> None:
    # All of them exact in every dtype: 0.25 * 255 = 63.75, 0.75 * 255 = 191.25.
    tensor = torch.tensor([0, 0.25, 0.75, 1], dtype=dtype).reshape(1, 1, 4)
    expected = [[[value] * 3 for value in (0, 64, 191, 255)]]
    assert _colors(read_image(tensor)) == expected
    assert _colors(read_image(tensor.expand(3, 1, 4).requires_grad_())) == expected


def test_tensors_of_uint8_are_rgb_with_channels_first() -> None:
    tensor = torch.from_numpy(GRADIENT).permute(2, 0, 1)
    assert _colors(read_image(tensor)) == GRADIENT.tolist()
    assert _colors(read_image(tensor[:1])) == np.repeat(GRADIENT[:, :, :1], 3, 2).tolist()


@pytest.mark.parametrize(
    ("tensor", "said", "cause"),
    [
        (torch.tensor([0.5, float("nan")]).expand(3, 2, 2), "(3, 2, 2) and dtype torch.float32", "NaN"),
        (torch.full((3, 2, 2), 1.01), "(3, 2, 2)", "outside 0..1"),
        (torch.full((3, 2, 2), -0.01), "(3, 2, 2)", "outside 0..1"),
        (torch.full((3, 2, 2), float("inf")), "(3, 2, 2)", "outside 0..1"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "(3, 2, 2) and dtype torch.int64", "pass uint8"),
        (torch.zeros(3, 2, 2, dtype=torch.bool), "(3, 2, 2) and dtype torch.bool", "pass uint8"),
        (torch.zeros(3, 2, 2, dtype=torch.complex64), "(3, 2, 2) and dtype torch.complex64", "floating point in 0..1"),
        (torch.zeros(2, 2), "(2, 2)", "pass (3, H, W)"),
        (torch.zeros(1, 3, 2, 2), "(1, 3, 2, 2)", "not an image"),
        (torch.zeros(2, 2, 3), "(2, 2, 3)", "not an image"),
        (torch.zeros(4, 2, 2), "(4, 2, 2)", "not an image"),
        (torch.zeros(3, 0, 2), "(3, 0, 2)", "empty"),
    ],
)
def test_tensors_that_are_no_picture_are_refused(tensor: torch.Tensor, said: str, cause: str) -> None:
    message = _refusal(tensor)
    assert f"tensor of shape {said}" in message
    assert cause in message


@pytest.mark.parametrize("value", [5, None, b"a.jpg", ["a.jpg"]])
def test_other_types_are_named(value: Any) -> None:
    message = _refusal(value)
    assert message.startswith(f"{type(value).__name__}: not an image")
    assert "pass a path, URL, PIL image, numpy array or torch tensor" in message
