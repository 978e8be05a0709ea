"""A report written to its file, and the facts of a run that it tells."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fpg_zoo.data.coco_images import find_image, name_of, resolve_inside, size_of
from fpg_zoo.data.dataset import Dataset, read_pixels
from fpg_zoo.errors import ImageError
from fpg_zoo.evaluation.coco_metrics import IouType, Scores
from fpg_zoo.evaluation.detect import image_ids_of
from fpg_zoo.evaluation.report.analysis import ReportInfo, gather
from fpg_zoo.evaluation.report.coco_rows import Row
from fpg_zoo.evaluation.report.page import page
from fpg_zoo.evaluation.report.worst_images import Pixels
from fpg_zoo.files import atomic_write
from fpg_zoo.inference.open_model import AnyDetector
from fpg_zoo.models.factory import published
from fpg_zoo.models.names import HUB, LOCAL
from fpg_zoo.structures.images import read_image
from fpg_zoo.version import __version__


def write_report(
    file: Path,
    info: ReportInfo,
    annotations: Mapping[str, Any],
    rows: Sequence[Row],
    scores: Mapping[IouType, Scores],
    image_ids: Sequence[int | str],
    pixels: Pixels | None,
    more: str = "",
) -> None:
    """Write the page, all or nothing.

    Args:
        file: to write; replaced if it is there.
        about, annotations, rows, scores, image_ids, pixels: as of `fpg_zoo.evaluation.report.analysis.gather`.
        more: parts in HTML, as of `fpg_zoo.evaluation.report.reliability.parts`.

    Raises:
        StorageError: it cannot be written.
    """
    write_page(file, page(gather(info, annotations, rows, scores, image_ids, pixels), more))


def write_page(file: Path, content: str) -> None:
    """Write a page, all or nothing; what UTF-8 does not have is written as HTML's references.

    Raises:
        StorageError: it cannot be written.
    """
    with atomic_write(file) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")


def info_of_model(
    model: AnyDetector, *, name: str | None, checkpoint: Path | None, data: Path, split: str, arguments: Sequence[str]
) -> ReportInfo:
    """The facts of an evaluation of a model.

    Args:
        model: evaluated.
        name, checkpoint: as of `fpg_zoo.models.factory.create_model`.
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
    return _info_of(f"{model.name} on {data.name or data} {split}", facts, arguments)


def info_of_training(run: Path, name: str, *, data: str, split: str) -> ReportInfo:
    """The facts of a run's last evaluation, of a model of this name."""
    facts = (("Model", name), ("Weights", str(run)), ("Data", data), ("Split", split))
    return _info_of(f"{name} on {Path(data).name} {split}", facts, ["train", "--config", str(run / "run.toml")])


def info_of_results(results: Path, annotations: Path, arguments: Sequence[str]) -> ReportInfo:
    """The facts of an evaluation of a results file; `arguments` are the command's."""
    facts = (("Detections of", str(results)), ("Annotations", str(annotations)))
    return _info_of(f"{results.name} on {annotations.name}", facts, arguments)


def _info_of(title: str, facts: tuple[tuple[str, str], ...], arguments: Sequence[str]) -> ReportInfo:
    return ReportInfo(title, (*facts, *versions()), shlex.join(["fpg-zoo", *arguments]))


def versions() -> tuple[tuple[str, str], ...]:
    """The version, and the time at hand, as facts of a page."""
    now = datetime.datetime.now().astimezone()
    return ("fpg_zoo", __version__), ("Date", f"{now:%Y-%m-%d %H:%M} {now:%z}")


def pixels_of(dataset: Dataset, folder: Path | None) -> Pixels:
    """Reads the images of a data set.

    Args:
        dataset: it.
        folder: of its images, as the user named it; None where they are no files.
    """
    places = {identity: place for place, identity in enumerate(image_ids_of(dataset))}

    def read(image_id: int | str) -> Image.Image:
        place = places[image_id]
        if folder is None:
            return _image(dataset[place].image)
        info_of_image = dataset.image_info(place)
        return _image(read_pixels(resolve_inside(info_of_image.file, folder), info_of_image.size))

    return read


def pixels_in(folder: Path, images: Sequence[Row]) -> Pixels:
    """Reads the images of an annotation file, whose names start from a folder.

    Args:
        folder: it, as the user named it.
        images: of the file.
    """
    by_id = {entry["id"]: entry for entry in images}

    def read(image_id: int | str) -> Image.Image:
        entry = by_id[image_id]
        name, size = name_of(entry), size_of(entry)
        if name is None:
            raise ImageError("its entry has no file name")
        file = resolve_inside(find_image(folder, name) or folder / name, folder)
        return read_image(file) if size is None else _image(read_pixels(file, size))

    return read


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
