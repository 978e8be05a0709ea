"""From files of weights to models: tensors renamed, checked against the architecture, and put into place."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fpg_zoo.config import SCHEMA_VERSION, DetectorConfig, RetinaNetConfig, TwoStageConfig, from_dict, to_dict
from fpg_zoo.errors import CheckpointError, ConfigError
from fpg_zoo.modeling.detectors import Detector, build_detector
from fpg_zoo.weights.checkpoint import read_checkpoint
from fpg_zoo.weights.files import aside, explained, write_safetensors
from fpg_zoo.weights.manifest import Published
from fpg_zoo.weights.reference_names import reference_names
from fpg_zoo.weights.store import Store

_TOWER = "head.class_tower.0.conv.weight"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_SHOWN = 4  # names listed in an error before "and N more"


def build_on_meta(config: DetectorConfig, name: str) -> Detector:
    """The detector in eval mode without memory or initial values, on the meta device."""
    with torch.device("meta"):
        return build_detector(config, name).eval()


def with_classes(config: DetectorConfig, class_names: tuple[str, ...]) -> DetectorConfig:
    """The same detector for other classes."""
    return dataclasses.replace(config, class_names=class_names)


def numbered_classes(count: int) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(f"class {index}" for index in range(count))


def fitted_to(config: DetectorConfig, tensors: Mapping[str, Tensor]) -> DetectorConfig:
    """`config` with what the file decides: the number of classes, and the width of RetinaNet's towers.

    Class names stay if their number does, and become numbers otherwise.
    """
    if isinstance(config, TwoStageConfig):
        scores = tensors.get("box_head.classes.weight")
        count = None if scores is None else scores.shape[0] - 1
    else:
        scores, tower = tensors.get("head.classes.weight"), tensors.get(_TOWER)
        count = None if scores is None else scores.shape[0] // config.head.anchors.per_cell
        if tower is not None:
            config = dataclasses.replace(config, head=dataclasses.replace(config.head, width=tower.shape[0]))
    if count and count != len(config.class_names):
        config = with_classes(config, numbered_classes(count))
    return config


def from_reference(state_dict: Mapping[str, Tensor], config: DetectorConfig) -> dict[str, Tensor]:
    """Tensors of a published file under our names.

    Args:
        state_dict: under the reference's names.
        config: the architecture they are of; tower width and number of classes may differ.

    Returns:
        The same tensors, not copied; what the reference repeats per level is there once.

    Raises:
        CheckpointError: a tensor is missing or left over, or copies of a shared tensor differ.
    """
    mapped = reference_names(build_on_meta(config, "reference").state_dict(), config)
    expected = {theirs for names in mapped.values() for theirs in names}
    _refuse_differences(missing=expected - set(state_dict), unexpected=set(state_dict) - expected)
    tensors = {}
    for ours, names in mapped.items():
        first, *copies = (state_dict[name] for name in names)
        for name, copy in zip(names[1:], copies, strict=True):
            if not torch.equal(first, copy):
                raise CheckpointError(f"{name} differs from {names[0]}, but the levels share this convolution")
        tensors[ours] = first
    return tensors


def to_reference(tensors: Mapping[str, Tensor], config: DetectorConfig) -> dict[str, Tensor]:
    """Our tensors under the published files' names, not copied; a shared tensor appears once per level.

    Raises:
        CheckpointError: the reference has no name for one of them.
    """
    mapped = reference_names(tensors, config)
    return {theirs: tensors[ours] for ours, names in mapped.items() for theirs in names}


def load_reference_state_dict(model: Detector, state_dict: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a published file into a model, device and dtype of the model kept.

    Args:
        model: a detector of a published architecture.
        state_dict: every tensor of it, under the reference's names.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or copies of a shared one differ. The model
            is unchanged then.
    """
    tensors = from_reference(state_dict, model.config)
    _refuse_other_shapes(model.state_dict(), tensors)
    model.load_state_dict(tensors)


def reference_state_dict(model: Detector) -> dict[str, Tensor]:
    """The model's tensors under the published files' names, sharing the model's memory.

    Raises:
        CheckpointError: the model is of no published architecture.
    """
    return to_reference(model.state_dict(), model.config)


def assemble(
    config: DetectorConfig, name: str, tensors: Mapping[str, Tensor], class_names: tuple[str, ...] | None
) -> Detector:
    """A model of these tensors, which it takes over without a copy; nothing is initialised that is loaded.

    Args:
        config: the catalogue's; what the file decides (`fitted_to`) follows the file.
        name: the catalogue's.
        tensors: under our names.
        class_names: those wanted. Where their number is not the file's, the layers that depend on it are initialised
            afresh and a warning names them.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    config = fitted_to(config, tensors)
    fresh: tuple[str, ...] = ()
    if class_names is not None:
        if len(class_names) != len(config.class_names):
            fresh = build_on_meta(config, name).class_dependent
        config = with_classes(config, class_names)
    model = build_on_meta(config, name)
    wanted = model.state_dict()
    kept = {key: tensor for key, tensor in tensors.items() if not (fresh and key.startswith(fresh))}
    not_loaded = [key for key in wanted if fresh and key.startswith(fresh)]
    _refuse_differences(missing=wanted.keys() - kept.keys() - set(not_loaded), unexpected=kept.keys() - wanted.keys())
    _refuse_other_shapes(wanted, kept)
    if not_loaded:
        kept.update(_initial_values(config, not_loaded))
        warnings.warn(
            f"{name} for {len(config.class_names)} classes: not loaded, initialised at random: {', '.join(not_loaded)}",
            stacklevel=3,
        )
    model.load_state_dict(kept, assign=True)
    return model


def _initial_values(config: DetectorConfig, names: list[str]) -> dict[str, Tensor]:
    state = build_detector(config).state_dict()
    return {name: state[name] for name in names}


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


def described(path: Path, metadata: Mapping[str, str]) -> tuple[DetectorConfig, str]:
    """The config and architecture name that a safetensors file of ours tells in its metadata.

    Raises:
        CheckpointError: it tells none, or one that this version cannot read.
    """
    try:
        return _detector_config(json.loads(metadata["config"])), metadata["architecture"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its metadata describes no model of the zoo ({error}); make it with `fpg-zoo convert`"
        ) from None


def _detector_config(data: Any) -> DetectorConfig:
    config = from_dict(data)
    if not isinstance(config, (TwoStageConfig, RetinaNetConfig)):
        raise ConfigError(f"a {type(config).__name__} is no detector's config")
    return config


def read_local(folder: Path) -> tuple[DetectorConfig, str, dict[str, Tensor]]:
    """A model's folder: `config.json` and `model.safetensors`.

    Raises:
        CheckpointError: one of them is missing or cannot be read.
    """
    file = folder / CONFIG_FILE
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        version = description["schema_version"]
        if version != SCHEMA_VERSION:
            raise ConfigError(f"schema_version {version}, this version reads {SCHEMA_VERSION}")
        config, name = _detector_config(description["config"]), str(description["architecture"])
    except OSError as error:
        raise CheckpointError(
            f"{file}: {error.strerror or error}; a model's folder holds {CONFIG_FILE} and {WEIGHTS_FILE}, "
            "`fpg-zoo convert FILE.pth FOLDER` makes one"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: does not describe a model of the zoo ({error})") from None
    tensors, _ = read_safetensors(folder / WEIGHTS_FILE)
    return config, name, tensors


def save(model: Detector, target: Path, origin: Mapping[str, str]) -> None:
    """Write a model, all or nothing: to one `.safetensors` file, or else to a folder that `local-dir:` reads.

    Args:
        origin: what else the file's metadata should say, as where the weights come from.

    Raises:
        CacheError: the target cannot be written.
    """
    metadata = {**origin, **metadata_of(model.config, model.name)}
    one_file = target.suffix == ".safetensors"
    folder = target.parent if one_file else target
    with aside(folder, ".safetensors") as temporary:
        write_safetensors(model.state_dict(), temporary, metadata)
        with explained(folder):
            if not one_file:
                description = {
                    "schema_version": SCHEMA_VERSION,
                    "architecture": model.name,
                    "config": to_dict(model.config),
                }
                with aside(folder, ".json") as record:
                    record.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
                    record.replace(folder / CONFIG_FILE)
            temporary.replace(target if one_file else folder / WEIGHTS_FILE)


def metadata_of(config: DetectorConfig, name: str) -> dict[str, str]:
    """What a safetensors file of ours says about itself, enough to build its model again."""
    return {"format": "pt", "architecture": name, "config": json.dumps(to_dict(config))}


def fetch(entry: Published, config: DetectorConfig, store: Store | None = None) -> Path:
    """The published checkpoint as safetensors in the cache: found there, or downloaded, verified and converted.

    Raises:
        WeightsError: it cannot be had; nothing is left behind in the cache then.
    """
    store = store or Store()
    cached = store.cached(entry)
    if cached is not None:
        return cached
    with store.fetched(entry) as (file, sha256):
        tensors = from_reference(read_checkpoint(file).state_dict, config)
        fitted = with_classes(fitted_to(config, tensors), entry.class_names)
        _refuse_other_shapes(build_on_meta(fitted, entry.architecture).state_dict(), tensors)
        return store.keep(entry, tensors, sha256, metadata_of(fitted, entry.architecture))


def _refuse_differences(*, missing: set[str], unexpected: set[str]) -> None:
    if not missing and not unexpected:
        return
    parts = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("tensors missing", missing), ("tensors too many", unexpected))
        if names
    ]
    raise CheckpointError(f"the file does not fit the architecture, {'; '.join(parts)}. Is it of another model?")


def _refuse_other_shapes(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    different = [
        f"{name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
        for name, tensor in tensors.items()
        if tensor.shape != wanted[name].shape
    ]
    if different:
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        raise CheckpointError(
            f"tensors of other shapes: {'; '.join(different[:_SHOWN])}{more}. Is it of another model?"
        )


def _some(names: set[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
