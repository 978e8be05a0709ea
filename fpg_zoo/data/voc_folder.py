"""Folders in Pascal VOC's format: their splits, and what the annotation file of each image says."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element
from xml.parsers import expat

from fpg_zoo.data import annotation_problems as problems
from fpg_zoo.data.coco_annotations import Box, read_box
from fpg_zoo.data.coco_images import image_sizes
from fpg_zoo.data.content import Content, Problem, digest_of
from fpg_zoo.data.split_names import WHOLE
from fpg_zoo.data.text_files import decode_text
from fpg_zoo.data.xml_files import MAX_XML_BYTES, DocumentTypeError, EncodingError, decode_xml, parse_xml
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import on_terminal, read_regular
from fpg_zoo.progress import tqdm
from fpg_zoo.structures.images import image_suffixes

_SPLITS = ("train", "val", "trainval", "test")

_FLAGS = ("1", "-1", "0")  # in VOC's lists of one class: shown, not shown, difficult
_MAX_LIST_BYTES = 256 << 20
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_OF_AN_OBJECT = ("object/name", "object/difficult", "object/bndbox", *(f"object/bndbox/{side}" for side in _SIDES))
_PATHS = frozenset(("filename", "size", "size/width", "size/height", "object", *_OF_AN_OBJECT))

FILE_MISSING = "listed image without an annotation file"
IMAGE_CHOSEN = "image with others of its name and other endings beside it (the one that the annotation names is taken)"
IMAGE_TWICE = "several images of one name, of which the annotation names none"
NAME_MISSING = "object without a name"
SIZE_WRONG = "image of another size than its annotation says (the image's taken)"

Complain = Callable[[Problem], None]


@dataclass(frozen=True)
class VocObject:
    """An object as its annotation file has it, of which nothing is checked.

    Attributes:
        identity: `NAME/object[3]`.
        name: of its class; empty where it has none.
        bbox: [x, y, width, height] in pixels from 0 on; None without four numbers.
        difficult: whether it is marked so.
    """

    identity: str
    name: str
    bbox: list[float] | None
    difficult: bool


@dataclass(frozen=True)
class VocImage:
    """An image that is there, and of (height, width) pixels, with its objects."""

    file: Path
    size: tuple[int, int]
    objects: tuple[VocObject, ...]


class VocFolder:
    """The files of a folder, found but not read.

    Attributes:
        folder: as given.
        splits: names of images without ending, by split.
    """

    def __init__(self, folder: Path) -> None:
        """Look what there is.

        Args:
            folder: with `Annotations/*.xml`, `JPEGImages` and lists of names in `ImageSets/Main/SPLIT.txt`, of which
                train, val, trainval and test are read; without any of those, everything is the split `WHOLE`.

        Raises:
            ConfigError: it lacks annotations or images, or a list cannot be read.
        """
        self.folder = folder
        self._annotations = _files(folder / "Annotations", (".xml",))
        self._images = _files(folder / "JPEGImages", image_suffixes())
        self.splits = _splits(folder, self._annotations, self._images)

    def read(self, stems: Iterable[str], complain: Complain) -> dict[str, VocImage]:
        """The annotations of images, sorted by name.

        Args:
            stems: names without ending.
            complain: is told what cannot be used, and is left out, or is repaired.
        """
        images = {}
        for stem in tqdm(sorted(stems), unit="image", disable=not on_terminal(), leave=False):
            image = _read(stem, self._annotations.get(stem, []), self._images.get(stem, []), complain)
            if image:
                images[stem] = image
        return images


def usable_box(thing: VocObject, size: tuple[int, int], complain: Complain) -> Box | None:
    """An object's box, xyxy in pixels and within an image of (height, width) `size`; None if it cannot be used."""
    if not thing.name:
        complain(Problem(NAME_MISSING, thing.identity))
        return None
    return read_box(thing.bbox, size, lambda kind: complain(Problem(kind, thing.identity)))


def class_names_of(images: Mapping[str, VocImage]) -> list[str]:
    """The classes of objects that can be used, sorted."""
    return sorted(
        {thing.name for image in images.values() for thing in image.objects if usable_box(thing, image.size, _ignore)}
    )


def coco_images(images: Mapping[str, VocImage], stems: Iterable[str]) -> list[dict[str, Any]]:
    """Entries of a split's images in COCO's format.

    Args:
        images: of the whole folder, in which ids count, so that an image has the same in every split.
        stems: of the split.
    """
    chosen = set(stems)
    return [
        {"id": number, "file_name": image.file.name, "height": image.size[0], "width": image.size[1]}
        for number, (stem, image) in enumerate(images.items(), start=1)
        if stem in chosen
    ]


def read_voc(folder: VocFolder, split: str) -> Content:
    """A split in COCO's terms, with boxes as the folder has them.

    Objects marked difficult become crowds. Classes are sorted by name and the same in every split.

    Args:
        folder: to read.
        split: of `folder.splits`.
    """
    stems = folder.splits[split]
    found: list[Problem] = []
    others = set().union(*folder.splits.values()) - set(stems)
    images = folder.read(stems, found.append)
    whole = dict(sorted((images | folder.read(others, _ignore)).items()))
    names = class_names_of(whole)
    category_ids = {name: identity for identity, name in enumerate(names, start=1)}
    entries = coco_images(whole, images)
    annotations = [
        {
            "id": thing.identity,
            "image_id": entry["id"],
            "category_id": category_ids.get(thing.name),
            "bbox": thing.bbox,
            "iscrowd": int(thing.difficult),
        }
        for entry, image in zip(entries, images.values(), strict=True)
        for thing in image.objects
    ]
    categories = [{"id": identity, "name": name} for name, identity in category_ids.items()]
    return Content(
        source=folder.folder,
        images=entries,
        annotations=annotations,
        categories=categories,
        folders=(folder.folder / "JPEGImages",),
        digest=digest_of(entries, annotations, categories),
        problems=tuple(found),
    )


def _ignore(_: Problem) -> None:
    """Of what is reported elsewhere."""


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """The files of a folder by name without ending, as `_key` has it. Names from lists and XML are only looked up here.

    What macOS puts beside files of other systems (`._NAME`) is none of them.
    """
    by_stem: dict[str, list[Path]] = {}
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in suffixes and not path.name.startswith("._"):
                by_stem.setdefault(_key(path.stem), []).append(path)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be read ({error.strerror or error}); name a folder with Annotations and JPEGImages"
        ) from None
    if not by_stem:
        raise ConfigError(f"{folder}: no files ending in {', '.join(suffixes)}; name a folder in Pascal VOC's format")
    return by_stem


def _key(name: str) -> str:
    """One spelling of accents: macOS writes a letter and its accent as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def _splits(folder: Path, annotations: Iterable[str], images: Iterable[str]) -> dict[str, list[str]]:
    splits, known = {}, {*annotations, *images}
    for split in _SPLITS:
        file = folder / "ImageSets" / "Main" / f"{split}.txt"
        if os.path.exists(file):
            try:
                lines = decode_text(read_regular(file, max_bytes=_MAX_LIST_BYTES)).splitlines()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ConfigError(f"{file}: cannot be read ({reason}); write a name per line, in UTF-8") from None
            splits[split] = list(dict.fromkeys(_listed(line, known) for line in lines if line.strip()))
    return splits or {WHOLE: list(annotations)}


def _listed(line: str, known: Collection[str]) -> str:
    """The name in a line. VOC's lists of one class say in a second column whether the image shows it."""
    name = _key(line.strip())
    if name not in known and name.endswith(_FLAGS):
        first, *flag = name.rsplit(maxsplit=1)
        if flag and flag[0] in _FLAGS and first in known:
            return first
    return name


def _read(stem: str, annotations: Sequence[Path], images: Sequence[Path], complain: Complain) -> VocImage | None:
    """What an image's annotation says; None where it cannot be used."""
    if not annotations or not images:
        complain(Problem(problems.IMAGE_MISSING if annotations else FILE_MISSING, stem))
        return None
    if len(annotations) > 1:
        complain(Problem(problems.FILE_TWICE, stem))
        return None
    try:
        root = parse_xml(decode_xml(read_regular(annotations[0], max_bytes=MAX_XML_BYTES)), _PATHS)
    except (DocumentTypeError, EncodingError) as error:
        complain(Problem(problems.DOCTYPE if isinstance(error, DocumentTypeError) else problems.ENCODING_WRONG, stem))
        return None
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "not enough memory"
        complain(Problem(problems.FILE_UNREADABLE, stem, reason))
        return None
    except (ValueError, expat.ExpatError):
        complain(Problem(problems.FILE_MALFORMED, stem))
        return None
    image = images[0] if len(images) == 1 else _named(images, root.findtext("filename") or "")
    if root.tag != "annotation" or image is None:
        complain(Problem(problems.FILE_MALFORMED if root.tag != "annotation" else IMAGE_TWICE, stem))
        return None
    sizes = image_sizes(image, verify=True)
    if not sizes:
        complain(Problem(problems.IMAGE_UNREADABLE, stem))
        return None
    if len(images) > 1:
        complain(Problem(IMAGE_CHOSEN, stem))
    size = (_number(root, "size/height"), _number(root, "size/width"))
    if size not in sizes:
        complain(Problem(SIZE_WRONG, stem))
    taken = sizes[-1] if size == sizes[-1] else sizes[0]
    objects = (_object(entry, f"{stem}/object[{place}]") for place, entry in enumerate(root.findall("object")))
    return VocImage(image, taken, tuple(objects))


def _named(images: Sequence[Path], name: str) -> Path | None:
    """The one of several images that an annotation names, whatever folder it was in; None if it names none."""
    base = _key(name.strip().replace("\\", "/").rpartition("/")[2])
    return next((image for image in images if _key(image.name) == base), None)


def _object(entry: Element, identity: str) -> VocObject:
    name, bbox = (entry.findtext("name") or "").strip(), None
    left, top, right, bottom = (_number(entry, f"bndbox/{side}") for side in _SIDES)
    if left is not None and top is not None and right is not None and bottom is not None:
        # Numbered from 1 with the last pixel in. Of equal corners, a click without a drag, no pixel is.
        no_size = right <= left or bottom <= top
        bbox = [left - 1, top - 1, 0.0, 0.0] if no_size else [left - 1, top - 1, right - left + 1, bottom - top + 1]
    return VocObject(identity, name, bbox, (entry.findtext("difficult") or "").strip() == "1")


def _number(entry: Element, path: str) -> float | None:
    try:
        return float(entry.findtext(path) or "")
    except ValueError:
        return None
