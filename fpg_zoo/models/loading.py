"""From files to a model, headers first: nothing is read of a file whose names and shapes are not those of its model."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fpg_zoo.checkpoints.fit import check_forms, fitted_to, shape_differences, some, with_classes
from fpg_zoo.checkpoints.mmdet_convert import (
    Names,
    all_names,
    differences,
    from_reference,
    names_in,
    names_used,
    refuse_both,
    refuse_differences,
    to_reference,
    under_our_names,
)
from fpg_zoo.checkpoints.mmdet_files import Checkpoint, read_checkpoint
from fpg_zoo.checkpoints.mmdet_names import reference_names
from fpg_zoo.checkpoints.mmdet_settings import inference_settings_of, read_config_text, with_inference_settings
from fpg_zoo.checkpoints.mmdet_variants import variant_of
from fpg_zoo.checkpoints.plain_names import with_plain_names
from fpg_zoo.checkpoints.safetensors_files import WeightsFile, metadata_of, read_folder, write_safetensors
from fpg_zoo.checkpoints.tensor_memory import with_own_memory
from fpg_zoo.config import DetectorConfig
from fpg_zoo.config.catalog import ARCHITECTURES, Architecture
from fpg_zoo.errors import CheckpointError, ConfigError, StorageError
from fpg_zoo.files import atomic_write
from fpg_zoo.modeling.build import build_on_cpu, build_on_meta
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.text import printable
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


class Named(NamedTuple):
    """An architecture: a name and the config that it stands for."""

    name: str
    config: DetectorConfig


def open_source(path: Path, architecture: Named | None, *, named: bool, ignore_settings: bool = False) -> Source:
    """What a file or folder of ours, or anybody's file of tensors under our names or the reference's, holds.

    Args:
        path: the file or folder.
        architecture: the one it must be of; None for whatever it is.
        named: the user gives class names, so that the file's do not matter.
        ignore_settings: of testing in a file of mmdetection's: name those that cannot be had in a warning, and go on.

    Raises:
        CheckpointError: it cannot be read, is of another architecture, contradicts itself, or has settings of testing
            that cannot be had.
    """
    if os.path.isdir(path):
        return _open_described(path, *read_folder(path), architecture)
    if path.suffix.lower() == ".safetensors":
        file = WeightsFile(path)
        if file.is_described:
            return _open_described(path, *file.described(), file, architecture)
        # save_model of safetensors keeps one of several tensors in one memory, and tells of the others.
        aliases = {name: kept for name, kept in file.metadata.items() if kept in file.forms and name not in file.forms}
        stored = with_plain_names({name: name for name in file.forms} | aliases)
        with _naming(path):
            return _open_bare(
                path,
                architecture,
                {plain: file.forms[name] for plain, name in stored.items()},
                lambda: {plain: file.tensor(name) for plain, name in stored.items()},
            )
    with _naming(path):
        content = read_checkpoint(path)
        source = _open_bare(path, architecture, content.state_dict, lambda: content.state_dict)
        config = source.config if named else _with_meta_classes(source.config, content)
        return dataclasses.replace(source, config=_with_meta_settings(config, content, ignore_settings))


def _open_described(
    path: Path, config: DetectorConfig, name: str, file: WeightsFile, architecture: Named | None
) -> Source:
    """What a file that describes its model holds."""
    if architecture is not None and architecture.name != name:
        raise CheckpointError(f"{path} holds a {name}, not a {architecture.name}")
    fitted = fitted_to(config, file.forms)
    if fitted != config:
        raise CheckpointError(
            f"{path}: its description is not that of its tensors, which are of {len(fitted.class_names)} classes "
            f"(described: {len(config.class_names)}) or of other towers; fetch it again, or save the model again"
        )
    return Source(path, config, name, file.forms, file.tensors)


def _open_bare(
    path: Path, architecture: Named | None, forms: Mapping[str, Tensor], read: Callable[[], Mapping[str, Tensor]]
) -> Source:
    """What a file holds that describes no model, under our names or the reference's.

    Args:
        path, architecture: as of `open_source`.
        forms: by the names in the file, as of `Source`.
        read: gives the tensors, by those names.
    """
    name, config = architecture or _recognized(forms)
    names = names_in(forms.keys(), names_or_ours(config))
    ours = {name: forms[first] for name, (first, *_) in names.items()}
    return Source(path, fitted_to(config, ours), name, ours, lambda: under_our_names(read(), names))


def _recognized(forms: Mapping[str, Tensor]) -> Named:
    """The architecture of the catalog, or the variant of one, that a state dict belongs to.

    Raises:
        CheckpointError: as of `architecture_of`.
    """
    try:
        name = architecture_of(forms)
    except CheckpointError:
        variant = variant_of(forms)
        if variant is None or not _has_forms(*variant, forms):
            raise
        return Named(*variant)
    return Named(name, ARCHITECTURES[name].build_config())


def _has_forms(name: str, config: DetectorConfig, forms: Mapping[str, Tensor]) -> bool:
    """Whether tensors under the reference's names are those of a detector, all of them and no others."""
    try:
        names = names_of(config)
    except (CheckpointError, ConfigError):
        return False
    if all_names(names) != forms.keys():
        return False
    expected = build_on_meta(config, name).state_dict()
    return not shape_differences(expected, {ours: forms[first] for ours, (first, *_) in names.items()})


def _with_meta_classes(config: DetectorConfig, content: Checkpoint) -> DetectorConfig:
    """The config with the class names that the file tells, if it tells any."""
    remedy = "as in create_model(checkpoint=..., class_names=[...]).save_pretrained(...) in Python"
    try:
        names = content.class_names
        if names is not None and len(names) != len(config.class_names):
            raise CheckpointError(f"number of classes named: {len(names)}, of its head: {len(config.class_names)}")
        return with_classes(config, names)
    except (CheckpointError, ConfigError) as error:
        reason = str(error).removesuffix("; pass class_names")
        raise CheckpointError(f"its meta's class names cannot be used ({reason}): pass class_names, {remedy}") from None


def _with_meta_settings(config: DetectorConfig, content: Checkpoint, ignore: bool) -> DetectorConfig:
    """The config with the settings of testing that the file tells, if it tells any."""
    try:
        test_config = read_config_text(content.meta)
        if test_config is None:
            return config
        settings = inference_settings_of(test_config)
        unsupported = settings.unsupported
        changed = with_inference_settings(config, settings)
    except (CheckpointError, ConfigError) as error:
        changed, unsupported = config, [str(error)]
    if unsupported and not ignore:
        raise CheckpointError(
            f"it was tested with settings that the zoo has not, and would detect otherwise: {'; '.join(unsupported)}. "
            "Go on without them by create_model(checkpoint=..., ignore_settings=True) or "
            "fpg-zoo convert --ignore-settings"
        )
    if unsupported:
        warnings.warn(f"settings of the checkpoint that are left out: {'; '.join(unsupported)}", stacklevel=4)
    return changed


@contextlib.contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Put the file's name before what is said of its content."""
    try:
        yield
    except CheckpointError as error:
        message = str(error)
        if message.startswith(printable(place, max_length=None)):  # as the message has it
            raise
        raise type(error)(f"{place}: {message}") from None


def assemble(source: Source, classes: tuple[str, ...] | int | None) -> tuple[Detector, list[str]]:
    """A model of these weights, in eval mode, which it takes over; what is loaded is not initialized.

    Nothing is copied but numbers of another precision, and tensors that share memory: each becomes one of its own.

    Args:
        source: of any floating precision; the model is of float32. What the file decides (`fitted_to`) follows it.
        classes: those wanted, by name or number; None for the file's. Where their number is not the file's, the layers
            that depend on it are not loaded but initialized for training.

    Returns:
        The model, and the names of the tensors that were not loaded.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape or kind, and nothing has been read then; or
            the values contradict themselves.
    """
    with _naming(source.place):
        own_config = fitted_to(source.config, source.forms)
        model = build_on_meta(with_classes(own_config, classes), source.name)
        expected = model.state_dict()
        other_classes = len(model.class_names) != len(own_config.class_names)
        fresh = [key for key in expected if other_classes and key.startswith(model.class_dependent)]
        kept = {key: form for key, form in source.forms.items() if key not in set(fresh)}
        refuse_differences(missing=expected.keys() - kept.keys() - set(fresh), unexpected=kept.keys() - expected.keys())
        check_forms(expected, kept)
        tensors = source.read()
    cast = with_own_memory({key: tensors[key].to(expected[key].dtype) for key in kept})
    model.load_state_dict(cast, assign=True, strict=not fresh)
    if fresh:
        for layer in {key.rpartition(".")[0] for key in fresh}:
            model.get_submodule(layer).to_empty(device=torch.device("cpu"))
        model.reset_classes()
    _fill_buffers(model)
    return model, fresh


def _fill_buffers(model: Detector) -> None:
    """Give a model that was built on the meta device the buffers that no file has, as they follow from its config."""
    if any(buffer.is_meta for buffer in model.buffers()):
        built = dict(build_on_cpu(model.config, model.name).named_buffers())
        for name, buffer in model.named_buffers():
            if buffer.is_meta:
                place, _, key = name.rpartition(".")
                setattr(model.get_submodule(place), key, built[name])


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
        tensors = from_reference(read_checkpoint(file).state_dict, names_of(config))
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


def names_of_model(model: Detector) -> Names:
    """The reference's names of each tensor of a model.

    Raises:
        CheckpointError: it has none for one of them.
    """
    return reference_names(model.state_dict(), model.mmdet_tables, model.config.neck.levels)


@functools.lru_cache(maxsize=32)
def names_of(config: DetectorConfig) -> Names:
    """As `names_of_model`, of the model that a config describes; kept, as building it takes a while.

    Raises:
        CheckpointError: as there.
    """
    return names_of_model(build_on_meta(config, "reference"))


@functools.lru_cache(maxsize=32)
def names_or_ours(config: DetectorConfig) -> Names:
    """As `names_of`; where the reference has no such detector, our own names alone."""
    try:
        return names_of(config)
    except CheckpointError:
        return {name: (name,) for name in build_on_meta(config, "reference").state_dict()}


def load_reference_state_dict(model: Detector, state_dict: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a published file into a model, device and dtype of the model kept.

    Args:
        model: a detector of a published architecture.
        state_dict: every tensor of it, under the reference's names.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or kind, or copies of a shared one differ.
            The model is unchanged then.
    """
    tensors = from_reference(state_dict, names_of_model(model))
    check_forms(model.state_dict(), tensors)
    model.load_state_dict(tensors)


def reference_state_dict(model: Detector) -> dict[str, Tensor]:
    """The model's tensors under the published files' names, sharing the model's memory.

    Raises:
        CheckpointError: the model is of no published architecture.
    """
    return to_reference(model.state_dict(), names_of_model(model))


def save_reference(model: Detector, target: Path) -> int:
    """Write a checkpoint that the reference loads, with the class names where its 2.x and its 3.x look for them.

    Args:
        model: of a published architecture, for any classes.
        target: the file, replaced if it is there.

    Returns:
        The number of tensors in it, those counted again that the reference repeats for every level.

    Raises:
        CheckpointError: the model is of no published architecture.
        StorageError: the file cannot be written; what was there before is kept.
    """
    state_dict = OrderedDict((name, tensor.detach().cpu()) for name, tensor in reference_state_dict(model).items())
    meta = {"CLASSES": model.class_names, "dataset_meta": {"classes": model.class_names}}
    if target.is_dir():
        raise StorageError(f"{target}: there is a folder of this name; choose another")
    with atomic_write(target) as temporary:
        try:
            torch.save({"meta": meta, "state_dict": state_dict}, temporary)
        except RuntimeError as error:  # how torch's writer tells of a full disk
            raise OSError(errno.EIO, str(error).splitlines()[0]) from error
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
    return len(state_dict)


def architecture_of(state_dict: Mapping[str, Tensor]) -> str:
    """The architecture of the catalog that a state dict belongs to, recognized by its names and shapes.

    Args:
        state_dict: under our names or the reference's; only the tensors' shapes are looked at.

    Raises:
        CheckpointError: it is none of the zoo's, and the message says how it differs from the one it is nearest to; or
            it has names of both kinds.
    """
    nearest: tuple[int, Architecture, str] | None = None
    for architecture in ARCHITECTURES.values():
        config = architecture.build_config()
        names = names_used(state_dict.keys(), names_or_ours(config))
        expected = all_names(names)
        missing, unexpected = expected - state_dict.keys(), state_dict.keys() - expected
        count, reason = len(missing) + len(unexpected), differences(missing=missing, unexpected=unexpected)
        if not count:
            tensors = {ours: state_dict[first] for ours, (first, *_) in names.items()}
            forms = build_on_meta(fitted_to(config, tensors), architecture.name).state_dict()
            other_shapes = shape_differences(forms, tensors)
            if not other_shapes:
                return architecture.name
            count, reason = len(other_shapes), f"tensors of other shapes: {some(other_shapes, '; ')}"
        if nearest is None or count < nearest[0]:
            nearest = (count, architecture, reason)
    assert nearest is not None  # the catalog is not empty
    refuse_both(state_dict.keys(), names_or_ours(nearest[1].build_config()))
    raise CheckpointError(
        f"no model of the zoo: against the nearest, {nearest[1].name}, {nearest[2]}. A file that describes no model "
        "must be a whole checkpoint of one that `fpg-zoo list` has; model.save_pretrained(...) writes a description"
    )
