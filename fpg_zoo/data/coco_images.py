"""Entries of `images` of an annotation file: which file each of them means, and how large its image is."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from fpg_zoo.errors import ImageError
from fpg_zoo.structures.images import open_image

_MAX_SIDE = 1e9  # pixels; of no image
_ORIENTATION = 0x0112  # EXIF; from 5 on, height and width are stored exchanged
_FIRST_SIDEWAYS = 5
_MAX_NAME = 4096  # characters; of a longer one no other spelling is tried
_MAX_PARTS = 64  # folders and file; of longer ends of an absolute path none is tried
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ABSOLUTE = re.compile(r"(?:[A-Za-z]:)?/")  # here or on Windows, with slashes in place of backslashes
_UPWARD = re.compile(r"(?:\./+)*\.\./")  # out of the folder that names start from


def size_of(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) in pixels as an entry has them; None unless both are whole numbers from 1 on, as 240 or 240.0."""
    height, width = _side(entry.get("height")), _side(entry.get("width"))
    return None if height is None or width is None else (height, width)


def _side(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_SIDE else None


def name_of(entry: Mapping[str, Any]) -> str | None:
    """An entry's `file_name`; where it has none, as in LVIS, the URL in its `coco_url`; None if neither is a text."""
    names = (entry.get("file_name"), entry.get("coco_url"))
    return next((name for name in names if isinstance(name, str) and name), None)


def find_image(folder: Path, name: str) -> Path | None:
    """The file that a name in an annotation file means.

    The name as it is comes first, from the folder on. Then it may be spelled in another way: backslashes stand for
    slashes, `%20` and the like for characters, accents for themselves and their letter in one or in two characters.
    Of an absolute path, a URL, or a path that begins with `..`, whose beginning belongs to another machine, the longest
    end that there is in the folder is taken.

    Args:
        folder: that names start from.
        name: as of `name_of`.

    Returns:
        The first that is a regular file, or a link to one; None if none is. It need not lie in the folder.
    """
    return next((file for file in _candidates(folder, name) if os.path.isfile(file)), None)


def expected_path(folder: Path, name: str) -> Path:
    """One path that `find_image` looks for, for an error message: it has no backslashes, and is in the folder."""
    slashes = name.replace("\\", "/")
    if _URL.match(name) or _ABSOLUTE.match(slashes):
        return list(_candidates(folder, name))[-1]
    return folder / slashes


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    yield folder / name
    if len(name) > _MAX_NAME:
        return
    path = name
    if _URL.match(name):
        try:
            path = urlsplit(name).path
        except ValueError:
            return
    spellings = list(dict.fromkeys(_spellings(path)))
    absolute = _ABSOLUTE.match(path.replace("\\", "/")) is not None
    if not absolute:
        yield from (folder / spelling for spelling in spellings if spelling != name and not _ABSOLUTE.match(spelling))
    if absolute or any(map(_UPWARD.match, spellings)):
        split = [
            [part for part in _ABSOLUTE.sub("/", spelling).split("/") if part not in ("", ".")]
            for spelling in spellings
        ]
        for length in range(min(max(map(len, split)), _MAX_PARTS), 0, -1):
            for parts in split:
                if length <= len(parts) and ".." not in parts[-length:]:
                    yield folder.joinpath(*parts[-length:])


def _spellings(path: str) -> Iterator[str]:
    slashes = path.replace("\\", "/")
    for spelling in (path, slashes, unquote(slashes).replace("\\", "/")):
        yield spelling
        if not spelling.isascii():
            yield unicodedata.normalize("NFC", spelling)
            yield unicodedata.normalize("NFD", spelling)


def ambiguous_files(folder: Path, names: Sequence[str | None], files: Sequence[Path | None]) -> set[Path]:
    """Files that `find_image` found under a corrected name, and that another name means, too.

    Two images of equal names in two folders of another machine would both be the one that is here.

    Args:
        folder: as of `find_image`.
        names: of the images.
        files: what it found, of each.
    """
    resolved = [(name, file) for name, file in zip(names, files, strict=True) if name is not None and file is not None]
    corrected: dict[Path, set[str]] = {file: set() for name, file in resolved if file != folder / name}
    for name, file in resolved:
        if file in corrected:
            corrected[file].add(unicodedata.normalize("NFC", unquote(name.replace("\\", "/"))))
    return {file for file, spellings in corrected.items() if len(spellings) > 1}


def image_folder(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """The first folder that has one of the images, under their names as they are or else in another spelling.

    The first of all if none has. Absolute paths that exist lie in none of them.
    """
    finders: tuple[Callable[[Path, str], object], ...] = (
        lambda folder, name: not os.path.isabs(name) and os.path.isfile(folder / name),
        lambda folder, name: find_image(folder, name) not in (None, Path(name)),
    )
    for find in finders:
        for folder in folders:
            if any(find(folder, name) for name in names):
                return folder
    return folders[0]


def image_sizes(file: Path | io.BytesIO, *, verify: bool = False) -> list[tuple[int, int]]:
    """The sizes that an image file's header tells of.

    Args:
        file: the image, or its content. Its pixels are not decoded.
        verify: also compare the file with its checksums, where its format has some, as PNG.

    Returns:
        (height, width) in pixels upright, and as stored where EXIF has the image turned: either may have been
        annotated. Empty if the file cannot be read.
    """
    try:
        with open_image(file) as image:
            stored = (image.height, image.width)
            # Of the class, as PNG's own decodes all pixels, in case that EXIF follows them.
            orientation = Image.Image.getexif(image).get(_ORIENTATION)
            if verify:
                image.verify()
    except Exception:  # damaged files make Pillow raise nearly anything
        return []
    if min(stored) < 1:
        return []
    sideways = isinstance(orientation, int) and orientation >= _FIRST_SIDEWAYS
    return [stored[::-1], stored] if sideways else [stored]


def resolve_inside(file: Path, folder: Path) -> Path:
    """The file behind all links, if it lies in a folder.

    What others wrote into an annotation file must not take files from elsewhere into something that is passed on.

    Args:
        file: it need not be there.
        folder: that the user named; it may be a link itself.

    Returns:
        The path to open: without links, so that one exchanged after this check is not followed.

    Raises:
        ImageError: it leads out of the folder, by `..`, as an absolute path or through a link.
    """
    try:
        resolved, inside = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    except ValueError:  # no path has such characters
        raise ImageError(f"{file}: no such file") from None
    if not resolved.is_relative_to(inside):
        raise ImageError(f"{file}: leads out of {folder}; copy the image into this folder to have it shown")
    return resolved
