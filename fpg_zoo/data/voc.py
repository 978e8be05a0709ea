"""Folders in Pascal VOC's format made into COCO's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from PIL import Image
from tqdm import tqdm

from fpg_zoo.data import report as kinds
from fpg_zoo.data.entries import read_box
from fpg_zoo.data.report import Report
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import aside, explained, on_terminal
from fpg_zoo.images import SUFFIXES
from fpg_zoo.text import printable

_SPLITS = ("train", "val", "trainval", "test")
_WHOLE = "all"  # the split where a folder has no lists
_ORIENTATION = 0x0112  # EXIF; from 5 on, height and width are stored exchanged
_FIRST_SIDEWAYS = 5

DOCTYPE = "annotation file with a document type, which can make it endless"
FILE_MALFORMED = "annotation file that is not VOC's XML"
FILE_MISSING = "listed picture without an annotation file"
NAME_MISSING = "object without a name"
PICTURE_UNREADABLE = "picture that cannot be read"
SIZE_WRONG = "picture of another size than its annotation says (the picture's taken)"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Split:
    """How many pictures, objects and difficult objects a split has."""

    pictures: int
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
        lines = [f"{self.output}: {len(self.class_names)} classes, {', '.join(map(printable, self.class_names))}"]
        for name, split in self.splits.items():
            lines.append(
                f"  {name}: {split.pictures} pictures with {split.objects} objects and {split.difficult} difficult ones"
            )
        return "\n".join([*lines, *(f"  {line}" for line in self.report.lines())])


@dataclass(frozen=True)
class _Object:
    name: str
    box: Box  # xyxy in pixels of the picture
    difficult: bool


@dataclass(frozen=True)
class _Annotated:
    file: Path
    size: tuple[int, int]  # height, width
    objects: tuple[_Object, ...]


def convert_voc(folder: str | Path, output: str | Path) -> Conversion:
    """Write a folder that `CocoDataset.from_folder` reads.

    VOC numbers pixels from 1 and counts the last one in, so a box from xmin to xmax covers x from xmin - 1 to xmax; one
    whose corners are the same pixel is a click without a drag, and of no size. Objects marked difficult become crowds,
    which are neither trained on nor missed in evaluation. Classes are sorted by name and the same in every split.

    Args:
        folder: with `Annotations/*.xml`, `JPEGImages` and lists of names in `ImageSets/Main/SPLIT.txt`, of which
            train, val, trainval and test are read; without any of those, everything becomes the split `all`.
        output: another folder, made if need be. It gets `annotations/instances_SPLIT.json` and `images`, whose
            pictures are hard links to the given ones, or copies where the file system has no links between the two.
            Either way they stay when the given folder goes.

    Returns:
        What there is now, and what was left out.

    Raises:
        ConfigError: no such folder, `output` is the same, or nothing in it can be used.
        StorageError: `output` cannot be written.
    """
    source, target = Path(folder), Path(output)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: the folder to convert; name another for what is written")
    annotations, pictures = _files(source / "Annotations", (".xml",)), _files(source / "JPEGImages", SUFFIXES)
    splits = _splits(source, annotations)
    report, found = Report(), {}
    for stem in tqdm(sorted(set().union(*splits.values())), unit="picture", disable=not on_terminal(), leave=False):
        annotated = _annotated(stem, annotations.get(stem), pictures.get(stem), report)
        if annotated:
            found[stem] = annotated
    names = sorted({entry.name for annotated in found.values() for entry in annotated.objects})
    if not names:
        raise ConfigError(
            f"{source}: no object that can be used ({'; '.join(report.lines()) or 'the annotations hold none'}); "
            "correct its annotations"
        )
    for annotated in found.values():
        _keep(annotated.file, target / "images" / annotated.file.name)
    contents = {split: _content(found, stems, names) for split, stems in splits.items()}
    for split, content in contents.items():
        _write(content, target / "annotations" / f"instances_{split}.json")
    return Conversion(target, tuple(names), {split: _counted(content) for split, content in contents.items()}, report)


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by name without ending. Names from lists and XML are only looked up here, never opened."""
    try:
        found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes}
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be read ({error.strerror or error}); name a folder with Annotations and JPEGImages"
        ) from None
    if not found:
        raise ConfigError(f"{folder}: no files ending in {', '.join(suffixes)}; name a folder in Pascal VOC's format")
    return found


def _splits(folder: Path, annotations: Iterable[str]) -> dict[str, list[str]]:
    found = {}
    for split in _SPLITS:
        file = folder / "ImageSets" / "Main" / f"{split}.txt"
        if os.path.isfile(file):
            try:
                lines = file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{file}: cannot be read ({error}); write a name per line, in UTF-8") from None
            found[split] = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    return found or {_WHOLE: list(annotations)}


def _annotated(stem: str, annotation: Path | None, picture: Path | None, report: Report) -> _Annotated | None:
    """What a picture's annotation says; None where it cannot be used, which the report then says."""
    if annotation is None or picture is None:
        report.add(FILE_MISSING if annotation is None else kinds.PICTURE_MISSING, stem)
        return None
    try:
        root = _tree(annotation.read_bytes())
    except _DoctypeError:
        report.add(DOCTYPE, stem)
        return None
    except (OSError, ValueError, LookupError, expat.ExpatError):
        report.add(FILE_MALFORMED, stem)
        return None
    sizes = _sizes(picture)
    if root.tag != "annotation" or not sizes:
        report.add(PICTURE_UNREADABLE if root.tag == "annotation" else FILE_MALFORMED, stem)
        return None
    size = (_number(root, "size/height"), _number(root, "size/width"))
    if size not in sizes:
        report.add(SIZE_WRONG, stem)
    taken = sizes[-1] if size == sizes[-1] else sizes[0]
    objects = [
        _object(entry, taken, f"{stem}/object[{place}]", report) for place, entry in enumerate(root.findall("object"))
    ]
    return _Annotated(picture, taken, tuple(entry for entry in objects if entry))


def _sizes(picture: Path) -> list[tuple[int, int]]:
    """(height, width) upright, and as stored where that differs: either may have been annotated. None if unreadable."""
    try:
        with Image.open(picture) as image:
            stored, orientation = (image.height, image.width), image.getexif().get(_ORIENTATION)
    except Exception:  # damaged files make Pillow raise nearly anything
        return []
    sideways = isinstance(orientation, int) and orientation >= _FIRST_SIDEWAYS
    return [stored[::-1], stored] if sideways else [stored]


def _object(entry: Element, size: tuple[int, int], identity: str, report: Report) -> _Object | None:
    name = (entry.findtext("name") or "").strip()
    if not name:
        report.add(NAME_MISSING, identity)
        return None
    left, top, right, bottom = (_number(entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    if left is None or top is None or right is None or bottom is None:
        report.add(kinds.BOX_MALFORMED, identity)
        return None
    if right <= left or bottom <= top:
        report.add(kinds.BOX_NO_SIZE, identity)
        return None
    inclusive = [left - 1, top - 1, right - left + 1, bottom - top + 1]
    box = read_box(inclusive, size, lambda kind: report.add(kind, identity))
    return _Object(name, box, (entry.findtext("difficult") or "").strip() == "1") if box else None


def _number(entry: Element, path: str) -> float | None:
    try:
        return float(entry.findtext(path) or "")
    except ValueError:
        return None


class _DoctypeError(Exception):
    """An XML file declares a document type, whose entities may stand for each other without end."""


def _tree(content: bytes) -> Element:
    def refuse(*_: object) -> None:
        raise _DoctypeError

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def _keep(source: Path, target: Path) -> None:
    """A hard link or copy at `target`, in place of what is there."""
    with aside(target.parent, target.suffix) as temporary, explained(target.parent):
        temporary.unlink()
        try:
            os.link(source.resolve(), temporary)
        except OSError:  # another file system, one without links, or somebody else's file
            shutil.copyfile(source, temporary)
        temporary.replace(target)


def _content(found: Mapping[str, _Annotated], stems: Iterable[str], names: Sequence[str]) -> dict[str, list[Any]]:
    """A split in COCO's format. Ids count through all of the folder, so that a picture has the same in every split."""
    category_ids = {name: identity for identity, name in enumerate(names, start=1)}
    wanted, images, annotations, before = set(stems), [], [], 0
    for image_id, (stem, annotated) in enumerate(found.items(), start=1):
        if stem in wanted:
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
    with aside(target.parent, target.suffix) as temporary, explained(target.parent):
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        temporary.replace(target)
