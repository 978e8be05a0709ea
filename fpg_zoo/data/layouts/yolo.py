"""YOLO's layout: a text file of rows for each image, and a YAML file that names classes and folders of images.

Label Studio and others write `classes.txt` in place of the YAML file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fpg_zoo.data import annotation_problems as problems
from fpg_zoo.data.coco_images import find_image, image_sizes
from fpg_zoo.data.content import Content, Problem, digest_of
from fpg_zoo.data.split_names import WHOLE
from fpg_zoo.data.text_files import decode_text
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import on_terminal, read_regular
from fpg_zoo.progress import tqdm
from fpg_zoo.structures.images import image_suffixes
from fpg_zoo.text import printable, quoted

ENDINGS = (".yaml", ".yml")
LOOKED_FOR = "data.yaml, classes.txt with images and labels (YOLO)"
_USUAL = "data.yaml"
_CLASSES = "classes.txt"
_IMAGES, _LABELS = "images", "labels"
_SPLITS = ("train", "val", "valid", "validation", "test")
_NOTHING = ("", "~", "null")
_MAX_YAML_BYTES = 1 << 20
_MAX_LABEL_BYTES = 16 << 20
_MAX_LIST_BYTES = 256 << 20
_MAX_PARTS = 64  # of a path of another machine


class YoloLayout:
    """Classes and what the splits name; a `Layout`.

    Attributes:
        label, place, splits, folder: as of `Layout`.
    """

    label = "YOLO"

    def __init__(
        self,
        place: Path,
        names: Mapping[int, str],
        entries: Mapping[str, list[str]],
        roots: Sequence[Path],
        *,
        points: bool = False,
    ) -> None:
        """Nothing is looked at before a split is read.

        Args:
            place: for messages.
            names: classes by index.
            entries: paths of each split, at least one: folders of images, or text files that list images.
            roots: folders that paths start from, at least one.
            points: rows go on with key points after the box.
        """
        self.place = place
        self.splits: Collection[str] = tuple(entries)
        self.folder = roots[0]
        self._names = names
        self._entries = entries
        self._roots = roots
        self._points = points

    @classmethod
    def of_yaml(cls, file: Path) -> YoloLayout:
        """Read a YAML file.

        Args:
            file: with `names`, a list or a table by class index, and paths under `train`, `val`, `test`: a folder, a
                list of folders, or a text file that lists images. They start from its `path`, if that is there, or from
                the file's own folder.

        Raises:
            ConfigError: it cannot be read, or has no classes or splits.
        """
        content = _read_yaml(file)
        names = _names(content, file)
        entries = {split: there for split in _SPLITS if (there := _entries(content.get(split), f"{file}: {split}"))}
        if not entries:
            raise ConfigError(f"{file}: no split in it; name folders of images under train, val, test")
        path = content.get("path")
        given = Path(path.replace("\\", "/")) if isinstance(path, str) and path not in _NOTHING else Path()
        roots = list(dict.fromkeys(root for root in (file.parent / given, file.parent) if root.is_dir()))
        return cls(file, names, entries, roots, points="kpt_shape" in content)

    @classmethod
    def of_classes(cls, file: Path) -> YoloLayout:
        """Read a file with the name of a class in each line, beside folders `images` and `labels`.

        Folders in `images` that are named as splits are those; otherwise all images are one.

        Raises:
            ConfigError: it cannot be read, or is empty.
        """
        lines = [line.strip() for line in _lines(file, _MAX_YAML_BYTES)]
        while lines and not lines[-1]:
            lines.pop()
        if not all(lines) or not lines:
            raise ConfigError(f"{file}: {'an empty line' if lines else 'empty'}; give each line the name of a class")
        images = file.parent / _IMAGES
        splits = [split for split in _SPLITS if (images / split).is_dir()]
        beside = next(_images_in(images, deep=False), None) if splits else None
        if beside is not None:
            raise ConfigError(f"{beside}: beside folders of splits ({', '.join(splits)}); move it into one of them")
        entries = {split: [f"{_IMAGES}/{split}"] for split in splits} or {WHOLE: [_IMAGES]}
        return cls(file, dict(enumerate(lines)), entries, [file.parent])

    def read(self, split: str) -> Content:
        """As of `Layout`. Sizes of images are read from their headers."""
        found: dict[Path | str, Path | None] = {}  # the image, or its name where it is not there, and its label file
        missing: list[Problem] = []
        for entry in self._entries[split]:
            place = self._resolved(entry, split)
            if place.is_dir():
                images = list(_images_in(place))
                found.update((image, _label_file(image)) for image in images)
                missing += _without_image(place, images)
            else:
                found.update(self._listed(place))
        if not found:
            raise ConfigError(f"{self.place}: {split}: no images in {', '.join(map(quoted, self._entries[split]))}")
        if not any(found.values()):
            image = next(iter(found))
            looked = _label_places(image)[0] if isinstance(image, Path) else image
            raise ConfigError(
                f"{self.place}: {split}: {len(found)} images and no label file; looked for {looked}: put the labels "
                "into labels/ beside images/"
            )
        return self._content(found, missing)

    def _content(self, found: Mapping[Path | str, Path | None], missing: list[Problem]) -> Content:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        unread: list[Problem] = []
        bar = tqdm(found.items(), unit="image", disable=not on_terminal(), leave=False)
        for number, (image, labels) in enumerate(bar, start=1):
            name = self._name(image) if isinstance(image, Path) else image
            sizes = image_sizes(image) if isinstance(image, Path) else []
            entry: dict[str, Any] = {"id": number, "file_name": name}
            if sizes:
                entry |= {"height": sizes[0][0], "width": sizes[0][1]}
            try:
                lines = [] if labels is None else _lines(labels, _MAX_LABEL_BYTES)
            except ConfigError as error:
                unread.append(Problem(problems.FILE_UNREADABLE, name, str(error)))
                continue
            images.append(entry)
            for place, line in enumerate(lines, start=1):
                if line.strip():
                    row = _row(line.split(), sizes[0] if sizes else (1, 1), points=self._points)
                    annotations.append({"id": f"{name}, row {place}", "image_id": number, **row})
        categories = [{"id": index, "name": name} for index, name in self._names.items()]
        return Content(
            source=self.place,
            images=images,
            annotations=annotations,
            categories=categories,
            folders=(self.folder,),
            digest=digest_of(images, annotations, categories),
            problems=(*missing, *unread),
        )

    def _name(self, image: Path) -> str:
        """As the reader finds it from the first root on."""
        return image.relative_to(self.folder).as_posix() if image.is_relative_to(self.folder) else str(image.absolute())

    def _listed(self, file: Path) -> dict[Path | str, Path | None]:
        """Of a text file with the path of an image in each line, which starts from its folder or a root."""
        listed: dict[Path | str, Path | None] = {}
        for line in _lines(file, _MAX_LIST_BYTES):
            if name := line.strip():
                places = (find_image(root, name) for root in dict.fromkeys((*self._roots, file.parent)))
                image = next((place for place in places if place is not None), None)
                listed[image or name] = None if image is None else _label_file(image)
        return listed

    def _resolved(self, entry: str, split: str) -> Path:
        """What a path in the file means: as it is; or the longest end of it, if it comes from another machine.

        Roboflow writes `../train/images` for a folder beside the file.
        """
        slashes = entry.replace("\\", "/")
        parts = [part for part in slashes.split("/") if part not in ("", ".")][-_MAX_PARTS:]
        foreign = slashes.startswith(("/", "../")) or slashes[1:3] == ":/"
        ends = [Path(*parts[begin:]) for begin in range(len(parts)) if ".." not in parts[begin:]] if foreign else []
        for path in (Path(entry), Path(slashes), *ends):
            for root in self._roots:
                if os.path.exists(root / path):
                    return root / path
        raise ConfigError(
            f"{self.place}: {split}: no {quoted(entry)} in {' or '.join(map(str, self._roots))}; correct the path"
        )


def find_yolo(root: Path) -> YoloLayout | None:
    """By `data.yaml`, the only YAML file of the folder that has names and splits, or else `classes.txt`."""
    if (root / _USUAL).is_file():
        return YoloLayout.of_yaml(root / _USUAL)
    others = [file for file in sorted(root.iterdir()) if file.suffix.lower() in ENDINGS and _is_data_set(file)]
    if len(others) == 1:
        return YoloLayout.of_yaml(others[0])
    if not others and (root / _CLASSES).is_file() and (root / _IMAGES).is_dir() and (root / _LABELS).is_dir():
        return YoloLayout.of_classes(root / _CLASSES)
    return None


def _is_data_set(file: Path) -> bool:
    try:
        content = _read_yaml(file)
    except ConfigError:
        return False
    return "names" in content and any(split in content for split in _SPLITS)


def _read_yaml(file: Path) -> dict[str, Any]:
    """Texts, lists and tables. Nothing else is made of them: `no` is the name of a class, not false."""
    try:
        text = decode_text(read_regular(file, max_bytes=_MAX_YAML_BYTES))
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        cause = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "strerror", None) or error
        reason = printable(" ".join(str(cause).split()))
        raise ConfigError(f"{file}: cannot be read ({reason}); name a YAML file of a YOLO data set") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: no table in it; name a YAML file with names, train and val")
    return content


def _names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Classes by index."""
    names = content.get("names")
    if isinstance(names, list):
        names = {str(place): name for place, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise ConfigError(f"{file}: names={quoted(names)}: give the classes as a list, or as a table by their index")
    for index, name in names.items():
        if not (isinstance(index, str) and index.isascii() and index.isdigit() and len(index) < 7):
            raise ConfigError(f"{file}: names: index {quoted(index)}: it takes whole numbers from 0 on")
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{file}: names: {index}: {quoted(name)}: it takes a text")
    count = content.get("nc")
    if isinstance(count, str) and count not in (*_NOTHING, str(len(names))):
        raise ConfigError(f"{file}: nc={quoted(count)}, and {len(names)} names; correct one of them")
    return {int(index): name for index, name in names.items()}


def _entries(value: Any, where: str) -> list[str]:
    """The paths of a split; none where it is empty."""
    entries = value if isinstance(value, list) else [] if value is None or value in _NOTHING else [value]
    for entry in entries:
        if not isinstance(entry, str) or not entry or "\0" in entry:
            raise ConfigError(f"{where}={quoted(value)}: it takes a path, or a list of paths")
    return entries


def _images_in(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    """In it and, `deep`, in its folders, sorted. What macOS puts beside files of other systems (`._NAME`) is none."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(folders) if deep else []
        for file in sorted(files):
            if not file.startswith("._") and file.lower().endswith(image_suffixes()):
                yield Path(parent, file)


def _label_places(image: Path) -> list[Path]:
    """Where an image's rows may be: under `labels` in place of the last `images` of its path, or beside it."""
    parts = image.parent.parts
    last = next((place for place in reversed(range(len(parts))) if parts[place] == _IMAGES), None)
    beside = image.with_suffix(".txt")
    if last is None:
        return [beside]
    return [Path(*parts[:last], _LABELS, *parts[last + 1 :], beside.name), beside]


def _label_file(image: Path) -> Path | None:
    return next((place for place in _label_places(image) if os.path.exists(place)), None)


def _without_image(folder: Path, images: list[Path]) -> Iterator[Problem]:
    """Label files of images that are not there."""
    labels = _label_places(folder / "x")[0].parent
    if labels == folder:
        return
    known = {place for image in images for place in _label_places(image)}
    for parent, folders, files in os.walk(labels):
        folders.sort()
        for file in sorted(files):
            place = Path(parent, file)
            if place.suffix == ".txt" and not file.startswith("._") and file != _CLASSES and place not in known:
                yield Problem(problems.IMAGE_MISSING, str(place.relative_to(labels).with_suffix("")), f"of {place}")


def _lines(file: Path, max_bytes: int) -> list[str]:
    try:
        return decode_text(read_regular(file, max_bytes=max_bytes)).splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{file}: cannot be read ({reason}); write it in UTF-8") from None


def _row(texts: list[str], size: tuple[int, int], *, points: bool) -> dict[str, Any]:
    """A row as an annotation, without a box if that cannot be read.

    Args:
        texts: class index, then a box's center, width and height, or a polygon's x and y, as shares of the image.
        size: (height, width) in pixels.
        points: what follows a box are key points.
    """
    category, *read = map(_number, texts)
    numbers = [number for number in read if number is not None]
    row: dict[str, Any] = {"category_id": category, "bbox": None}
    if len(numbers) < len(read):
        return row
    height, width = size
    if len(numbers) == 4 or (points and len(numbers) > 4):
        x, y, across, down = numbers[:4]
        row["bbox"] = [(x - across / 2) * width, (y - down / 2) * height, across * width, down * height]
    elif len(numbers) >= 6 and len(numbers) % 2 == 0:
        xs, ys = [x * width for x in numbers[::2]], [y * height for y in numbers[1::2]]
        row["bbox"] = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        row["segmentation"] = [[side for point in zip(xs, ys, strict=True) for side in point]]
        row["area"] = abs(sum(x * (ys[place - 1] - ys[place - len(ys) + 1]) for place, x in enumerate(xs))) / 2
    return row


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
