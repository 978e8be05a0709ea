"""Detections written as they come, in the formats that were asked for, so that a killed run can go on.

Files of one row after the other are written as `NAME.part` and get their name at the end. What belongs to an image is
written first, its files and then its rows; a line of the record, with the ends of all parts, says that it is done. To
go on, parts are cut where the last line says, and what came after it is written again.
"""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from fpg_zoo.distributed import Processes
from fpg_zoo.errors import ConfigError
from fpg_zoo.files import atomic_write, check_writable, open_regular, storage_errors
from fpg_zoo.inference.result_formats import HEADS, ROWS, Source, labelme_content, yolo_labels
from fpg_zoo.inference.video import is_video
from fpg_zoo.structures import Detections
from fpg_zoo.structures.images import (
    ANNOTATED_ENDING,
    CROP_ENDING,
    SOFTWARE,
    SOFTWARE_TAG,
    is_url,
    label_of,
)
from fpg_zoo.text import printable, quoted

JPEG_QUALITY = 92
JPEG_MAX_SIDE = 65500  # pixels; of libjpeg, in which Pillow writes them
CLASSES_FILE = "classes.txt"  # beside YOLO's label files
_MOST_STEM_BYTES = 200  # file systems take names of 255
_MOST_CLASS_BYTES = 20  # of a crop's name
_MOST_DIGITS = 19  # of an image id, so that it is a 64-bit number
_HEADER = "fpg_zoo_predict"
_MAX_RECORD_BYTES = 1 << 30


@dataclass(frozen=True)
class Outputs:
    """Where detections go; None for what is not wanted.

    Attributes:
        annotated: folder of annotated images and videos, `NAME_detections.jpg` (`.png` where a side is too long for
            JPEG) and `.mp4`.
        crops: folder of what is in each box, `NAME_NUMBER_CLASS_crop.jpg`.
        yolo: folder of YOLO's label files, `NAME.txt`: class, center x, center y, width and height of each box, as
            shares of the image's sides; and `classes.txt`.
        labelme: folder of labelme's files, `NAME.json`.
        json: a COCO results file.
        jsonl: a line of JSON for each image or frame.
        csv: a row for each detection.
    """

    annotated: Path | None = None
    crops: Path | None = None
    yolo: Path | None = None
    labelme: Path | None = None
    json: Path | None = None
    jsonl: Path | None = None
    csv: Path | None = None

    @property
    def folders(self) -> dict[str, Path]:
        """Those of which each image has files of its own."""
        return self._wanted("annotated", "crops", "yolo", "labelme")

    @property
    def files(self) -> dict[str, Path]:
        """Those of all images."""
        return self._wanted("json", "jsonl", "csv")

    def _wanted(self, *names: str) -> dict[str, Path]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def check(self, inputs: Sequence[str]) -> None:
        """Say before the work what cannot be written.

        Raises:
            ConfigError: a place cannot be written, is one of the inputs, or named twice.
        """
        for folder in self.folders.values():
            check_writable(folder)
        taken = {real_path(file) for file in inputs}
        seen: set[str] = set()
        for file in self.files.values():
            check_writable(file.parent)
            if file.is_dir():
                raise ConfigError(f"{file}: a folder; name the file to write")
            if real_path(file) in taken:
                raise ConfigError(f"{file}: one of the images; name another file to write")
            if real_path(file) in seen:
                raise ConfigError(f"{file}: two files to write have this name; name another for one of them")
            seen.add(real_path(file))


class ResultFiles:
    """The outputs of one run."""

    def __init__(self, outputs: Outputs, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Nothing is read or written yet.

        Args:
            outputs: where to write.
            settings: everything that decides what is detected, as values of JSON.
            resume: go on with what an earlier run has begun, if it has.
        """
        self.outputs = outputs
        self._settings = dict(settings) | {
            name: str(path) for name, path in {**outputs.folders, **outputs.files}.items()
        }
        self._resume = resume
        self._parts: dict[str, BinaryIO] = {}
        self._ends: dict[str, int] = {}  # of the parts, after the last source that was finished
        self._added: dict[str, int] = {}  # and after the last image
        self._written: list[Path] = []
        self._record: BinaryIO | None = None
        self.done: dict[str, int] = {}

    @contextlib.contextmanager
    def writing(self) -> Iterator[ResultFiles]:
        """The files open, and other runs kept out.

        `done` then has the number of objects of each image and video (`label_of`) that an earlier run has finished.
        Where the block raises, what is finished is kept for a run that goes on.

        Raises:
            ConfigError: to go on, the earlier run was one with other settings, or its files are damaged.
            StorageError: they cannot be written, or another run writes them.
        """
        place = self._record_file
        if place is None:
            yield self
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(Processes().exclusive(place.with_name(f"{place.name}.lock"), str(self._subject)))
            if self._resume:
                self._read_record(place)
            else:
                place.unlink(missing_ok=True)
            for name, file in self.outputs.files.items():
                self._parts[name] = stack.enter_context(self._opened_part(name, file))
            self._added = dict(self._ends)
            stack.callback(self._close_record)
            try:
                yield self
            except BaseException:
                self._leave()
                raise

    def _leave(self) -> None:
        """What is begun is taken back; where nothing is finished, nothing is left."""
        self.drop_source()
        if self._record is None and not self.done:
            for name in self._parts:
                _part_of(self.outputs.files[name]).unlink(missing_ok=True)

    def add(self, source: Source, image: Image.Image, detections: Detections) -> None:
        """Write an image's detections; nothing counts before `finish_source`."""
        places = self.outputs
        if places.annotated is not None and source.frame is None:
            self._save_image(detections.draw(image), places.annotated / f"{source.stem}{ANNOTATED_ENDING}")
        if places.crops is not None:
            self._save_crops(places.crops, source, image, detections)
        if places.yolo is not None:
            if not (classes := places.yolo / CLASSES_FILE).is_file():
                self._save(classes, "".join(f"{printable(name)}\n" for name in detections.class_names).encode())
            self._save(places.yolo / f"{source.stem}.txt", yolo_labels(detections).encode())
        if places.labelme is not None:
            content = labelme_content(detections, label_of(source.file), places.labelme)
            self._save(places.labelme / f"{source.stem}.json", (json.dumps(content, indent=1) + "\n").encode())
        for name, part in self._parts.items():
            with storage_errors(self.outputs.files[name].parent):
                part.write(ROWS[name](source, detections))
        self._added = {name: part.tell() for name, part in self._parts.items()}

    def finish_source(self, source: Source, objects: int) -> None:
        """All of an image or video is written; it outlives a kill."""
        for name, part in self._parts.items():
            with storage_errors(self.outputs.files[name].parent):
                part.flush()
                self._ends[name] = part.tell()
        self._written.clear()
        self._note({"file": label_of(source.file), "objects": objects, "ends": self._ends})

    def drop_source(self) -> None:
        """Take back what was written since the last source was finished."""
        for file in self._written:
            file.unlink(missing_ok=True)
        self._written.clear()
        self._cut(self._ends)

    def drop_frame(self) -> None:
        """Take back the rows of an image whose `add` was interrupted."""
        self._cut(self._added)

    def _cut(self, ends: Mapping[str, int]) -> None:
        for name, part in self._parts.items():
            with storage_errors(self.outputs.files[name].parent):
                part.seek(ends[name])
                part.truncate()

    def finish(self) -> None:
        """Give files their names and remove the record."""
        for name, part in self._parts.items():
            file = self.outputs.files[name]
            with storage_errors(file.parent):
                part.close()
                if name == "json":
                    _write_array(_part_of(file), file)
                else:
                    _part_of(file).replace(file)
        self._close_record()
        if self._record_file is not None:
            with storage_errors(self._record_file.parent):
                self._record_file.unlink(missing_ok=True)
                if self.outputs.json is not None:
                    _part_of(self.outputs.json).unlink()

    # The record

    @property
    def _subject(self) -> Path | None:
        return next(iter({**self.outputs.files, **self.outputs.folders}.values()), None)

    @property
    def _record_file(self) -> Path | None:
        """Beside the first file; in the first folder where there are no files."""
        for file in self.outputs.files.values():
            return file.with_name(f".{file.name}.progress.jsonl")
        for folder in self.outputs.folders.values():
            return folder / ".predict.progress.jsonl"
        return None

    def _read_record(self, place: Path) -> None:
        try:
            with open_regular(place, max_bytes=_MAX_RECORD_BYTES) as stream:
                lines = [line for line in stream if line.endswith(b"\n")]  # the last may be torn
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"{place}: cannot be read ({error.strerror}); remove it to begin again") from None
        again = f"remove {place} to begin again, or leave out --resume"
        try:
            contents = [json.loads(line) for line in lines]
            settings = contents[0][_HEADER] if contents else self._settings
            names = sorted({*settings, *self._settings})
            other = [name for name in names if settings.get(name) != self._settings.get(name)]
            if not other:
                for line in contents[1:]:
                    self.done[str(line["file"])] = int(line["objects"])
                    self._ends = {name: int(line["ends"][name]) for name in self.outputs.files}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ConfigError(f"{place}: no record of a run of predict; {again}") from None
        if other:
            differing = ", ".join(
                f"{name} {quoted(settings.get(name))}, now {quoted(self._settings.get(name))}" for name in other
            )
            raise ConfigError(f"{place}: begun with another {differing}; {again}")
        with storage_errors(place.parent):
            os.truncate(place, sum(map(len, lines)))

    def _opened_part(self, name: str, file: Path) -> BinaryIO:
        part = _part_of(file)
        with storage_errors(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not self._ends.get(name):
                stream = part.open("wb")
                stream.write(HEADS.get(name, b""))
                self._ends[name] = stream.tell()
                return stream
            if not part.is_file() and name != "json" and file.is_file():
                file.replace(part)  # killed between its renaming and the record's end
            if not part.is_file() or part.stat().st_size < self._ends[name]:
                raise ConfigError(
                    f"{part}: shorter than the record {self._record_file} says; remove that to begin again, or leave "
                    "out --resume"
                )
            os.truncate(part, self._ends[name])
            going_on = part.open("r+b")
            going_on.seek(0, os.SEEK_END)
            return going_on

    def _note(self, content: Mapping[str, Any]) -> None:
        place = self._record_file
        if place is None:
            return
        with storage_errors(place.parent):
            if self._record is None:
                place.parent.mkdir(parents=True, exist_ok=True)
                self._record = place.open("ab", buffering=0)
                if not self._record.tell():
                    self._record.write(json.dumps({_HEADER: self._settings}).encode() + b"\n")
            self._record.write(json.dumps(content).encode() + b"\n")

    def _close_record(self) -> None:
        if self._record is not None:
            self._record.close()

    # A source's own files

    def _save(self, file: Path, content: bytes | memoryview) -> None:
        with atomic_write(file) as temporary:
            temporary.write_bytes(content)
        self._written.append(file)

    def _save_image(self, image: Image.Image, target: Path) -> None:
        """Write `target` with the suffix of its format, and so that `find_images` knows it for what it is."""
        encoded = io.BytesIO()  # what fails below is the file system, and not the encoder
        exif = Image.Exif()
        exif[SOFTWARE_TAG] = SOFTWARE
        if max(image.size) <= JPEG_MAX_SIDE:
            suffix = ".jpg"
            image.save(encoded, "JPEG", quality=JPEG_QUALITY, exif=exif)
        else:
            suffix = ".png"
            image.save(encoded, "PNG", exif=exif)
        self._save(suffixed(target, suffix), encoded.getbuffer())

    def _save_crops(self, folder: Path, source: Source, image: Image.Image, detections: Detections) -> None:
        for place, (box, name) in enumerate(zip(detections.boxes, detections.names, strict=True)):
            left, top = (int(side) for side in box[:2].floor())
            right, bottom = (int(side) for side in box[2:].ceil())
            kind = re.sub(r"\W+", "-", name).encode(errors="ignore")[:_MOST_CLASS_BYTES].decode(errors="ignore")
            crop = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
            self._save_image(crop, folder / f"{source.stem}_{place + 1}_{kind}{CROP_ENDING}")


# Names


def stem_of(file: str) -> str:
    """An image's name without folders and suffix; of a URL, without what follows the path."""
    if is_url(file):
        # Not urlsplit, which raises for some.
        file = re.split("[?#]", label_of(file).partition("://")[2].partition("/")[2])[0]
    stem = Path(file).stem.encode(errors="surrogateescape")[:_MOST_STEM_BYTES].decode(errors="ignore")
    return stem or "image"


def image_ids_of(files: Sequence[str]) -> dict[str, int | str]:
    """The id of each image: its file's name if that is a number, as COCO's are, else its path as given."""
    stems = {file: stem_of(file) for file in files}
    numbers = {file: int(stem) for file, stem in stems.items() if stem.isdecimal() and len(stem) < _MOST_DIGITS}
    times = collections.Counter(numbers.values())
    return {file: numbers[file] if times[numbers.get(file, -1)] == 1 else label_of(file) for file in files}


def stems_of(files: Sequence[str], outputs: Outputs) -> dict[str, str]:
    """For each input, how its own files begin: none of these is an input, or one of another input."""
    taken = {real_path(file) for file in files} | {real_path(file) for file in outputs.files.values()}
    if outputs.yolo is not None:
        taken.add(real_path(outputs.yolo / CLASSES_FILE))
    longer = _begun_by(files)
    stems = {}
    for file in files:
        names = (f"{stem_of(file)}{number}" for number in itertools.chain([""], (f"_{i}" for i in itertools.count(2))))
        stems[file] = next(
            name for name in names if taken.isdisjoint(_files_of(name, outputs)) and name not in longer[is_video(file)]
        )
        taken |= _files_of(stems[file], outputs)
    return stems


def _begun_by(files: Sequence[str]) -> tuple[set[str], set[str]]:
    """Stems whose crops could have the names of these files; and those whose frames could."""
    stems = [stem_of(file) for file in files]
    crops = {
        stem[: number.start()] for stem in stems if stem.endswith(CROP_ENDING) for number in re.finditer(r"_\d+_", stem)
    }
    return crops, {found[1] for stem in stems if (found := re.fullmatch(r"(.*)_\d{6,}", stem))} | crops


def _files_of(stem: str, outputs: Outputs) -> set[str]:
    suffixes = {"annotated": (".jpg", ".png", ".mp4"), "yolo": (".txt",), "labelme": (".json",), "crops": ("",)}
    return {
        real_path(folder / f"{stem}{ANNOTATED_ENDING if name == 'annotated' else ''}{suffix}")
        for name, folder in outputs.folders.items()
        for suffix in suffixes[name]
    }


def real_path(file: str | Path) -> str:
    """Where a file is, whatever links lead to it; a path that cannot be, as one with a null byte, as it is given."""
    try:
        return os.path.realpath(os.path.expanduser(file))  # Path.resolve raises where links lead in a circle
    except ValueError:
        return str(file)


def suffixed(target: Path, suffix: str) -> Path:
    """With a suffix after its name, which may hold dots, which `with_suffix` would take for a suffix."""
    return target.with_name(target.name + suffix)


def _part_of(file: Path) -> Path:
    return suffixed(file, ".part")


def _write_array(part: Path, file: Path) -> None:
    """A JSON array of the rows that the lines of `part` hold."""
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8") as stream, part.open("rb") as lines:
        stream.write("[")
        first = True
        for line in lines:
            if inside := line.decode().strip()[1:-1]:
                stream.write(("\n" if first else ",\n") + inside)
                first = False
        stream.write("\n]\n")
