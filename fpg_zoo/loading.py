"""From tensors to a model, and from a published checkpoint to the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fpg_zoo.config import DetectorConfig
from fpg_zoo.errors import CheckpointError
from fpg_zoo.fitting import build_on_meta, check_forms, fitted_to, with_classes
from fpg_zoo.model_files import metadata_of
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.reference import from_reference, refuse_differences
from fpg_zoo.weights.checkpoint import read_checkpoint
from fpg_zoo.weights.manifest import Published
from fpg_zoo.weights.store import Store


def assemble(
    config: DetectorConfig, name: str, tensors: Mapping[str, Tensor], classes: tuple[str, ...] | int | None
) -> tuple[Detector, list[str]]:
    """A model of these tensors, in eval mode, which it takes over without a copy; what is loaded is not initialised.

    Args:
        config: the catalogue's; what the file decides (`fitted_to`) follows the file.
        name: the catalogue's.
        tensors: under our names; of any floating precision, the model is of float32.
        classes: those wanted, by name or number; None for the file's. Where their number is not the file's, the layers
            that depend on it are not loaded but initialised for training.

    Returns:
        The model, and the names of the tensors that were not loaded.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape or kind.
    """
    given = fitted_to(config, tensors)
    model = build_on_meta(with_classes(given, classes), name)
    wanted = model.state_dict()
    other_classes = len(model.class_names) != len(given.class_names)
    fresh = [key for key in wanted if other_classes and key.startswith(model.class_dependent)]
    kept = {key: tensor for key, tensor in tensors.items() if key not in set(fresh)}
    refuse_differences(missing=wanted.keys() - kept.keys() - set(fresh), unexpected=kept.keys() - wanted.keys())
    check_forms(wanted, kept)
    cast = {key: tensor.to(wanted[key].dtype) for key, tensor in kept.items()}
    model.load_state_dict(cast, assign=True, strict=not fresh)
    if fresh:
        for layer in {key.rpartition(".")[0] for key in fresh}:
            model.get_submodule(layer).to_empty(device=torch.device("cpu"))
        model.reset_classes()
    return model, fresh


def fetch(entry: Published, config: DetectorConfig, store: Store | None = None) -> Path:
    """The published checkpoint as safetensors in the cache: found there, or downloaded, verified and converted.

    Args:
        entry: the manifest's row.
        config: the architecture's.
        store: the cache; the user's if None.

    Returns:
        The safetensors file's path.

    Raises:
        WeightsError: it cannot be had, trusted or fitted; nothing is left behind in the cache then.
        StorageError: the cache cannot be written; likewise.
    """
    store = store or Store()
    cached = store.cached(entry)
    if cached is not None:
        return cached
    with store.fetched(entry) as (file, sha256):
        tensors = from_reference(read_checkpoint(file).state_dict, config)
        fitted = fitted_to(config, tensors)
        check_forms(build_on_meta(fitted, entry.architecture).state_dict(), tensors)
        if len(fitted.class_names) != len(entry.class_names):
            raise CheckpointError(
                f"{entry.url}: for {len(fitted.class_names)} classes, the manifest names {len(entry.class_names)}"
            )
        named = with_classes(fitted, entry.class_names)
        return store.keep(entry, tensors, sha256, metadata_of(named, entry.architecture))
