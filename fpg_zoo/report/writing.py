"""A report written to its file, and the facts of a run that it tells."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fpg_zoo.data.samples import Dataset, read_pixels
from fpg_zoo.errors import ImageError
from fpg_zoo.evaluation import Kind, Scores, image_ids_of
from fpg_zoo.factory import HUB, LOCAL, published
from fpg_zoo.files import aside, explained
from fpg_zoo.images import read_image
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.report.gathering import About, gather
from fpg_zoo.report.page import page
from fpg_zoo.report.pictures import Pixels
from fpg_zoo.report.regions import Row, size_of
from fpg_zoo.version import __version__


def write_report(
    file: Path,
    about: About,
    annotations: Mapping[str, Any],
    rows: Sequence[Row],
    scores: Mapping[Kind, Scores],
    image_ids: Sequence[int | str],
    pixels: Pixels | None,
) -> None:
    """Write the page, all or nothing.

    Args:
        file: to write; replaced if it is there.
        about, annotations, rows, scores, image_ids, pixels: as of `fpg_zoo.report.gathering.gather`.

    Raises:
        StorageError: it cannot be written.
    """
    content = page(gather(about, annotations, rows, scores, image_ids, pixels))
    with aside(file.parent, ".html") as temporary, explained(file.parent):
        temporary.write_text(content, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")
        temporary.replace(file)


def about_model(
    model: Detector, *, name: str | None, checkpoint: Path | None, data: Path, split: str, arguments: Sequence[str]
) -> About:
    """The facts of an evaluation of a model.

    Args:
        model: evaluated.
        name, checkpoint: as of `fpg_zoo.factory.create_model`.
        data, split: what it was evaluated on.
        arguments: of the command.
    """
    weights = str(checkpoint or name)
    if checkpoint is None and name is not None and not name.startswith((LOCAL, HUB)):
        weights = published(name).name
    precision = str(model.dtype).removeprefix("torch.")
    facts = (
        ("Model", model.name),
        ("Weights", weights),
        ("Precision", precision),
        ("Data", str(data)),
        ("Split", split),
    )
    return _about(f"{model.name} on {data.name or data} {split}", facts, arguments)


def about_results(results: Path, annotations: Path, arguments: Sequence[str]) -> About:
    """The facts of an evaluation of a results file; `arguments` are the command's."""
    facts = (("Detections of", str(results)), ("Annotations", str(annotations)))
    return _about(f"{results.name} on {annotations.name}", facts, arguments)


def _about(title: str, facts: tuple[tuple[str, str], ...], arguments: Sequence[str]) -> About:
    now = datetime.datetime.now().astimezone()
    made = (("fpg_zoo", __version__), ("Date", f"{now:%Y-%m-%d %H:%M} {now:%z}"))
    return About(title, (*facts, *made), shlex.join(["fpg-zoo", *arguments]))


def pixels_of(dataset: Dataset) -> Pixels:
    """Reads the pictures of a data set."""
    places = {identity: place for place, identity in enumerate(image_ids_of(dataset))}

    def read(image_id: int | str) -> Image.Image:
        return Image.fromarray(dataset[places[image_id]].image.permute(1, 2, 0).numpy())

    return read


def pixels_in(folder: Path, images: Sequence[Row]) -> Pixels:
    """Reads the pictures of an annotation file, whose names start from a folder.

    Args:
        folder: it.
        images: of the file.
    """
    entries = {entry["id"]: entry for entry in images}

    def read(image_id: int | str) -> Image.Image:
        entry = entries[image_id]
        name, size = entry.get("file_name"), size_of(entry)
        if not isinstance(name, str) or not name:
            raise ImageError("its entry has no file name")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            # A report is passed on, and must not hold what whoever wrote the annotations fancies of this machine.
            raise ImageError(f"{name}: leads out of the folder of pictures")
        if size is None:
            return read_image(folder / name)
        return Image.fromarray(read_pixels(folder / name, size).permute(1, 2, 0).numpy())

    return read
