"""Folders in Pascal VOC's format made into COCO's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpg_zoo.data.annotation_problems import Report
from fpg_zoo.data.coco_annotations import Box
from fpg_zoo.data.voc_folder import VocFolder, VocImage, class_names_of, coco_images, usable_box
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import atomic_write
from fpg_zoo.text import printable


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
    read = VocFolder(source)
    report = Report()
    annotations = read.read(set().union(*read.splits.values()), lambda problem: report.add(*problem))
    boxes = {
        thing.identity: usable_box(thing, image.size, lambda problem: report.add(*problem))
        for image in annotations.values()
        for thing in image.objects
    }
    names = class_names_of(annotations)
    if not names:
        raise ConfigError(
            f"{source}: no object that can be used ({'; '.join(report.lines()) or 'the annotations hold none'}); "
            "correct its annotations"
        )
    for annotated in annotations.values():
        _keep(annotated.file, target / "images" / annotated.file.name, source)
    contents = {split: _content(annotations, boxes, stems, names) for split, stems in read.splits.items()}
    for split, content in contents.items():
        _write(content, target / "annotations" / f"instances_{split}.json")
    return Conversion(target, tuple(names), {split: _counted(content) for split, content in contents.items()}, report)


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
    images: Mapping[str, VocImage], boxes: Mapping[str, Box | None], stems: Iterable[str], names: Sequence[str]
) -> dict[str, list[Any]]:
    """A split in COCO's format. Ids count through all of the folder, those of objects as those of images."""
    category_ids = {name: identity for identity, name in enumerate(names, start=1)}
    chosen, annotations, before = set(stems), [], 0
    for image_id, (stem, image) in enumerate(images.items(), start=1):
        usable = [(thing, box) for thing in image.objects if (box := boxes[thing.identity])]
        if stem in chosen:
            for identity, (thing, (x1, y1, x2, y2)) in enumerate(usable, start=before + 1):
                annotations.append(
                    {
                        "id": identity,
                        "image_id": image_id,
                        "category_id": category_ids[thing.name],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": int(thing.difficult),
                        "segmentation": [],
                    }
                )
        before += len(usable)
    categories = [{"id": identity, "name": name} for name, identity in category_ids.items()]
    return {"images": coco_images(images, chosen), "annotations": annotations, "categories": categories}


def _counted(content: Mapping[str, Sequence[Any]]) -> Split:
    difficult = sum(annotation["iscrowd"] for annotation in content["annotations"])
    return Split(len(content["images"]), len(content["annotations"]) - difficult, difficult)


def _write(content: Mapping[str, Any], target: Path) -> None:
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
