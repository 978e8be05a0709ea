"""Models in files of ours: one safetensors file that describes itself, or a folder with `config.json` beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fpg_zoo.config import SCHEMA_VERSION, DetectorConfig, RetinaNetConfig, TwoStageConfig
from fpg_zoo.config_io import from_dict, to_dict
from fpg_zoo.errors import CheckpointError, ConfigError, StorageError
from fpg_zoo.files import aside, explained, write_safetensors
from fpg_zoo.modeling.detectors import Detector

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def description_of(config: DetectorConfig, name: str) -> dict[str, Any]:
    """What rebuilds a model, as JSON-ready data: schema version, architecture name, config."""
    return {"schema_version": SCHEMA_VERSION, "architecture": name, "config": to_dict(config)}


def metadata_of(config: DetectorConfig, name: str) -> dict[str, str]:
    """The description as a safetensors file's metadata, whose values are texts."""
    return {"format": "pt", "description": json.dumps(description_of(config, name))}


def _parse(place: Path, text: str) -> tuple[DetectorConfig, str]:
    try:
        description = json.loads(text)
        version = description["schema_version"]
        if version != SCHEMA_VERSION:
            raise ConfigError(f"schema_version {str(version)[:20]}, this version reads {SCHEMA_VERSION}")
        config = from_dict(description["config"])
        if not isinstance(config, (TwoStageConfig, RetinaNetConfig)):
            raise ConfigError(f"{type(config).__name__} is no detector's config")
        name = description["architecture"]
        if not isinstance(name, str):
            raise ConfigError("architecture is no text")
        return config, name
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{place}: does not describe a model of the zoo ({error})") from None


def described(path: Path, metadata: Mapping[str, str]) -> tuple[DetectorConfig, str]:
    """The config and architecture name that a safetensors file of ours tells in its metadata.

    Raises:
        CheckpointError: it tells none, or one that this version cannot read.
    """
    if "description" not in metadata:
        raise CheckpointError(f"{path}: its metadata describes no model; `fpg-zoo convert` makes files that do")
    return _parse(path, metadata["description"])


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors, mapped from the file where the platform can, and its metadata.

    Raises:
        CheckpointError: no such file, or not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); delete it and fetch it again") from None


def read_folder(folder: Path) -> tuple[DetectorConfig, str, dict[str, Tensor]]:
    """A model's folder: `config.json`, which decides, and `model.safetensors`.

    Returns:
        The config, the architecture's name, the tensors under our names.

    Raises:
        CheckpointError: one of the files is missing or cannot be read.
    """
    file = folder / CONFIG_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file}: {getattr(error, 'strerror', None) or error}; a model's folder holds {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, `fpg-zoo convert FILE.pth FOLDER` makes one"
        ) from None
    config, name = _parse(file, text)
    tensors, _ = read_safetensors(folder / WEIGHTS_FILE)
    return config, name, tensors


def save(model: Detector, target: Path, origin: Mapping[str, str]) -> None:
    """Write a model to one `.safetensors` file, or else to a folder that `local-dir:` reads; each file all or nothing.

    Args:
        model: in memory, not on the meta device.
        target: a path ending in `.safetensors`, or a folder, which is made if need be.
        origin: what else the file's metadata should say, as where the weights come from.

    Raises:
        StorageError: the target cannot be written.
    """
    one_file = target.suffix == ".safetensors"
    if one_file == target.is_dir() and target.exists():
        kind = "a folder" if one_file else "a file"
        raise StorageError(f"{target}: there is {kind} of this name; choose another")
    folder = target.parent if one_file else target
    metadata = {**origin, **metadata_of(model.config, model.name)}
    with aside(folder, ".safetensors") as weights, aside(folder, ".json") as config:
        write_safetensors(model.state_dict(), weights, metadata)
        with explained(folder):
            if not one_file:
                text = json.dumps(description_of(model.config, model.name), indent=1)
                config.write_text(text + "\n", encoding="utf-8")
            weights.replace(target if one_file else folder / WEIGHTS_FILE)
            if not one_file:
                config.replace(folder / CONFIG_FILE)
