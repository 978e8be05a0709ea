"""A split of a data set in COCO's terms, as a layout gives it, before anything of it is checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fpg_zoo.data.dataset import ImageInfo
from fpg_zoo.data.text_files import read_json
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import sha256_of

_EXPECTED = "an annotation file in COCO's format"


class Problem(NamedTuple):
    """What a layout could not use, or repaired, as `Report.add` takes it.

    Attributes:
        kind: as a phrase in the singular.
        name: of the image or its annotation file, which tells the side that it falls on where images are held out.
        example: more about it.
    """

    kind: str
    name: str
    example: str | None = None


@dataclass(frozen=True)
class Content:
    """Images, annotations and categories as a file in COCO's format has them.

    Attributes:
        source: the file or folder that they are from, for messages.
        images, annotations, categories: entries; `AnnotationReader` checks them.
        folders: that the images' file names start from. The first that has one of them is taken.
        digest: tells them from any other, in hex; None where it is the SHA-256 of the file `source`.
        problems: what the layout met before.
        pixels: reads an image that is no file of its own, (3, H, W) uint8 RGB, and raises ImageError where it cannot;
            None for files.
    """

    source: Path
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]
    folders: tuple[Path, ...]
    digest: str | None
    problems: tuple[Problem, ...] = ()
    pixels: Callable[[ImageInfo], Tensor] | None = None

    def whole_digest(self) -> str:
        """`digest`, computed where there is none.

        Raises:
            OSError: the file cannot be read any more.
        """
        return self.digest or sha256_of(self.source)


def read_coco(file: Path, folders: tuple[Path, ...] = ()) -> Content:
    """The content of an annotation file in COCO's format, of which no more than the three lists is checked.

    Args:
        file: JSON with `images`, `annotations` and `categories`.
        folders: of its images.

    Raises:
        ConfigError: it cannot be read, or lacks one of the lists.
    """
    parts = read_json(file, _EXPECTED)
    for part in ("images", "annotations", "categories"):
        if not isinstance(parts, dict) or not isinstance(parts.get(part), list):
            hint = " (it is a list, as of detections)" if isinstance(parts, list) else ""
            raise ConfigError(f"{file}: no list {part!r} in it{hint}; name {_EXPECTED}")
    return Content(file, parts["images"], parts["annotations"], parts["categories"], folders, None)


def digest_of(images: list[Any], annotations: list[Any], categories: list[Any]) -> str:
    """SHA-256, in hex, of entries that no file holds in this form."""
    digest = hashlib.sha256()
    for entry in (*categories, *images, *annotations):
        digest.update(json.dumps(entry, sort_keys=True, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()
