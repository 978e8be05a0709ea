"""Detections of many image files, written as annotated images and as a COCO results file."""

from __future__ import annotations

import collections
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from fpg_zoo.distributed import usable_device
from fpg_zoo.errors import ConfigError, ImageError, is_out_of_memory
from fpg_zoo.files import atomic_write, check_writable, on_terminal
from fpg_zoo.inference.open_model import open_model
from fpg_zoo.inference.predictor import Predictor
from fpg_zoo.inference.prefetch import prefetch
from fpg_zoo.structures import Detections
from fpg_zoo.structures.images import ANNOTATED_ENDING, SOFTWARE, SOFTWARE_TAG, is_url, label_of, read_image
from fpg_zoo.text import printable

JPEG_QUALITY = 92
_MOST_STEM_BYTES = 200  # file systems take names of 255
_MOST_DIGITS = 19  # of an image id, so that it is a 64-bit number
JPEG_MAX_SIDE = 65500  # pixels; of libjpeg, in which Pillow writes them


@dataclass
class Summary:
    """What came of a run: how many images were detected in and objects found, and which images were skipped."""

    detected: int = 0
    objects: int = 0
    skipped: list[str] = field(default_factory=list)


def predict_files(
    files: Sequence[str],
    *,
    model_arguments: Mapping[str, Any],
    device: str,
    score: float,
    output: Path | None,
    results: Path | None,
) -> Summary:
    """Detect objects in image files one after the other; a line per image goes to standard output.

    Args:
        files: paths and URLs. One that cannot be read, or for which memory does not suffice, is reported on standard
            error and skipped.
        model_arguments: of `open_model`, but for the device.
        device: where the model runs.
        score: the least score, 0..1; what is below it is left out before masks are made of it.
        output: folder for annotated images, `NAME_detections.jpg`, or `.png` where a side is too long for JPEG.
        results: a COCO results file, written whole at the end. An image's id is its file name if that is a number, as
            COCO's are, and otherwise its path as given, a URL without a password.

    Returns:
        The images and objects counted. Of a skipped image nothing is counted or written.

    Raises:
        FPGZooError: no such model or device, or nothing can be written at `output` or `results`.
        ValueError: `score` is outside 0..1.
    """
    for place in (output, results.parent if results else None):
        if place is not None:
            check_writable(place)
    if results is not None and results.is_dir():
        raise ConfigError(f"{results}: a folder; name the file to write")
    if results is not None and _real_path(results) in {_real_path(file) for file in files}:
        raise ConfigError(f"{results}: one of the images; name another file to write")
    # Only now what takes time, and only after that the first file is made.
    target_device = usable_device(device)
    model = open_model(**model_arguments, device=target_device)
    predictor, summary, rows = Predictor(model), Summary(), []
    ids, targets = image_ids_of(files), _targets(files, output) if output else {}
    with tqdm(total=len(files), unit="image", disable=not on_terminal()) as bar:
        for file, coming in zip(files, prefetch(read_image, files), strict=True):
            try:
                objects, line = _predict_file(predictor, file, coming, score, ids[file], targets.get(file))
            except ImageError as error:
                _skip(file, str(error), summary, bar)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = "not enough memory to detect in it or draw on it; make it smaller, or raise the score"
                _skip(file, f"{label_of(file)}: {reason}", summary, bar)
            else:
                summary.detected += 1
                summary.objects += len(objects)
                rows.extend(objects)
                bar.write(printable(line, max_length=None), file=sys.stdout)
                sys.stdout.flush()
            bar.update()
    if results:
        with atomic_write(results) as temporary:
            temporary.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    return summary


def _predict_file(
    predictor: Predictor,
    file: str,
    coming: Future[Image.Image],
    score: float,
    image_id: int | str,
    target: Path | None,
) -> tuple[list[dict[str, Any]], str]:
    """One image's COCO rows and the line about it; drawn at `target` (without suffix) unless that is None.

    `coming` is the image when it has been read.

    A function of its own, so that one image's masks are gone before the next one's are made.
    """
    image = coming.result()
    (detections,) = predictor.stream([image], score=score)
    rows = detections.to_coco(image_id)
    if target is not None:
        _save_image(detections.draw(image), target)
    return rows, f"{label_of(file)}: {_counts(detections)}"


def _skip(file: str, reason: str, summary: Summary, bar: Any) -> None:
    summary.skipped.append(file)
    bar.write(f"skipped: {printable(reason, max_length=None)}", file=sys.stderr)


def _stem(file: str) -> str:
    """An image's name without folders and suffix; of a URL, without what follows the path."""
    if is_url(file):
        # Not urlsplit, which raises for some.
        file = re.split("[?#]", label_of(file).partition("://")[2].partition("/")[2])[0]
    stem = Path(file).stem.encode(errors="surrogateescape")[:_MOST_STEM_BYTES].decode(errors="ignore")
    return stem or "image"


def image_ids_of(files: Sequence[str]) -> dict[str, int | str]:
    """The id of each image: its file's name if that is a number, as COCO's are, else its path as given."""
    stems = {file: _stem(file) for file in files}
    numbers = {file: int(stem) for file, stem in stems.items() if stem.isdecimal() and len(stem) < _MOST_DIGITS}
    times = collections.Counter(numbers.values())
    return {file: numbers[file] if times[numbers.get(file, -1)] == 1 else label_of(file) for file in files}


def _targets(files: Sequence[str], output: Path) -> dict[str, Path]:
    """A new file for each image, without suffix: with whichever it gets, it is none of the images or the others."""
    taken = {_real_path(file) for file in files}
    targets = {}
    for file in files:
        names = (
            f"{_stem(file)}{number}{ANNOTATED_ENDING}"
            for number in itertools.chain([""], (f"_{i}" for i in itertools.count(2)))
        )
        targets[file] = next(path for name in names if taken.isdisjoint(_real_paths(path := output / name)))
        taken |= _real_paths(targets[file])
    return targets


def _real_paths(target: Path) -> set[str]:
    return {_real_path(_suffixed(target, suffix)) for suffix in (".jpg", ".png")}


def _real_path(file: str | Path) -> str:
    """Where a file is, whatever links lead to it; a path that cannot be, as one with a null byte, as it is given."""
    try:
        return os.path.realpath(os.path.expanduser(file))  # Path.resolve raises where links lead in a circle
    except ValueError:
        return str(file)


def _suffixed(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)  # a name may hold dots, which with_suffix would take for a suffix


def _save_image(image: Image.Image, target: Path) -> None:
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
    with atomic_write(_suffixed(target, suffix)) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def _counts(detections: Detections) -> str:
    counts = collections.Counter(detections.names).most_common()
    return ", ".join(f"{count} {printable(name)}" for name, count in counts) or "nothing found"
