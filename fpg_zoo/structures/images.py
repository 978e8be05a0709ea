"""Images of any kind, read as RGB pixels: files, URLs, PIL images, arrays, tensors; and found in folders."""

from __future__ import annotations

import collections
import contextlib
import functools
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fpg_zoo.errors import ImageError
from fpg_zoo.files import open_regular
from fpg_zoo.http_client import FetchError, masked, open_url
from fpg_zoo.text import printable, quoted

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
ChannelOrder = Literal["rgb", "bgr"]

# Pillow's names of the formats that are read. It knows more: it runs Ghostscript for EPS, whatever the file's name
# ends in. These it decodes by itself.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
URL_TIMEOUT_SECONDS = 30.0  # without a byte
URL_TOTAL_SECONDS = 300.0
MAX_URL_BYTES = 256 << 20
MAX_FILE_BYTES = 4 << 30  # what a TIFF or a WebP file holds at most
_STRIP_BYTES = 1 << 20
_MOST_KINDS = 5
# How the images that `fpg-zoo predict` writes are known: the end of their names, and a tag of their EXIF data.
ANNOTATED_ENDING, CROP_ENDING = "_detections", "_crop"
SOFTWARE_TAG, SOFTWARE = 0x0131, "fpg_zoo predict"
ANNOTATED = "written by predict"
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
# Undoes what each orientation asks for. Pillow turns a TIFF upright by itself when it decodes it.
_BACK_TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_TAIL_BYTES = 4096  # of a video, among which its comment is
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@functools.cache
def _decodable() -> tuple[str, ...]:
    Image.init()
    # Pillow before 11.3 has no AVIF, and none an entry of its own for MPO, which is opened as JPEG.
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def image_suffixes() -> tuple[str, ...]:
    """The endings of file names, in lower case, that Pillow takes for the formats that are read."""
    return tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS))


@contextlib.contextmanager
def open_image(file: str | Path | io.BytesIO) -> Iterator[Image.Image]:
    """Open an image file without decoding its pixels; every image file of others is opened here.

    Raises:
        OSError: it cannot be opened, is no regular file, or not in one of `FORMATS`. Damaged files make Pillow raise
            nearly anything else.
    """
    with contextlib.ExitStack() as stack:
        stream: BinaryIO = (
            file if isinstance(file, io.BytesIO) else stack.enter_context(open_regular(file, max_bytes=MAX_FILE_BYTES))
        )
        yield stack.enter_context(Image.open(stream, formats=_decodable()))


def check_channel_order(channel_order: str) -> None:
    """Refuse what is no order of channels.

    Raises:
        ValueError: it is neither `rgb` nor `bgr`.
    """
    if channel_order not in get_args(ChannelOrder):
        raise ValueError(f"channel_order={quoted(channel_order)}: it is 'rgb', or 'bgr' as OpenCV reads images")


def read_image(source: ImageLike, *, channel_order: ChannelOrder = "rgb") -> Image.Image:
    """Read anything that can be taken as an image.

    Args:
        source: a path or http(s) URL of an image file, or a PIL image; an EXIF rotation is applied. Or an array (H, W),
            (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA, of uint8 or of uint16 on the scale 0..65535. Or a tensor (1, H,
            W) or (3, H, W) RGB, of uint8 or of floating point in 0..1. Transparency is dropped: the colors stored under
            it are used.
        channel_order: of arrays' colors; `bgr` for (H, W, 3) BGR and (H, W, 4) BGRA, as OpenCV has them. Of no effect
            on anything else.

    Returns:
        The image in mode RGB, a copy.

    Raises:
        ValueError: `channel_order` is neither `rgb` nor `bgr`.
        ImageError: it is none of these, cannot be read whole, or has no pixels. Pillow refuses a file from twice
            `PIL.Image.MAX_IMAGE_PIXELS` on (179 million pixels), and so does this. From once that number on it gives a
            `DecompressionBombWarning`. The program's own filters decide about it: they belong to the process, and
            changing them here would change them under other threads.
    """
    check_channel_order(channel_order)
    if isinstance(source, Image.Image):
        with _decoding("the PIL image"):
            own = source.copy() if 0 in source.size else ImageOps.exif_transpose(source)  # which copies, too
        return _to_rgb(own, "the PIL image")
    if isinstance(source, np.ndarray):
        return _from_array(source, channel_order)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, (str, Path)):
        text = str(source)
        if is_url(text):
            return _open(io.BytesIO(_fetch(text)), label_of(text))
        path = Path(os.path.expanduser(source))
        if os.path.isdir(path):
            raise ImageError(
                f"{path}: a folder, not an image; pass the files in it (fpg_zoo.structures.images.find_images)"
            )
        return _open(path, text)
    raise ImageError(f"{type(source).__name__}: not an image; pass a path, URL, PIL image, numpy array or torch tensor")


def read_stored_image(file: Path) -> Image.Image:
    """Read an image file as `read_image` does, but as it is stored, whatever its EXIF rotation.

    Raises:
        ImageError: as of `read_image`.
    """
    image = read_image(file)
    with _decoding(str(file)), open_image(file) as stored:
        back = _BACK_TO_STORED.get(stored.getexif().get(_ORIENTATION, 1))
    return image if back is None else image.transpose(back)


def is_upright_rgb(source: ImageLike) -> bool:
    """Whether `read_image` would do nothing but copy it, which takes 4 bytes a pixel."""
    if not isinstance(source, Image.Image) or source.mode != "RGB" or 0 in source.size:
        return False
    with _decoding("the PIL image"):
        source.load()
        return bool(source.getexif().get(_ORIENTATION, 1) == 1)


def is_url(source: str) -> bool:
    """Whether `read_image` takes it for a URL."""
    return source.lower().startswith(("http://", "https://"))


def is_remote(source: str) -> bool:
    """Whether it is a URL, of whatever scheme."""
    return _SCHEME.match(source) is not None


def label_of(source: str) -> str:
    """What to call a path or URL in messages and results: a URL goes without the password that it may hold."""
    return masked(source) if is_remote(source) else source


def to_pixels(image: Image.Image) -> Tensor:
    """A PIL image in mode RGB as (3, H, W) uint8."""
    width, height = image.size
    pixels = np.empty((3, height, width), dtype=np.uint8)
    rows = max(_STRIP_BYTES // (3 * max(width, 1)), 1)
    # Strip by strip: Pillow's own conversion takes the image's memory twice more, and leaves the cache all the time.
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        pixels[:, top : top + rows] = np.asarray(strip).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


class ImageSearch(NamedTuple):
    """What paths, folders, patterns and URLs stand for.

    Attributes:
        files: paths and URLs, in order, each once.
        passed_over: how many files of each kind were not taken, for each folder or pattern of which any were not.
    """

    files: list[str]
    passed_over: dict[str, collections.Counter[str]]


def find_images(sources: Iterable[str]) -> list[str]:
    """The image files that paths, folders (not their subfolders), glob patterns and URLs stand for.

    Sources keep their order. The files of a folder or pattern come in natural order: frame_5 before frame_10.

    What is there under a name is that, whatever letters the name has; a pattern stands for what is not. Of a folder,
    the files are taken whose names end as those of a format that is read (`image_suffixes`) and do not begin with a
    dot. Annotated images that `fpg-zoo predict` wrote are taken where they are named, and passed over in folders and
    patterns.

    Raises:
        ImageError: a folder without images or one that cannot be read, or a pattern that matches nothing. A path that
            does not exist is passed on, for reading to report it.
    """
    return search_images(sources).files


def search_images(sources: Iterable[str]) -> ImageSearch:
    """As `find_images`, with the numbers of files that were passed over."""
    files, passed_over = [], {}
    for source in sources:
        path = Path(os.path.expanduser(source))
        # os.path answers no where Path raises, for a name that is too long, say.
        if os.path.isdir(path):
            inside, others = _listed(path, source)
            if not inside:
                rest = f"; it holds {counted(others)}" if others else ""
                raise ImageError(
                    f"{source}: no images in this folder (files ending in {', '.join(image_suffixes())}){rest}"
                )
        elif not os.path.exists(path) and not is_remote(source) and (pattern := _pattern(path)):
            inside, others = _matching(*pattern)
            if not inside:
                rest = f", but for {counted(others)}" if others else ""
                raise ImageError(f"{source}: no file matches this pattern{rest}")
        else:
            inside, others = [source], collections.Counter()
        files.extend(inside)
        if others:
            passed_over[source] = others
    return ImageSearch(list(dict.fromkeys(files)), passed_over)


def counted(types: collections.Counter[str]) -> str:
    """Numbers of files by kind for people, the five most frequent kinds: "3 .txt, 1 hidden"."""
    parts = [f"{number} {printable(kind, 40)}" for kind, number in types.most_common(_MOST_KINDS)]
    rest = types.total() - sum(number for _, number in types.most_common(_MOST_KINDS))
    return ", ".join([*parts, *([f"{rest} of other kinds"] if rest else [])])


def _listed(folder: Path, source: str) -> tuple[list[str], collections.Counter[str]]:
    """A folder's image files, in natural order, and the kinds of the other files."""
    try:
        files = sorted(folder.iterdir(), key=natural_order)
    except OSError as error:
        raise ImageError(f"{source}: this folder cannot be read ({error.strerror}); make it readable") from None
    types = {file: _kind_passed_over(file) for file in files}
    inside = [str(file) for file, kind in types.items() if kind is None]
    return inside, collections.Counter(kind for kind in types.values() if kind is not None)


def _kind_passed_over(file: Path) -> str | None:
    """What to call a file in a folder that is not taken; None if it is."""
    if file.name.startswith("."):
        return "hidden"  # as the ._x.jpg that macOS writes beside x.jpg, and which holds no image
    if os.path.isdir(file):
        return "folder"
    if file.suffix.lower() not in image_suffixes():
        return file.suffix.lower() or "without a suffix"
    if not os.path.isfile(file):
        return "not a regular file"
    return ANNOTATED if _is_annotated(file) else None


def _pattern(path: Path) -> tuple[Path, str] | None:
    """The folder that exists and the pattern of what is to be in it, of a path that does not; None without a pattern.

    A folder may have a name with the letters of a pattern.
    """
    folder = next((parent for parent in path.parents if os.path.isdir(parent)), None)
    if folder is None:
        return None
    pattern = str(path.relative_to(folder))
    return (folder, pattern) if glob.has_magic(pattern) else None


def _matching(folder: Path, pattern: str) -> tuple[list[str], collections.Counter[str]]:
    """The files that match, in natural order, and how many annotated ones do."""
    matching = [folder / name for name in glob.glob(pattern, root_dir=folder, recursive=True)]
    files = {file: _is_annotated(file) for file in matching if os.path.isfile(file)}
    others = collections.Counter(ANNOTATED for annotated in files.values() if annotated)
    return [str(file) for file in sorted(files, key=natural_order) if not files[file]], others


def natural_order(path: str | Path) -> tuple[tuple[list[str | int], str], ...]:
    """A key to sort paths by: numbers in names count as numbers, so that frame_5 comes before frame_10."""
    # At even places there is text and at odd ones digits. The name itself decides between 1 and 01.
    return tuple(
        ([int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"(\d+)", part))], part)
        for part in Path(path).parts
    )


def _is_annotated(file: Path) -> bool:
    """Whether `fpg-zoo predict` wrote it."""
    if not file.stem.endswith((ANNOTATED_ENDING, CROP_ENDING)):
        return False
    try:
        if file.suffix.lower() == ".mp4":
            with open_regular(file) as stream:
                stream.seek(max(os.fstat(stream.fileno()).st_size - _TAIL_BYTES, 0))
                return SOFTWARE.encode() in stream.read()
        with open_image(file) as image:
            return image.getexif().get(SOFTWARE_TAG) == SOFTWARE
    except Exception:  # reading it will tell what is wrong with it
        return False


@contextlib.contextmanager
def _decoding(label: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one error that names the image."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{label}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{label}: not an image in a format that is read ({', '.join(_decodable())}); convert it to JPEG or PNG"
        ) from None
    except MemoryError:
        raise ImageError(f"{label}: not enough memory to read it; make it smaller") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{label}: cannot be read whole ({printable(reason)})") from None


def _open(file: Path | io.BytesIO, label: str) -> Image.Image:
    with _decoding(label), open_image(file) as image:
        if 0 not in image.size:
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, label)


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    """An image of our own in mode RGB, itself if it is."""
    if not image.width or not image.height:
        raise ImageError(f"{label}: empty, {image.width}x{image.height} pixels")
    with _decoding(label):
        image.load()
        if image.mode in _SIXTEEN_BIT_MODES:
            return _from_array(_sixteen_bit(image, label))
        if image.mode == "F":
            raise ImageError(f"{label}: floating-point pixels without a known range; convert it to 8 bits first")
        if image.mode == "RGB":
            return image
        # With it, Pillow would look for a color to stand for it, or warn, which is not the user's to act on.
        image.info.pop("transparency", None)
        return image.convert("RGB")


def _sixteen_bit(image: Image.Image, label: str) -> np.ndarray:
    # Pillow's own conversion to RGB clips at 255, which leaves such an image white.
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{label}: 32-bit pixels outside 0..65535; convert it to 8 bits first")
    return values.astype(np.uint16, copy=False)


def _from_array(array: np.ndarray, channel_order: ChannelOrder = "rgb") -> Image.Image:
    label = f"array of shape {array.shape} and dtype {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{label}: not an image; pass (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if 0 in array.shape:
        raise ImageError(f"{label}: empty")
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = _eight_bit(array)
    if array.dtype != np.uint8:
        raise ImageError(f"{label}: pass uint8 in 0..255 (or uint16), so that the range is not guessed")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    elif array.ndim == 3 and channel_order == "bgr":
        array = array[:, :, 2::-1]
    image = Image.fromarray(np.ascontiguousarray(array))
    return image if image.mode == "RGB" else image.convert("RGB")  # Pillow has copied what is RGB


def _eight_bit(array: np.ndarray) -> np.ndarray:
    """uint16 on the scale 0..65535 to uint8, row by row, so that the wider integers are never many."""
    eight = np.empty(array.shape, dtype=np.uint8)
    for row, row_in in zip(eight, array, strict=True):
        row[:] = (row_in.astype(np.uint32) + 128) // 257
    return eight


def _from_tensor(tensor: Tensor) -> Image.Image:
    label = f"tensor of shape {tuple(tensor.shape)} and dtype {tensor.dtype}"
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ImageError(f"{label}: not an image; pass (3, H, W) or (1, H, W)")
    if 0 in tensor.shape:
        raise ImageError(f"{label}: empty")
    if tensor.is_floating_point():
        # Written so that NaN fails it too.
        if not bool(((tensor >= 0) & (tensor <= 1)).all()):
            raise ImageError(f"{label}: holds values outside 0..1, or NaN; divide by 255, or pass uint8")
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise ImageError(f"{label}: pass uint8 in 0..255 or floating point in 0..1")
    return _from_array(tensor.detach().permute(1, 2, 0).cpu().numpy())


def _fetch(url: str) -> bytes:
    try:
        with open_url(url, timeout=URL_TIMEOUT_SECONDS, total_seconds=URL_TOTAL_SECONDS) as response:
            return response.content(MAX_URL_BYTES)
    except FetchError as error:
        reason = f"cannot be fetched ({error})" if error.status is None else f"the server answered {error}"
    except MemoryError:
        reason = "not enough memory to fetch it"
    raise ImageError(f"{label_of(url)}: {reason}")
