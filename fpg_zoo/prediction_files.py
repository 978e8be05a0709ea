"""Detections of many picture files, written as annotated pictures and as a COCO results file."""

from __future__ import annotations

import collections
import itertools
import json
import os
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from fpg_zoo.errors import ConfigError, ImageError
from fpg_zoo.factory import create_model, published
from fpg_zoo.images import read_image
from fpg_zoo.predictor import Predictor
from fpg_zoo.structures import Detections
from fpg_zoo.weights.files import aside, explained

JPEG_QUALITY = 92


@dataclass
class Summary:
    """What came of a run: pictures detected in, objects found, and why pictures were skipped."""

    detected: int = 0
    objects: int = 0
    unreadable: list[str] = field(default_factory=list)


def predict_files(
    files: Sequence[str],
    *,
    model_name: str | None,
    checkpoint: Path | None,
    device: str,
    score: float,
    output: Path | None,
    results: Path | None,
) -> Summary:
    """Detect objects in picture files one after the other; a line per picture goes to standard output.

    Args:
        files: paths and URLs. One that cannot be read is reported on standard error and skipped.
        model_name, checkpoint: as of `create_model`; without a checkpoint, the published weights.
        device: where the model runs.
        score: detections below it are left out.
        output: folder for annotated pictures, `NAME_detections.jpg`.
        results: a COCO results file, written whole at the end. A picture's id is its file name if that is a number, as
            COCO's are, and otherwise its path as given.

    Raises:
        FPGZooError: no such model or device, or nothing can be written at `output` or `results`.
    """
    if model_name is not None and checkpoint is None:
        published(model_name)
    for place in (output, results.parent if results else None):
        if place is not None:
            _check_writable(place)
    if results is not None and results.is_dir():
        raise ConfigError(f"{results}: a folder; name the file to write")
    # Only now what takes time, and only after that the first file is made.
    target_device = usable_device(device)
    model = create_model(model_name, pretrained=checkpoint is None, checkpoint=checkpoint, device=target_device)
    predictor, summary, rows = Predictor(model), Summary(), []
    ids, targets = _image_ids(files), _targets(files, output) if output else {}
    with tqdm(total=len(files), unit="image", disable=None) as bar:
        pictures = _readable(files, summary, bar)
        for file, image in pictures:
            found = predictor(image)[0].above(score)
            summary.detected += 1
            summary.objects += len(found)
            rows.extend(found.to_coco(ids[file]))
            if output:
                _save_picture(found.draw(image), targets[file])
            bar.write(f"{file}: {_counts(found)}", file=sys.stdout)
            sys.stdout.flush()
            bar.update()
    if results:
        with aside(results.parent, ".json") as temporary, explained(results.parent):
            temporary.write_text(json.dumps(rows) + "\n", encoding="utf-8")
            temporary.replace(results)
    return summary


def usable_device(device: str) -> torch.device:
    """The device, if this machine has it.

    Raises:
        ConfigError: no such device, or not on this machine.
    """
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).fill_(0)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used here ({reason}): choose cpu, cuda or mps") from None
    if chosen.type == "meta":
        raise ConfigError("device 'meta' holds no values: choose cpu, cuda or mps")
    return chosen


def _readable(files: Sequence[str], summary: Summary, bar: Any) -> Iterator[tuple[str, Image.Image]]:
    for file in files:
        try:
            image = read_image(file)
        except ImageError as error:
            summary.unreadable.append(file)
            bar.write(f"skipped: {error}", file=sys.stderr)
            bar.update()
            continue
        yield file, image


def _check_writable(folder: Path) -> None:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{folder}: cannot be a folder, {existing} is a file; choose another place")
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"{folder}: {existing} cannot be written; choose another place")


def _stem(file: str) -> str:
    """A picture's name without folders and suffix; of a URL, without what follows the path."""
    path = urllib.parse.urlsplit(file).path if "://" in file else file
    return Path(path).stem or "picture"


def _image_ids(files: Sequence[str]) -> dict[str, int | str]:
    stems = {file: _stem(file) for file in files}
    numbers = collections.Counter(int(stem) for stem in stems.values() if stem.isdecimal())
    return {file: int(stem) if stem.isdecimal() and numbers[int(stem)] == 1 else file for file, stem in stems.items()}


def _targets(files: Sequence[str], output: Path) -> dict[str, Path]:
    """A new file for each picture: told apart by a number from each other, and never one of the pictures."""
    taken = {Path(file).resolve() for file in files}
    targets = {}
    for file in files:
        names = (
            f"{_stem(file)}{number}_detections.jpg"
            for number in itertools.chain([""], (f"_{i}" for i in itertools.count(2)))
        )
        targets[file] = next(path for name in names if (path := output / name).resolve() not in taken)
        taken.add(targets[file].resolve())
    return targets


def _save_picture(picture: Image.Image, target: Path) -> None:
    with aside(target.parent, ".jpg") as temporary, explained(target.parent):
        picture.save(temporary, quality=JPEG_QUALITY)
        temporary.replace(target)


def _counts(found: Detections) -> str:
    counts = collections.Counter(found.names).most_common()
    return ", ".join(f"{count} {name}" for name, count in counts) or "nothing found"
