"""What a set of tensors says of the detector they are of, and whether they fit it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fpg_zoo.config import DetectorConfig, RetinaHeadConfig, RetinaNetConfig, TwoStageConfig
from fpg_zoo.config.validation import MOST_CLASSES
from fpg_zoo.errors import CheckpointError
from fpg_zoo.text import printable

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_CHANNELS = 32 * MOST_CLASSES  # of anchors' scores; no file keeps its reader counting classes
_SHOWN = 4  # names listed in an error before "and N more"


def with_classes(config: DetectorConfig, classes: tuple[str, ...] | int | None) -> DetectorConfig:
    """The same detector for other classes, given by name or by number.

    A number that is the config's own keeps its names; any other numbers the classes. None keeps all.
    """
    if classes is None or classes == len(config.class_names):
        return config
    names = tuple(f"class {index}" for index in range(classes)) if isinstance(classes, int) else classes
    return dataclasses.replace(config, class_names=names)


def fitted_to(config: DetectorConfig, tensors: Mapping[str, Tensor]) -> DetectorConfig:
    """`config` with what the file decides: the number of classes, and the width of RetinaNet's towers.

    Args:
        config: the catalog's, say.
        tensors: under our names. One that is missing or of another rank decides nothing; `check_forms` refuses it.
    """
    return _FITS[type(config)](config, tensors)


def _fit_two_stage(config: TwoStageConfig, tensors: Mapping[str, Tensor]) -> DetectorConfig:
    return with_classes(config, _count(_channels(tensors, "box_head.classes.weight", rank=2, less=1)))


def _fit_retinanet(config: RetinaNetConfig, tensors: Mapping[str, Tensor]) -> DetectorConfig:
    width = _channels(tensors, "head.class_tower.0.conv.weight", rank=4)
    if width and isinstance(config.head, RetinaHeadConfig):
        config = dataclasses.replace(config, head=dataclasses.replace(config.head, width=width))
    scores = _channels(tensors, "head.classes.weight", rank=4)
    return with_classes(config, _count(scores // config.head.anchors.per_cell if scores else None))


_FITS: dict[type, Callable[[Any, Mapping[str, Tensor]], DetectorConfig]] = {
    TwoStageConfig: _fit_two_stage,
    RetinaNetConfig: _fit_retinanet,
}


def _count(classes: int | None) -> int | None:
    return classes if classes and classes <= MOST_CLASSES else None


def _channels(tensors: Mapping[str, Tensor], name: str, *, rank: int, less: int = 0) -> int | None:
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != rank:
        return None
    channels = tensor.shape[0] - less
    return channels if 0 < channels <= _MOST_CHANNELS else None


def check_forms(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Compare tensors with those of a model, of which they are a part.

    Raises:
        CheckpointError: one is of another shape, sparse, or of another kind of number (float16 to 64, whole).
    """
    other_shapes = shape_differences(expected, tensors)
    if other_shapes:
        raise CheckpointError(f"tensors of other shapes: {some(other_shapes, '; ')}. Is it of another model?")
    other_dtypes = [
        f"{name} is {tensor.dtype}, {tensor.layout}"
        for name, tensor in tensors.items()
        if tensor.layout != torch.strided
        or tensor.is_floating_point() != expected[name].is_floating_point()
        or tensor.is_complex()
        or (tensor.is_floating_point() and tensor.dtype not in _FLOATS)
    ]
    if other_dtypes:
        raise CheckpointError(f"tensors of a kind that weights are not: {some(other_dtypes, '; ')}")


def shape_differences(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """In words, the tensors whose shape is not the wanted one of the same name."""
    return [
        f"{name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if tensor.shape != expected[name].shape
    ]


def some(items: Sequence[str], separator: str = ", ") -> str:
    """The first few of many, and how many more there are; for a message."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(map(printable, items[:_SHOWN])) + more
