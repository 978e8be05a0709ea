"""State dicts of the published files and ours, one into the other, with every tensor on either side accounted for."""

from __future__ import annotations

import errno
import functools
import os
from collections import OrderedDict
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from torch import Tensor

from fpg_zoo.checkpoints.fit import check_forms, fitted_to, shape_differences, some
from fpg_zoo.checkpoints.mmdet_names import reference_names
from fpg_zoo.config import DetectorConfig
from fpg_zoo.config.catalog import ARCHITECTURES, Architecture
from fpg_zoo.errors import CheckpointError, StorageError
from fpg_zoo.files import aside, explained
from fpg_zoo.modeling.build import build_on_meta
from fpg_zoo.modeling.detectors import Detector


@functools.lru_cache(maxsize=32)
def _mapping(config: DetectorConfig) -> dict[str, tuple[str, ...]]:
    """The reference's names of each tensor of ours; kept, as building a model on the meta device takes a while."""
    return reference_names(build_on_meta(config, "reference").state_dict(), config)


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
    mapped = _mapping(config)
    expected = _all_names(mapped)
    refuse_differences(missing=expected - state_dict.keys(), unexpected=state_dict.keys() - expected)
    return under_our_names(state_dict, mapped)


def names_in(stored: Set[str], config: DetectorConfig) -> dict[str, tuple[str, ...]]:
    """Under which names a file has each tensor of a detector: ours, or the reference's.

    Args:
        stored: the names in the file.
        config: the architecture that its tensors are of; tower width and number of classes may differ.

    Returns:
        Per name of ours, the one in the file; several where the reference repeats a shared tensor.

    Raises:
        CheckpointError: a name is missing or left over, or some are ours and others the reference's.
    """
    names = _names_used(stored, config)
    _refuse_both(stored, config)
    expected = _all_names(names)
    refuse_differences(missing=expected - stored, unexpected=stored - expected)
    return names


def under_our_names(state_dict: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Tensors of a file under our names, not copied.

    Args:
        state_dict: under the names in the file.
        names: as `names_in` gives them.

    Raises:
        CheckpointError: copies of a shared tensor differ.
    """
    tensors = {}
    for ours, (first, *copies) in names.items():
        tensor = state_dict[first]
        for copy in copies:
            if state_dict[copy].dtype != tensor.dtype or not torch.equal(state_dict[copy], tensor):
                raise CheckpointError(f"{copy} differs from {first}, but the levels share this convolution")
        tensors[ours] = tensor
    return tensors


def _all_names(mapped: Mapping[str, tuple[str, ...]]) -> set[str]:
    return {name for names in mapped.values() for name in names}


def _names_used(stored: Set[str], config: DetectorConfig) -> dict[str, tuple[str, ...]]:
    """Our names for a detector's tensors if a file has any that is ours alone, else the reference's."""
    mapped = _mapping(config)
    return {name: (name,) for name in mapped} if stored & (mapped.keys() - _all_names(mapped)) else mapped


def _refuse_both(stored: Set[str], config: DetectorConfig) -> None:
    """Refuse a file in which some of a detector's tensors have our names and others the reference's."""
    mapped = _mapping(config)
    ours, theirs = mapped.keys() - _all_names(mapped), _all_names(mapped) - mapped.keys()
    if stored & ours and stored & theirs:
        raise CheckpointError(
            f"it names some tensors as the zoo does ({some(sorted(stored & ours))}) and others as the reference does "
            f"({some(sorted(stored & theirs))}): save the state dict of one model alone"
        )


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
        CheckpointError: a tensor is missing, left over, of another shape or kind, or copies of a shared one differ.
            The model is unchanged then.
    """
    tensors = from_reference(state_dict, model.config)
    check_forms(model.state_dict(), tensors)
    model.load_state_dict(tensors)


def reference_state_dict(model: Detector) -> dict[str, Tensor]:
    """The model's tensors under the published files' names, sharing the model's memory.

    Raises:
        CheckpointError: the model is of no published architecture.
    """
    return to_reference(model.state_dict(), model.config)


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
    with aside(target.parent, ".pth") as temporary, explained(target.parent):
        try:
            torch.save({"meta": meta, "state_dict": state_dict}, temporary)
        except RuntimeError as error:  # how torch's writer tells of a full disk
            raise OSError(errno.EIO, str(error).splitlines()[0]) from error
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    return len(state_dict)


def architecture_of(state_dict: Mapping[str, Tensor]) -> str:
    """The architecture of the catalogue that a state dict belongs to, told from its names and shapes.

    Args:
        state_dict: under our names or the reference's; only the tensors' shapes are looked at.

    Raises:
        CheckpointError: it is none of the zoo's, and the message says how it differs from the one it is nearest to; or
            it has names of both kinds.
    """
    nearest: tuple[int, Architecture, str] | None = None
    for architecture in ARCHITECTURES.values():
        config = architecture.build_config()
        names = _names_used(state_dict.keys(), config)
        expected = _all_names(names)
        missing, unexpected = expected - state_dict.keys(), state_dict.keys() - expected
        count, reason = len(missing) + len(unexpected), differences(missing=missing, unexpected=unexpected)
        if not count:
            tensors = {ours: state_dict[first] for ours, (first, *_) in names.items()}
            wanted = build_on_meta(fitted_to(config, tensors), architecture.name).state_dict()
            other_shapes = shape_differences(wanted, tensors)
            if not other_shapes:
                return architecture.name
            count, reason = len(other_shapes), f"tensors of other shapes: {some(other_shapes, '; ')}"
        if nearest is None or count < nearest[0]:
            nearest = (count, architecture, reason)
    assert nearest is not None  # the catalogue is not empty
    _refuse_both(state_dict.keys(), nearest[1].build_config())
    raise CheckpointError(
        f"no model of the zoo: against the nearest, {nearest[1].name}, {nearest[2]}. A file that describes no model "
        "must be a whole checkpoint of one that `fpg-zoo list` has; model.save_pretrained(...) writes a description"
    )


def differences(*, missing: Set[str], unexpected: Set[str]) -> str:
    """In words, which names are missing and which are left over."""
    kinds = (("missing", missing), ("too many", unexpected))
    return "; ".join(
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} {kind}: {some(sorted(names))}"
        for kind, names in kinds
        if names
    )


def refuse_differences(*, missing: Set[str], unexpected: Set[str]) -> None:
    """Raise if any name is missing or left over.

    Raises:
        CheckpointError: with the names.
    """
    if missing or unexpected:
        told = differences(missing=missing, unexpected=unexpected)
        raise CheckpointError(f"the file does not fit the architecture, {told}. Is it of another model?")
