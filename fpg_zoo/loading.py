"""From files to a model, headers first: nothing is read of a file whose names and shapes are not those of its model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fpg_zoo.catalog import ARCHITECTURES
from fpg_zoo.config import DetectorConfig
from fpg_zoo.errors import CheckpointError, ConfigError
from fpg_zoo.fitting import build_on_meta, check_forms, fitted_to, with_classes
from fpg_zoo.model_files import WeightsFile, metadata_of, read_folder, write_safetensors
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.reference import architecture_of, from_reference, refuse_differences
from fpg_zoo.weights.checkpoint import Checkpoint, read_checkpoint
from fpg_zoo.weights.manifest import Published
from fpg_zoo.weights.store import Store, packaged_file


@dataclass(frozen=True)
class Source:
    """A model's weights before they are read.

    Attributes:
        place: what to call it in errors.
        config, name: of the model.
        forms: under our names, tensors of the stored ones' shape and kind of number, on any device.
        read: gives the tensors themselves.
    """

    place: Path
    config: DetectorConfig
    name: str
    forms: Mapping[str, Tensor]
    read: Callable[[], Mapping[str, Tensor]]


def open_source(path: Path, architecture: str | None, *, named: bool) -> Source:
    """What a file or folder of ours, or a file in the reference's format, holds.

    Args:
        path: the file or folder.
        architecture: the name of the one it must be of; None for whatever it is.
        named: the user gives class names, so that the file's do not matter.

    Raises:
        CheckpointError: it cannot be read, is of another architecture, or contradicts itself.
    """
    if os.path.isdir(path) or path.suffix.lower() == ".safetensors":
        if os.path.isdir(path):
            config, name, file = read_folder(path)
        else:
            file = WeightsFile(path)
            config, name = file.described()
        if architecture is not None and architecture != name:
            raise CheckpointError(f"{path} holds a {name}, not a {architecture}")
        fitted = fitted_to(config, file.forms)
        if fitted != config:
            raise CheckpointError(
                f"{path}: its description is not that of its tensors, which are of {len(fitted.class_names)} classes "
                f"(described: {len(config.class_names)}) or of other towers; make it again with `fpg-zoo convert`"
            )
        return Source(path, config, name, file.forms, file.tensors)
    with _naming(path):
        return _open_reference(path, architecture, named=named)


def _open_reference(path: Path, architecture: str | None, *, named: bool) -> Source:
    content = read_checkpoint(path)
    name = architecture or architecture_of(content.state_dict)
    catalogued = ARCHITECTURES[name].build_config()
    tensors = from_reference(content.state_dict, catalogued)
    config = fitted_to(catalogued, tensors)
    if not named:
        config = _with_told_classes(config, content)
    return Source(path, config, name, tensors, lambda: tensors)


def _with_told_classes(config: DetectorConfig, content: Checkpoint) -> DetectorConfig:
    """The config with the class names that the file tells, if it tells any."""
    remedy = "as in create_model(checkpoint=..., class_names=[...]).save_pretrained(...) in Python"
    try:
        told = content.class_names
        if told is not None and len(told) != len(config.class_names):
            raise CheckpointError(f"number of classes named: {len(told)}, of its head: {len(config.class_names)}")
        return with_classes(config, told)
    except (CheckpointError, ConfigError) as error:
        reason = str(error).removesuffix("; pass class_names")
        raise CheckpointError(f"its meta's class names cannot be used ({reason}): pass class_names, {remedy}") from None


@contextlib.contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Put the file's name before what is said of its content."""
    try:
        yield
    except CheckpointError as error:
        told = str(error)
        if told.startswith(str(place)):
            raise
        raise type(error)(f"{place}: {told}") from None


def assemble(source: Source, classes: tuple[str, ...] | int | None) -> tuple[Detector, list[str]]:
    """A model of these weights, in eval mode, which it takes over without a copy; what is loaded is not initialised.

    Args:
        source: of any floating precision; the model is of float32. What the file decides (`fitted_to`) follows it.
        classes: those wanted, by name or number; None for the file's. Where their number is not the file's, the layers
            that depend on it are not loaded but initialised for training.

    Returns:
        The model, and the names of the tensors that were not loaded.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape or kind. Nothing has been read then.
    """
    with _naming(source.place):
        given = fitted_to(source.config, source.forms)
        model = build_on_meta(with_classes(given, classes), source.name)
        wanted = model.state_dict()
        other_classes = len(model.class_names) != len(given.class_names)
        fresh = [key for key in wanted if other_classes and key.startswith(model.class_dependent)]
        kept = {key: form for key, form in source.forms.items() if key not in set(fresh)}
        refuse_differences(missing=wanted.keys() - kept.keys() - set(fresh), unexpected=kept.keys() - wanted.keys())
        check_forms(wanted, kept)
    tensors = source.read()
    cast = {key: tensors[key].to(wanted[key].dtype) for key in kept}
    model.load_state_dict(cast, assign=True, strict=not fresh)
    if fresh:
        for layer in {key.rpartition(".")[0] for key in fresh}:
            model.get_submodule(layer).to_empty(device=torch.device("cpu"))
        model.reset_classes()
    return model, fresh


def open_published(entry: Published, config: DetectorConfig) -> Source:
    """The published checkpoint, from the package, the cache or, the first time, the network.

    Raises:
        WeightsError: it cannot be had, trusted or fitted.
        StorageError: the cache cannot be written.
    """
    file = WeightsFile(fetch(entry, config))
    return Source(file.path, with_classes(config, entry.class_names), entry.architecture, file.forms, file.tensors)


def fetch(entry: Published, config: DetectorConfig, store: Store | None = None) -> Path:
    """The published checkpoint as safetensors: it comes with the zoo, or is in the cache, or is fetched into it, that
    is downloaded, verified and converted.

    Args:
        entry: the manifest's row.
        config: the architecture's.
        store: the cache; the user's if None.

    Returns:
        The safetensors file's path.

    Raises:
        WeightsError: it cannot be had, trusted or fitted. What has come of an unfinished download is kept, to go on
            from there.
        StorageError: the cache cannot be written; likewise.
    """

    def convert(file: Path, origin: Mapping[str, str], target: Path) -> None:
        tensors = from_reference(read_checkpoint(file).state_dict, config)
        fitted = fitted_to(config, tensors)
        check_forms(build_on_meta(fitted, entry.architecture).state_dict(), tensors)
        if len(fitted.class_names) != len(entry.class_names):
            raise CheckpointError(
                f"{entry.url}: for {len(fitted.class_names)} classes, the manifest names {len(entry.class_names)}"
            )
        named = with_classes(fitted, entry.class_names)
        write_safetensors(tensors, target, {**origin, **metadata_of(named, entry.architecture)})

    if entry.packaged:
        return packaged_file(entry)
    return (store or Store()).obtain(entry, convert)
