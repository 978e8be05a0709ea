"""Detections of many picture files, written as annotated pictures and as a COCO results file."""

from __future__ import annotations

import collections
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from fpg_zoo.errors import ConfigError, ImageError
from fpg_zoo.factory import create_model, model_info
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
    if model_name is not None:
        model_info(model_name)  # a misspelt name is told before a folder is made
    for folder in {path for path in (output, results.parent if results else None) if path is not None}:
        with aside(folder, ".tmp"):  # told before the work, not after it
            pass
    model = create_model(model_name, pretrained=checkpoint is None, checkpoint=checkpoint, device=usable_device(device))
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
    except (RuntimeError, AssertionError, NotImplementedError) as error:
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


def _image_ids(files: Sequence[str]) -> dict[str, int | str]:
    numbers = collections.Counter(int(Path(file).stem) for file in files if Path(file).stem.isdecimal())
    return {
        file: int(stem) if (stem := Path(file).stem).isdecimal() and numbers[int(stem)] == 1 else file for file in files
    }


def _targets(files: Sequence[str], output: Path) -> dict[str, Path]:
    """A file name for each picture; equal names from different folders are told apart by a number."""
    taken: collections.Counter[str] = collections.Counter()
    targets = {}
    for file in files:
        stem = Path(file).stem or "picture"
        taken[stem] += 1
        number = f"_{taken[stem]}" if taken[stem] > 1 else ""
        targets[file] = output / f"{stem}{number}_detections.jpg"
    return targets


def _save_picture(picture: Image.Image, target: Path) -> None:
    with aside(target.parent, ".jpg") as temporary, explained(target.parent):
        picture.save(temporary, quality=JPEG_QUALITY)
        temporary.replace(target)


def _counts(found: Detections) -> str:
    counts = collections.Counter(found.names).most_common()
    return ", ".join(f"{count} {name}" for name, count in counts) or "nothing found"
