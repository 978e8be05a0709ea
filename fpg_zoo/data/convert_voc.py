"""Folders in Pascal VOC's format made into COCO's."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element
from xml.parsers import expat

from tqdm import tqdm

from fpg_zoo.data import annotation_problems as problems
from fpg_zoo.data.annotation_problems import Report
from fpg_zoo.data.coco_annotations import read_box
from fpg_zoo.data.coco_images import image_sizes
from fpg_zoo.data.text_files import decode_text
from fpg_zoo.data.xml_files import MAX_XML_BYTES, DocumentTypeError, EncodingError, decode_xml, parse_xml
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import atomic_write, on_terminal, read_regular
from fpg_zoo.structures.images import image_suffixes
from fpg_zoo.text import printable

_SPLITS = ("train", "val", "trainval", "test")
_WHOLE = "all"  # the split where a folder has no lists

_FLAGS = ("1", "-1", "0")  # in VOC's lists of one class: shown, not shown, difficult
_MAX_LIST_BYTES = 256 << 20
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_OF_AN_OBJECT = ("object/name", "object/difficult", "object/bndbox", *(f"object/bndbox/{side}" for side in _SIDES))
_PATHS = frozenset(("filename", "size", "size/width", "size/height", "object", *_OF_AN_OBJECT))

DOCTYPE = "annotation file with a document type, which can make it endless"
ENCODING_WRONG = "annotation file in an unknown encoding, or not in the one it declares (UTF-8 if none)"
FILE_MALFORMED = "annotation file that is not VOC's XML"
FILE_MISSING = "listed image without an annotation file"
FILE_TWICE = "two annotation files of one name"
FILE_UNREADABLE = "annotation file that cannot be read"
IMAGE_CHOSEN = "image with others of its name and other endings beside it (the one that the annotation names is taken)"
IMAGE_TWICE = "several images of one name, of which the annotation names none"
NAME_MISSING = "object without a name"
SIZE_WRONG = "image of another size than its annotation says (the image's taken)"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Split:
    """How many images, objects and difficult objects a split has."""

    image_count: int
    objects: int
    difficult: int


@dataclass(frozen=True)
class Conversion:
    """What came of a conversion.

    Attributes:
        output: the folder that was written.
        class_names: in the order of category ids, which begin at 1.
        splits: by name.
        report: what was left out or repaired; ids are file names without ending, `NAME/object[3]` for an object.
    """

    output: Path
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    report: Report

    def summary(self) -> str:
        """A line on the whole, one per split, and one for each kind of entry that was left out or repaired."""
        names = ", ".join(map(printable, self.class_names))
        lines = [f"{self.output}: {len(self.class_names)} classes, {names}"]
        for name, split in self.splits.items():
            lines.append(
                f"  {name}: {split.image_count} images with {split.objects} objects and "
                f"{split.difficult} difficult ones"
            )
        return "\n".join([*lines, *(f"  {line}" for line in self.report.lines())])


@dataclass(frozen=True)
class _Object:
    name: str
    box: Box  # xyxy in pixels of the image
    difficult: bool


@dataclass(frozen=True)
class _Annotated:
    file: Path
    size: tuple[int, int]  # height, width
    objects: tuple[_Object, ...]


def convert_voc(folder: str | Path, output: str | Path) -> Conversion:
    """Write a folder that `CocoDataset.from_folder` reads.

    VOC numbers pixels from 1 and counts the last one in, so a box covers x from xmin - 1 to xmax. A box whose corners
    are the same pixel is a click without a drag, and has no size. Objects marked difficult become crowds, which are
    neither trained on nor missed in evaluation. Classes are sorted by name and the same in every split.

    Args:
        folder: with `Annotations/*.xml`, `JPEGImages` and lists of names in `ImageSets/Main/SPLIT.txt`, of which
            train, val, trainval and test are read; without any of those, everything becomes the split `all`.
        output: another folder, made if need be. It gets `annotations/instances_SPLIT.json` and `images`, whose
            images are hard links to the given ones, or copies where the file system has no links between the two.
            Either way they stay when the given folder goes. An image that is a link out of the given folder becomes a
            link, too.

    Returns:
        What there is now, and what was left out.

    Raises:
        ConfigError: no such folder, `output` is the same, or nothing in it can be used.
        StorageError: `output` cannot be written.
    """
    source, target = Path(folder), Path(output)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: the folder to convert; name another for what is written")
    annotation_files, images = (
        _files(source / "Annotations", (".xml",)),
        _files(source / "JPEGImages", image_suffixes()),
    )
    splits = _splits(source, annotation_files, images)
    report, annotations = Report(), {}
    for stem in tqdm(sorted(set().union(*splits.values())), unit="image", disable=not on_terminal(), leave=False):
        annotated = _annotated(stem, annotation_files.get(stem, []), images.get(stem, []), report)
        if annotated:
            annotations[stem] = annotated
    names = sorted({entry.name for annotated in annotations.values() for entry in annotated.objects})
    if not names:
        raise ConfigError(
            f"{source}: no object that can be used ({'; '.join(report.lines()) or 'the annotations hold none'}); "
            "correct its annotations"
        )
    for annotated in annotations.values():
        _keep(annotated.file, target / "images" / annotated.file.name, source)
    contents = {split: _content(annotations, stems, names) for split, stems in splits.items()}
    for split, content in contents.items():
        _write(content, target / "annotations" / f"instances_{split}.json")
    return Conversion(target, tuple(names), {split: _counted(content) for split, content in contents.items()}, report)


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
    return splits or {_WHOLE: list(annotations)}


def _listed(line: str, known: Collection[str]) -> str:
    """The name in a line. VOC's lists of one class say in a second column whether the image shows it."""
    name = _key(line.strip())
    if name not in known and name.endswith(_FLAGS):
        first, *flag = name.rsplit(maxsplit=1)
        if flag and flag[0] in _FLAGS and first in known:
            return first
    return name


def _annotated(stem: str, annotations: Sequence[Path], images: Sequence[Path], report: Report) -> _Annotated | None:
    """What an image's annotation says; None where it cannot be used, which the report then says."""
    if not annotations or not images:
        report.add(problems.IMAGE_MISSING if annotations else FILE_MISSING, stem)
        return None
    if len(annotations) > 1:
        report.add(FILE_TWICE, stem)
        return None
    try:
        root = parse_xml(decode_xml(read_regular(annotations[0], max_bytes=MAX_XML_BYTES)), _PATHS)
    except (DocumentTypeError, EncodingError) as error:
        report.add(DOCTYPE if isinstance(error, DocumentTypeError) else ENCODING_WRONG, stem)
        return None
    except (OSError, MemoryError) as error:
        report.add(FILE_UNREADABLE, stem, getattr(error, "strerror", None) or "not enough memory")
        return None
    except (ValueError, expat.ExpatError):
        report.add(FILE_MALFORMED, stem)
        return None
    image = images[0] if len(images) == 1 else _named(images, root.findtext("filename") or "")
    if root.tag != "annotation" or image is None:
        report.add(FILE_MALFORMED if root.tag != "annotation" else IMAGE_TWICE, stem)
        return None
    sizes = image_sizes(image, verify=True)
    if not sizes:
        report.add(problems.IMAGE_UNREADABLE, stem)
        return None
    if len(images) > 1:
        report.add(IMAGE_CHOSEN, stem)
    size = (_number(root, "size/height"), _number(root, "size/width"))
    if size not in sizes:
        report.add(SIZE_WRONG, stem)
    taken = sizes[-1] if size == sizes[-1] else sizes[0]
    objects = [
        _object(entry, taken, f"{stem}/object[{place}]", report) for place, entry in enumerate(root.findall("object"))
    ]
    return _Annotated(image, taken, tuple(entry for entry in objects if entry))


def _named(images: Sequence[Path], name: str) -> Path | None:
    """The one of several images that an annotation names, whatever folder it was in; None if it names none."""
    base = _key(name.strip().replace("\\", "/").rpartition("/")[2])
    return next((image for image in images if _key(image.name) == base), None)


def _object(entry: Element, size: tuple[int, int], identity: str, report: Report) -> _Object | None:
    name = (entry.findtext("name") or "").strip()
    if not name:
        report.add(NAME_MISSING, identity)
        return None
    left, top, right, bottom = (_number(entry, f"bndbox/{side}") for side in _SIDES)
    if left is None or top is None or right is None or bottom is None:
        report.add(problems.BOX_MALFORMED, identity)
        return None
    if right <= left or bottom <= top:
        report.add(problems.BOX_NO_SIZE, identity)
        return None
    inclusive = [left - 1, top - 1, right - left + 1, bottom - top + 1]
    box = read_box(inclusive, size, lambda kind: report.add(kind, identity))
    return _Object(name, box, (entry.findtext("difficult") or "").strip() == "1") if box else None


def _number(entry: Element, path: str) -> float | None:
    try:
        return float(entry.findtext(path) or "")
    except ValueError:
        return None


def _keep(image: Path, target: Path, source: Path) -> None:
    """A hard link or copy at `target`, in place of what is there; a link to an image outside of `source`.

    A hard link or copy of that would look like a part of the folder, and could be passed on in a report.
    """
    resolved = Path(os.path.realpath(image))
    if str(resolved) == os.path.realpath(target):
        return  # `source` has a link to what an earlier conversion made
    with atomic_write(target) as temporary:
        temporary.unlink()
        if not resolved.is_relative_to(os.path.realpath(source)):
            temporary.symlink_to(resolved)
        else:
            try:
                os.link(resolved, temporary)
            except OSError:  # another file system, one without links, or somebody else's file
                shutil.copyfile(resolved, temporary)


def _content(
    annotated_by_stem: Mapping[str, _Annotated], stems: Iterable[str], names: Sequence[str]
) -> dict[str, list[Any]]:
    """A split in COCO's format. Ids count through all of the folder, so that an image has the same in every split."""
    category_ids = {name: identity for identity, name in enumerate(names, start=1)}
    chosen, images, annotations, before = set(stems), [], [], 0
    for image_id, (stem, annotated) in enumerate(annotated_by_stem.items(), start=1):
        if stem in chosen:
            height, width = annotated.size
            images.append({"id": image_id, "file_name": annotated.file.name, "height": height, "width": width})
            for identity, entry in enumerate(annotated.objects, start=before + 1):
                x1, y1, x2, y2 = entry.box
                annotations.append(
                    {
                        "id": identity,
                        "image_id": image_id,
                        "category_id": category_ids[entry.name],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": int(entry.difficult),
                        "segmentation": [],
                    }
                )
        before += len(annotated.objects)
    categories = [{"id": identity, "name": name} for name, identity in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _counted(content: Mapping[str, Sequence[Any]]) -> Split:
    difficult = sum(annotation["iscrowd"] for annotation in content["annotations"])
    return Split(len(content["images"]), len(content["annotations"]) - difficult, difficult)


def _write(content: Mapping[str, Any], target: Path) -> None:
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
