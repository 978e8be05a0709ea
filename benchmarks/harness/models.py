"""What is measured: models with real weights where they can be had, random ones that work as hard where not, and the
drawn images that they are given."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

import fpg_zoo
from fpg_zoo.config import DetectorConfig
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.errors import DownloadError
from fpg_zoo.evaluation.benchmark import EXPORTED, RANDOM, SAVED, native_size
from fpg_zoo.evaluation.random_weights import give_work
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.exported.formats import format_of
from fpg_zoo.inference.open_model import AnyDetector
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.preprocess import preprocess
from fpg_zoo.models.factory import published
from fpg_zoo.models.loading import fetch
from fpg_zoo.models.names import HUB, LOCAL
from fpg_zoo.weights.manifest import load_manifest

SEED = 0
JPEG_QUALITY = 95
PLAIN = "plain"
# What a form is prepared with, by its name.
FORM_SETTINGS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "optimized": {"optimize": True},
    "optimized_bf16": {"optimize": True, "dtype": "bf16"},
}
FORMS: dict[str, Callable[[Detector], Detector]] = {
    PLAIN: lambda model: model,
    "optimized": lambda model: fpg_zoo.optimize(model),
    "optimized_bf16": lambda model: fpg_zoo.optimize(model, dtype=torch.bfloat16),
}


def is_own(name: str) -> bool:
    """Whether a name is none of the catalog's, but `local-dir:`, `hf-hub:`, a config file or an exported one."""
    return name.startswith((LOCAL, HUB)) or is_config_file(name) or is_exported(name)


def is_exported(name: str) -> bool:
    """Whether a name is that of an exported file."""
    return format_of(name) is not None


def is_config_file(name: str) -> bool:
    """Whether a name is that of a TOML or JSON file."""
    return Path(name).suffix.lower() in (".toml", ".json")


def config_of(name: str) -> DetectorConfig:
    """The config of what `named` gives."""
    if is_exported(name):
        return _opened_file(name).config
    info = fpg_zoo.model_info(config=name) if is_config_file(name) else fpg_zoo.model_info(name)
    return info.config


def side_of(name: str) -> int:
    """The side in pixels of the square input that a model is measured on: 640, or less for the nano ones and for files
    that were exported for less."""
    if is_exported(name):
        return min(native_size(_opened_file(name)))
    return config_of(name).preprocess.longest_side


@functools.cache
def _opened_file(name: str) -> ExportedDetector:
    return ExportedDetector(name)


def scenes_of(side: int, count: int, *, split: Literal["train", "val"] = "val") -> list[Tensor]:
    """Drawn scenes of `side` x `side` pixels, (3, side, side) uint8; held-out ones by default."""
    scenes = ShapesDataset(split, count, size=(side, side))
    return [scenes[index].image for index in range(count)]


def batch_of(name: str, count: int, *, device: torch.device | str = "cpu") -> tuple[Tensor, list[tuple[int, int]]]:
    """The input of `Detector.detect` for that many scenes, which need no padding; (N, 3, side, side) float32."""
    images, sizes = preprocess(scenes_of(side_of(name), count), config_of(name).preprocess)
    return images.to(device), sizes


def draw_files(folder: Path, side: int, count: int) -> list[Path]:
    """Write held-out scenes as JPEG files, `side` wide and three quarters of it high."""
    scenes = ShapesDataset("val", count, size=(side * 3 // 4, side))
    files = [folder / f"{index + 1:06d}.jpg" for index in range(count)]
    for index, file in enumerate(files):
        Image.fromarray(scenes[index].image.permute(1, 2, 0).numpy()).save(file, quality=JPEG_QUALITY)
    return files


def described(images: Tensor) -> dict[str, Any]:
    """What a record says of a batch."""
    return {
        "what": f"scenes 0 to {len(images) - 1} of fpg_zoo.data.shapes val, drawn at this size",
        "shape": list(images.shape),
        "dtype": str(images.dtype).removeprefix("torch."),
        "memory_format": "channels first",
        "seed": SEED,
    }


def described_file(file: Path) -> dict[str, Any]:
    """What a record says of an image file."""
    content = file.read_bytes()
    with Image.open(file) as image:
        size = [image.height, image.width]
    return {
        "what": "scene 0 of fpg_zoo.data.shapes val, drawn at this size",
        "format": f"JPEG, quality {JPEG_QUALITY}",
        "size": size,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def unavailable(name: str) -> str | None:
    """Why a model's published checkpoint cannot be had; None if it can, and is here from now on.

    Raises:
        WeightsError: it can be had and not be trusted, or does not fit.
    """
    if not load_manifest().of(architecture_of(name)):
        return "none was published"
    entry = published(name)
    try:
        fetch(entry, fpg_zoo.model_info(name).config)
    except DownloadError as error:
        return str(error)
    return None


def whose(name: str) -> str:
    """Which weights a model is measured with: its tag, `SAVED`, `EXPORTED`, or `RANDOM` where there are none to be
    had."""
    if is_exported(name):
        return EXPORTED
    if is_own(name):
        return RANDOM if is_config_file(name) else SAVED
    return RANDOM if unavailable(name) else published(name).tag


def model_with(name: str, weights: str) -> Detector:
    """A model with its published weights, or at random where `weights` is `RANDOM`.

    Args:
        name: an architecture, or one with a tag; or as of `is_own`.
        weights: as `whose` gives them.
    """
    if weights == RANDOM:
        return at_random(name if is_own(name) else architecture_of(name))
    if weights == SAVED:
        return fpg_zoo.create_model(name)
    return fpg_zoo.create_model(published(name).name)


def forms_of(name: str, weights: str, forms: Sequence[str], device: str) -> Iterator[tuple[str, AnyDetector]]:
    """A model in each of these forms on a device; an exported file in the one it has, `EXPORTED`."""
    if is_exported(name):
        yield EXPORTED, ExportedDetector(name, device)
        return
    plain = model_with(name, weights).to(device)
    for form in forms:
        yield form, FORMS[form](plain)


def architecture_of(name: str) -> str:
    """The architecture of a name with or without a tag."""
    return name.partition(".")[0]


def at_random(name: str) -> Detector:
    """A model of seeded random weights that has as much to select, and to paste, as a trained one."""
    torch.manual_seed(SEED)
    model = fpg_zoo.create_model(config=name) if is_config_file(name) else fpg_zoo.create_model(name)
    give_work(model, *batch_of(name, 1))
    return model
