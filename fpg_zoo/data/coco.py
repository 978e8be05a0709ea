"""COCO's annotation format: images, boxes, masks and crowds of any classes, checked entry by entry."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as abbreviated  # the beginning of what may be long
from typing import Any, NamedTuple

import numpy as np

from fpg_zoo.data.annotation_problems import CATEGORY_ROOT, CATEGORY_TEXT, Report
from fpg_zoo.data.coco_annotations import AnnotationReader, plain_ids, read_category_id
from fpg_zoo.data.coco_images import image_folder, name_of
from fpg_zoo.data.content import Content, read_coco
from fpg_zoo.data.dataset import ImageInfo, Sample, read_pixels
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import sha256_of

_LEAST_SIDE = 32  # pixels; of images that are trained on, as in the published schedule
_PREFIX = "instances_"


class CocoDataset:
    """The images of an annotation file in COCO's format with their objects; a `fpg_zoo.data.dataset.Dataset`.

    Other layouts come in by `from_content`, and are read in the same way.

    Attributes:
        annotation_file: as given; of other layouts, the file or folder that the annotations are from.
        class_names: in the order of category ids; a label is an index into it.
        category_ids: the file's id of each class, as `Detections.to_coco` takes them.
        object_count, crowd_count, mask_count: over all images; objects, crowds, and objects that have a mask.
        report: what was left out or repaired.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_folders: str | Path | Sequence[str | Path],
        *,
        masks: bool = False,
        training: bool = True,
        keep_background: bool = False,
        allow_losses: bool = False,
    ) -> None:
        """Read the file and look whether the images are there; their pixels are read when they are asked for.

        Args:
            annotation_file: JSON with `raw_images`, `annotations` and `categories`.
            image_folders: the folder that the file names in it start from. Of several, the first that has one of them.
            masks: read masks, too. An object without one is kept.
            training: leave out images under 32 pixels or without an object, as the published schedule does. Crowds
                are no objects.
            keep_background: in training, keep images without an object. One of which an annotation could not be used
                is left out all the same, as it may show an object.
            allow_losses: go on where more than one annotation in ten cannot be used.

        Raises:
            ConfigError: the file cannot be read or is not in COCO's format. A class or its id is there twice. More than
                one annotation in ten cannot be used, or none can. There is no mask to train on where masks are asked
                for.
        """
        places = [image_folders] if isinstance(image_folders, (str, Path)) else image_folders
        content = read_coco(Path(annotation_file), tuple(map(Path, places)))
        self._read(content, masks, training, keep_background, allow_losses)

    @classmethod
    def from_content(
        cls,
        content: Content,
        *,
        masks: bool = False,
        training: bool = True,
        keep_background: bool = False,
        allow_losses: bool = False,
    ) -> CocoDataset:
        """What a layout gave in COCO's terms, read and checked as an annotation file is.

        Args:
            content: images, annotations and categories.
            masks, training, keep_background, allow_losses: as of `CocoDataset`.

        Raises:
            ConfigError: as of `CocoDataset`.
        """
        dataset = cls.__new__(cls)
        dataset._read(content, masks, training, keep_background, allow_losses)
        return dataset

    def _read(self, content: Content, masks: bool, training: bool, keep_background: bool, allow_losses: bool) -> None:
        self.annotation_file = content.source
        self._digest, self._pixels = content.digest, content.pixels
        self._with_background = training and keep_background
        self.report = Report()
        for problem in content.problems:
            self.report.add(*problem)
        self.class_names, self.category_ids = read_classes(content, self.report)
        places, raw_images = content.folders, plain_ids(content.images)
        names = [name_of(image) for image in raw_images if isinstance(image, dict)]
        folder = image_folder(places, [name for name in names if name is not None])
        reader = AnnotationReader(folder, self.category_ids, self.report, masks=masks)
        reader.add_images(raw_images, _LEAST_SIDE if training else 1, in_files=content.pixels is None)
        reader.add_annotations(content.annotations)
        images = reader.images(keep_empty=not training or keep_background, keep_lost=not training)
        if not images or (training and not any(len(info.objects) for info in images)):
            crowds = reader.only_crowds()
            causes = [*([f"all {crowds} objects are crowds"] if crowds else []), *self.report.lines()]
            raise ConfigError(
                f"{self.annotation_file}: no image that can be used, of {len(raw_images)} looked for in "
                f"{', '.join(map(str, places))} ({'; '.join(causes) or 'the file lists none'}); "
                "correct the file, or name the folder of its images"
            )
        self.object_count = sum(len(info.objects) for info in images)
        self.crowd_count = sum(len(info.crowds) for info in images)
        self.mask_count = sum(mask is not None for info in images for mask in info.objects.masks or ())
        if self.object_count and not allow_losses:
            reader.check_losses(self.annotation_file)
        if masks and training and not self.mask_count:
            raise ConfigError(
                f"{self.annotation_file}: no mask to train on, as none of its {self.object_count} objects has polygons "
                "or RLE that can be used; train a model without masks, or add them"
            )
        self._images = _Packed(images)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        split: str,
        *,
        masks: bool = False,
        training: bool = True,
        keep_background: bool = False,
        allow_losses: bool = False,
    ) -> CocoDataset:
        """A dataset laid out as COCO is: `annotations/instances_SPLIT.json` and images.

        Args:
            folder: of the dataset. The images are looked for in `SPLIT`, `images/SPLIT`, `raw_images` and the folder
                itself, in this order; the first that has one of them is taken.
            split: as `val2017`.
            masks, training, keep_background, allow_losses: as of `CocoDataset`.

        Raises:
            ConfigError: no such folder or split, and as of `CocoDataset`.
        """
        root = Path(folder)
        file = root / "annotations" / f"{_PREFIX}{split}.json"
        if not os.path.exists(file):
            splits = sorted(path.stem.removeprefix(_PREFIX) for path in file.parent.glob(f"{_PREFIX}*.json"))
            remedy = f"it has {', '.join(splits)}" if splits else "name a folder with annotations/instances_SPLIT.json"
            raise ConfigError(f"{root}: no split {split!r} in this folder; {remedy}")
        return cls(
            file,
            image_places(root, split),
            masks=masks,
            training=training,
            keep_background=keep_background,
            allow_losses=allow_losses,
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """An image with its pixels.

        Raises:
            ImageError: the image cannot be read, or is not of the annotated size.
            IndexError: `index` is out of range.
        """
        info = self.image_info(index)
        return Sample(read_pixels(info.file, info.size) if self._pixels is None else self._pixels(info), info)

    def image_info(self, index: int) -> ImageInfo:
        """The annotations of an image; its pixels are not read.

        Raises:
            IndexError: `index` is out of range.
        """
        return self._images[index]

    @property
    def digest(self) -> str:
        """What tells the data from any other, in hex: the annotation file's SHA-256, or that of what was read.

        Raises:
            OSError: the file cannot be read any more.
        """
        digest = self._digest or sha256_of(self.annotation_file)
        return hashlib.sha256(f"{digest} with background".encode()).hexdigest() if self._with_background else digest

    def summary(self) -> str:
        """What there is, and a line for each kind of entry that was left out or repaired."""
        counted = (
            f"{self.annotation_file}: {len(self)} images with {self.object_count} objects and {self.crowd_count} "
            f"crowds of {len(self.class_names)} classes"
        )
        return "\n".join([counted, *(f"  {line}" for line in self.report.lines())])


def image_places(root: Path, split: str) -> tuple[Path, ...]:
    """The folders that may hold a split's images, of a data set laid out as COCO is."""
    return root / split, root / "images" / split, root / "images", root


def read_annotations(file: Path, report: Report) -> tuple[dict[str, list[Any]], tuple[str, ...], tuple[int, ...]]:
    """The content of an annotation file, of which no more than the classes is checked, and these.

    Args:
        file: JSON with `images`, `annotations` and `categories`.
        report: is told what is left out or repaired of the categories.

    Returns:
        The content, and names and ids of the classes in the order of ids.

    Raises:
        ConfigError: it cannot be read, is not COCO's format, or has a class or a class's id twice.
    """
    content = read_coco(file)
    names, ids = read_classes(content, report)
    parts = {"images": content.images, "annotations": content.annotations, "categories": content.categories}
    return parts, names, ids


def read_classes(content: Content, report: Report) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of the classes, in the order of ids.

    Args:
        content: whose categories are read.
        report: is told what is left out or repaired of them.

    Raises:
        ConfigError: there is none, or a class or a class's id is there twice.
    """
    file = content.source
    categories = [_category(place, entry, file, report) for place, entry in enumerate(content.categories)]
    root = _root(categories, content.annotations)
    if root is not None:
        report.add(CATEGORY_ROOT, f"{root.identity}, {root.name}")
    names: dict[int, str] = {}
    for category in categories:
        identity, name = category.identity, category.name
        if category is root:
            continue
        if identity in names:
            raise ConfigError(f"{file}: category id {identity} is there twice; give each category an id of its own")
        if name in names.values():
            raise ConfigError(f"{file}: category name {abbreviated(name)} is there twice; give each a name of its own")
        names[identity] = name
    if not names:
        raise ConfigError(f"{file}: no categories in it; name a file that says what its objects are")
    ids = tuple(sorted(names))
    return tuple(names[identity] for identity in ids), ids


class _Category(NamedTuple):
    identity: int
    name: str
    parent: object  # the supercategory's name, if it has one


def _category(place: int, entry: Any, file: Path, report: Report) -> _Category:
    raw_id, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
    identity = read_category_id(raw_id)
    if identity is None or not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{file}: categories[{place}]={abbreviated(entry)}: give it a whole number as id, and a name")
    if isinstance(raw_id, str):
        report.add(CATEGORY_TEXT, raw_id)
    return _Category(identity, name, entry.get("supercategory"))


def _root(categories: Sequence[_Category], annotations: Sequence[Any]) -> _Category | None:
    """The category that Roboflow puts above all others, which is no class; None if there is none.

    It has the id 0 and the supercategory "none", no annotation is of it, and its name is another category's or the
    supercategory of all others.
    """
    for root in categories:
        others = [category for category in categories if category is not root]
        if root.identity != 0 or root.parent != "none" or not others:
            continue
        above = all(category.parent == root.name for category in others)
        if not above and all(category.name != root.name for category in others):
            continue
        used = (read_category_id(entry.get("category_id")) for entry in annotations if isinstance(entry, dict))
        if all(identity != 0 for identity in used):
            return root
    return None


class _Packed:
    """Images in one block of bytes, each unpacked when asked for.

    A million small objects would be copied into every worker, as reading one changes its reference count.
    """

    def __init__(self, images: Sequence[ImageInfo]) -> None:
        packed = [pickle.dumps(info, pickle.HIGHEST_PROTOCOL) for info in images]
        self._ends = np.cumsum([len(piece) for piece in packed])
        self._bytes = b"".join(packed)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ImageInfo:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index}: there are {len(self)}, from 0 on")
        start = self._ends[index - 1] if index else 0
        info: ImageInfo = pickle.loads(memoryview(self._bytes)[start : self._ends[index]])
        return info
