"""COCO's annotation format: pictures, boxes, masks and crowds of any classes, checked entry by entry."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shown  # the beginning of what may be long
from typing import Any

import numpy as np

from fpg_zoo.data.entries import Entries
from fpg_zoo.data.image_entries import image_folder, name_of
from fpg_zoo.data.report import Report
from fpg_zoo.data.samples import Picture, Sample, read_pixels
from fpg_zoo.data.text_files import read_json
from fpg_zoo.errors import ConfigError

_LEAST_SIDE = 32  # pixels; of pictures that are trained on, as in the published schedule
_PREFIX = "instances_"
_EXPECTED = "an annotation file in COCO's format"


class CocoDataset:
    """The pictures of an annotation file in COCO's format with their objects; a `fpg_zoo.data.samples.Dataset`.

    Attributes:
        annotation_file: as given.
        class_names: in the order of category ids; a label is an index into it.
        category_ids: the file's id of each class, as `Detections.to_coco` takes them.
        object_count, crowd_count: over all pictures.
        report: what was left out or repaired.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        pictures: str | Path | Sequence[str | Path],
        *,
        masks: bool = False,
        training: bool = True,
    ) -> None:
        """Read the file and look whether the pictures are there; their pixels are read when they are asked for.

        Args:
            annotation_file: JSON with `images`, `annotations` and `categories`.
            pictures: the folder that the file names in it start from. Of several, the first that has one of them.
            masks: read masks, too, and leave out objects without one.
            training: leave out pictures under 32 pixels or without an object, as the published schedule does. Crowds
                are no objects.

        Raises:
            ConfigError: the file cannot be read, is not COCO's format, has a class or a class's id twice, or nothing
                in it can be used.
        """
        self.annotation_file = Path(annotation_file)
        content = _content(self.annotation_file)
        self.class_names, self.category_ids = _classes(content["categories"], self.annotation_file)
        places = [Path(place) for place in ([pictures] if isinstance(pictures, (str, Path)) else pictures)]
        self.report = Report()
        names = [name_of(image) for image in content["images"] if isinstance(image, dict)]
        folder = image_folder(places, [name for name in names if name is not None])
        entries = Entries(folder, self.category_ids, self.report, masks=masks)
        entries.add_pictures(content["images"], _LEAST_SIDE if training else 1)
        entries.add_annotations(content["annotations"])
        found = entries.pictures(keep_empty=not training)
        if not found:
            raise ConfigError(
                f"{self.annotation_file}: no picture that can be used, of {len(content['images'])} looked for in "
                f"{', '.join(map(str, places))} ({'; '.join(self.report.lines()) or 'the file lists none'}); "
                "correct the file, or name the folder of its pictures"
            )
        self.object_count = sum(len(picture.objects) for picture in found)
        self.crowd_count = sum(len(picture.crowds) for picture in found)
        self._pictures = _Packed(found)

    @classmethod
    def from_folder(cls, folder: str | Path, split: str, *, masks: bool = False, training: bool = True) -> CocoDataset:
        """A dataset laid out as COCO is: `annotations/instances_SPLIT.json` and pictures.

        Args:
            folder: of the dataset. The pictures are looked for in `SPLIT`, `images/SPLIT`, `images` and the folder
                itself, in this order; the first that has one of them is taken.
            split: as `val2017`.
            masks, training: as of `CocoDataset`.

        Raises:
            ConfigError: no such folder or split, and as of `CocoDataset`.
        """
        root = Path(folder)
        file = root / "annotations" / f"{_PREFIX}{split}.json"
        if not os.path.exists(file):
            found = sorted(path.stem.removeprefix(_PREFIX) for path in file.parent.glob(f"{_PREFIX}*.json"))
            remedy = f"it has {', '.join(found)}" if found else "name a folder with annotations/instances_SPLIT.json"
            raise ConfigError(f"{root}: no split {split!r} in this folder; {remedy}")
        places = [root / split, root / "images" / split, root / "images", root]
        return cls(file, places, masks=masks, training=training)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        """A picture with its pixels.

        Raises:
            ImageError: the picture cannot be read, or is not of the annotated size.
            IndexError: `index` is out of range.
        """
        picture = self.picture(index)
        return Sample(read_pixels(picture.file, picture.size), picture)

    def picture(self, index: int) -> Picture:
        """The annotations of a picture; its pixels are not read.

        Raises:
            IndexError: `index` is out of range.
        """
        return self._pictures[index]

    def summary(self) -> str:
        """What there is, and a line for each kind of entry that was left out or repaired."""
        counted = (
            f"{self.annotation_file}: {len(self)} pictures with {self.object_count} objects and {self.crowd_count} "
            f"crowds of {len(self.class_names)} classes"
        )
        return "\n".join([counted, *(f"  {line}" for line in self.report.lines())])


def _content(file: Path) -> dict[str, list[Any]]:
    content = read_json(file, _EXPECTED)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            hint = " (it is a list, as of detections)" if isinstance(content, list) else ""
            raise ConfigError(f"{file}: no list {part!r} in it{hint}; name {_EXPECTED}")
    parts: dict[str, list[Any]] = content
    return parts


def _classes(categories: list[Any], file: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids, in the order of ids."""
    names: dict[int, str] = {}
    for place, entry in enumerate(categories):
        identity, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(identity, int) or isinstance(identity, bool) or not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{file}: categories[{place}]={shown(entry)}: give it a whole number as id, and a name")
        if identity in names:
            raise ConfigError(f"{file}: category id {identity} is there twice; give each category an id of its own")
        if name in names.values():
            raise ConfigError(f"{file}: category name {shown(name)} is there twice; give each a name of its own")
        names[identity] = name
    if not names:
        raise ConfigError(f"{file}: no categories in it; name a file that says what its objects are")
    ids = tuple(sorted(names))
    return tuple(names[identity] for identity in ids), ids


class _Packed:
    """Pictures in one block of bytes, each unpacked when asked for.

    A million small objects would be copied into every worker, as reading one changes its reference count.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        packed = [pickle.dumps(picture, pickle.HIGHEST_PROTOCOL) for picture in pictures]
        self._ends = np.cumsum([len(piece) for piece in packed])
        self._bytes = b"".join(packed)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Picture:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index}: there are {len(self)}, from 0 on")
        start = self._ends[index - 1] if index else 0
        picture: Picture = pickle.loads(memoryview(self._bytes)[start : self._ends[index]])
        return picture
