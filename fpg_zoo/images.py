"""Pictures of any kind, read as RGB pixels: files, URLs, PIL images, arrays, tensors; and found in folders."""

from __future__ import annotations

import contextlib
import glob
import http.client
import io
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fpg_zoo.errors import ImageError

ImageLike = str | Path | Image.Image | np.ndarray | Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
URL_TIMEOUT_SECONDS = 30.0
MAX_URL_BYTES = 256 << 20
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(source: ImageLike) -> Image.Image:
    """Read anything that can be taken as a picture.

    Args:
        source: a path or http(s) URL of a picture file (an EXIF rotation is applied); a PIL image, likewise; an array
            (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, or of uint16 on the scale 0..65535; a tensor
            (1, H, W) or (3, H, W) RGB of uint8, or of floating point in 0..1. Transparency is dropped: the colours
            stored under it are used.

    Returns:
        The picture in mode RGB, a copy.

    Raises:
        ImageError: it is none of these, cannot be read whole, or has no pixels. From twice
            `PIL.Image.MAX_IMAGE_PIXELS` on, 179 million, Pillow refuses a file, and so does this; from once that on it
            gives a `DecompressionBombWarning`, which is left to the program's own warning filters: they are the
            process's, and changing them here would change them under other threads.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the PIL image")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, (str, Path)):
        text = str(source)
        if text.lower().startswith(("http://", "https://")):
            return _open(io.BytesIO(_fetch(text)), text)
        path = Path(os.path.expanduser(source))
        if os.path.isdir(path):
            raise ImageError(f"{path}: a folder, not a picture; pass the files in it (fpg_zoo.images.find_images)")
        return _open(path, text)
    raise ImageError(f"{type(source).__name__}: not an image; pass a path, URL, PIL image, numpy array or torch tensor")


def to_pixels(image: Image.Image) -> Tensor:
    """A PIL image in mode RGB as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def find_images(sources: Iterable[str]) -> list[str]:
    """The picture files that paths, folders (not their subfolders), glob patterns and URLs stand for, in order.

    Raises:
        ImageError: a folder without pictures, or a pattern that matches nothing. A path that does not exist is passed
            on, for reading to report it.
    """
    found: list[str] = []
    for source in sources:
        path = Path(os.path.expanduser(source))
        # os.path answers no where Path raises, for a name that is too long, say.
        if os.path.isdir(path):
            inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise ImageError(f"{source}: no pictures in this folder (files ending in {', '.join(SUFFIXES)})")
            found.extend(inside)
        elif not os.path.exists(path) and glob.has_magic(source) and "://" not in source:
            matching = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
            if not matching:
                raise ImageError(f"{source}: no file matches this pattern")
            found.extend(matching)
        else:
            found.append(source)
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def _decoding(label: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one error that names the picture."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{label}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{label}: not a picture in a format that Pillow reads") from None
    except MemoryError:
        raise ImageError(f"{label}: not enough memory to read it; make it smaller") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise ImageError(f"{label}: cannot be read whole ({error})") from None


def _open(file: Path | io.BytesIO, label: str) -> Image.Image:
    with _decoding(label), Image.open(file) as image:
        return _to_rgb(image, label)


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if not image.width or not image.height:
        raise ImageError(f"{label}: empty, {image.width}x{image.height} pixels")
    with _decoding(label):
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _SIXTEEN_BIT_MODES:
            return _from_array(_sixteen_bit(upright, label))
        if upright.mode == "F":
            raise ImageError(f"{label}: floating-point pixels without a known range; convert it to 8 bits first")
        if "transparency" in upright.info:
            upright = upright.convert("RGBA")  # else Pillow warns, which is not the user's to act on
        return upright.convert("RGB")


def _sixteen_bit(image: Image.Image, label: str) -> np.ndarray:
    # Pillow's own conversion to RGB clips at 255, which leaves such a picture white.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{label}: 32-bit pixels outside 0..65535; convert it to 8 bits first")
    return values.astype(np.uint16)


def _from_array(array: np.ndarray) -> Image.Image:
    label = f"array of shape {array.shape} and dtype {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{label}: not an image; pass (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if 0 in array.shape:
        raise ImageError(f"{label}: empty")
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"{label}: pass uint8 in 0..255 (or uint16), so that the range is not guessed")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


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
        with urllib.request.urlopen(url, timeout=URL_TIMEOUT_SECONDS) as response:
            content: bytes = response.read(MAX_URL_BYTES + 1)
            announced = response.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        raise ImageError(f"{url}: the server answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ImageError(f"{url}: cannot be fetched ({getattr(error, 'reason', error)})") from None
    if announced.isdigit() and len(content) < min(int(announced), MAX_URL_BYTES):
        raise ImageError(
            f"{url}: cannot be read whole (the connection closed after {len(content)} of {announced} bytes)"
        )
    if len(content) > MAX_URL_BYTES:
        raise ImageError(f"{url}: more than {MAX_URL_BYTES >> 20} MiB; fetch it yourself and pass the file")
    return content
