"""From a name to a model, and what the zoo knows of a name."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fpg_zoo.catalog import ARCHITECTURES, Architecture
from fpg_zoo.config import MOST_CLASSES, DetectorConfig
from fpg_zoo.errors import CheckpointError, ConfigError, UnknownNameError
from fpg_zoo.weights.manifest import Published, load_manifest, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fpg_zoo.modeling.detectors import Detector

LOCAL = "local-dir:"


@dataclass(frozen=True)
class ModelInfo:
    """What the zoo knows of an architecture.

    Attributes:
        name: as `create_model` takes it.
        method, neck: as the published table names them.
        config: everything that decides its tensors and arithmetic.
        checkpoints: published ones, the default first.
    """

    name: str
    method: str
    neck: str
    config: DetectorConfig
    checkpoints: tuple[Published, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(entry.tag for entry in self.checkpoints)

    @cached_property
    def parameters(self) -> int:
        """Number of trained values (BatchNorm statistics are none)."""
        from fpg_zoo.fitting import build_on_meta

        return sum(parameter.numel() for parameter in build_on_meta(self.config, self.name).parameters())


def list_models(*patterns: str, pretrained: bool = False, exclude: str | Sequence[str] = ()) -> list[str]:
    """Names in the catalogue, in natural order (2 before 10).

    Args:
        patterns: as of fnmatch; a name is listed if any matches. None: all names.
        pretrained: only those with a published checkpoint.
        exclude: patterns of names to leave out.
    """
    excluded = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    manifest = load_manifest() if pretrained else None
    names = [
        name
        for name in ARCHITECTURES
        if (not patterns or _matches(name, patterns))
        and not _matches(name, excluded)
        and (manifest is None or manifest.of(name))
    ]
    return sorted(names, key=_natural)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def model_info(name: str) -> ModelInfo:
    """What the zoo knows of `name` (a tag is allowed and then the only one listed).

    Raises:
        UnknownNameError: no such architecture or tag; the message holds the nearest names.
    """
    architecture, tag = _architecture(name)
    manifest = load_manifest()
    entries = manifest.of(architecture.name) if tag is None else (manifest.find(architecture.name, tag),)
    return ModelInfo(
        name=architecture.name,
        method=architecture.method,
        neck=architecture.neck,
        config=architecture.build_config(),
        checkpoints=entries,
    )


def published(name: str) -> Published:
    """The published checkpoint that `name` or `name.tag` stands for.

    Raises:
        UnknownNameError: no such architecture or tag, or none was published.
    """
    architecture, tag = _architecture(name)
    return load_manifest().find(architecture.name, tag)


def _architecture(name: str) -> tuple[Architecture, str | None]:
    base, dot, tag = name.partition(".")
    if base not in ARCHITECTURES:
        raise UnknownNameError(f"no model {base!r} in the zoo: {nearest(base, list(ARCHITECTURES))}")
    if dot and not tag:
        raise UnknownNameError(f"{name!r} ends in a dot: name a tag after it, or leave it out")
    return ARCHITECTURES[base], tag or None


def check_source(name: str) -> None:
    """Whether `name` is one that gives a model with weights, without fetching anything.

    Raises:
        UnknownNameError: no such architecture or tag, or none was published.
    """
    if not name.startswith(LOCAL):
        published(name)


def create_model(
    name: str | None = None,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Detector:
    """A detector in eval mode.

    Args:
        name: an architecture (`mask_rcnn_r50_fpg_chn128`), one with a tag (`faster_rcnn_r50_fpg.coco_2021`, which
            implies `pretrained`), or `local-dir:PATH`, a folder with `config.json` and `model.safetensors`. May be left
            out with `checkpoint`, which is then recognised by its tensors.
        pretrained: load the published checkpoint; downloaded, verified and converted on first use.
        checkpoint: load this instead: a `.safetensors` file or a folder of ours, or a file in the reference's format.
            It decides the number of classes and their names unless they are given.
        num_classes: number of classes without background. Where it is not the checkpoint's, all layers but those that
            depend on it are loaded, and a warning names the ones that were not. The classes are then numbered.
        class_names: the classes' names, in order of the heads; their number counts as `num_classes`.
        device: where to put the model.

    Raises:
        UnknownNameError: no such name or tag; the message holds the nearest ones.
        ConfigError: arguments that contradict each other.
        WeightsError: the weights cannot be fetched, trusted or fitted.
        StorageError: they cannot be kept in the cache.
    """
    from fpg_zoo import loading
    from fpg_zoo.fitting import with_classes
    from fpg_zoo.model_files import read_safetensors
    from fpg_zoo.modeling.detectors import build_detector

    classes = _wanted_classes(num_classes, class_names)
    local = name is not None and name.startswith(LOCAL)
    if checkpoint is not None and (pretrained or local):
        raise ConfigError(f"checkpoint={str(checkpoint)!r} and another source of weights: give one of them")
    if name is None and checkpoint is None:
        raise ConfigError("neither a name nor a checkpoint: give one; fpg_zoo.list_models() lists the names")
    if name is None or local or checkpoint is not None:
        source = checkpoint if checkpoint is not None else str(name)[len(LOCAL) :]
        architecture = None if name is None or local else _without_tag(name)
        config, found, tensors = _read(Path(os.path.expanduser(source)), architecture, named=class_names is not None)
        with _naming(source):
            model, fresh = loading.assemble(config, found, tensors, classes)
    else:
        architecture, tag = _architecture(name)
        config = architecture.build_config()
        if pretrained or tag:
            entry = load_manifest().find(architecture.name, tag)
            path = loading.fetch(entry, config)
            with _naming(path):
                tensors, _ = read_safetensors(path)
                named = with_classes(config, entry.class_names)
                model, fresh = loading.assemble(named, architecture.name, tensors, classes)
        else:
            model, fresh = build_detector(with_classes(config, classes), architecture.name).eval(), []
    if fresh:
        warnings.warn(
            f"{model.name} for {len(model.class_names)} classes: not loaded, initialised at random: {', '.join(fresh)}",
            stacklevel=2,
        )
    return model.to(device)


def _without_tag(name: str) -> Architecture:
    architecture, tag = _architecture(name)
    if tag:
        raise ConfigError(f"{name!r} names a published checkpoint and checkpoint= another one: leave the tag out")
    return architecture


def _wanted_classes(num_classes: int | None, class_names: Sequence[str] | None) -> tuple[str, ...] | int | None:
    if isinstance(class_names, str):
        raise ConfigError(f"class_names={class_names!r} is one text: give a list of names")
    if num_classes is not None and (type(num_classes) is not int or not 1 <= num_classes <= MOST_CLASSES):
        raise ConfigError(f"num_classes={num_classes!r}: give a whole number from 1 to {MOST_CLASSES}, or class_names")
    if class_names is None:
        return num_classes
    if num_classes is not None and num_classes != len(class_names):
        raise ConfigError(f"num_classes={num_classes}, but class_names holds {len(class_names)} names")
    return tuple(class_names)


def _read(
    path: Path, architecture: Architecture | None, *, named: bool
) -> tuple[DetectorConfig, str, dict[str, Tensor]]:
    """Config, architecture name and tensors under our names, of a file of ours, a folder, or a file of the reference.

    `named`: the user gives class names, so that the file's do not matter.
    """
    from fpg_zoo.fitting import fitted_to, with_classes
    from fpg_zoo.model_files import described, read_folder, read_safetensors
    from fpg_zoo.reference import architecture_of, from_reference
    from fpg_zoo.weights.checkpoint import read_checkpoint

    if os.path.isdir(path) or path.suffix == ".safetensors":
        if os.path.isdir(path):
            config, name, tensors = read_folder(path)
        else:
            tensors, metadata = read_safetensors(path)
            config, name = described(path, metadata)
        if architecture is not None and architecture.name != name:
            raise CheckpointError(f"{path} holds a {name}, not a {architecture.name}")
        fitted = fitted_to(config, tensors)
        if fitted != config:
            raise CheckpointError(
                f"{path}: its description is not that of its tensors, which are of {len(fitted.class_names)} classes "
                f"(described: {len(config.class_names)}) or of other towers; make it again with `fpg-zoo convert`"
            )
        return config, name, tensors
    content = read_checkpoint(path)
    with _naming(path):
        if architecture is None:
            architecture = ARCHITECTURES[architecture_of(content.state_dict)]
        tensors = from_reference(content.state_dict, architecture.build_config())
        config = fitted_to(architecture.build_config(), tensors)
        told = content.class_names
        if told is not None and not named and len(told) != len(config.class_names):
            raise CheckpointError(
                f"its meta names {len(told)} classes, its head has {len(config.class_names)}: pass class_names"
            )
        try:
            return with_classes(config, None if named else told), architecture.name, tensors
        except ConfigError as error:
            raise CheckpointError(f"its meta's class names cannot be used ({error}): pass class_names") from None


@contextlib.contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    """Put the file's name before what is said of its content."""
    try:
        yield
    except CheckpointError as error:
        told = str(error)
        raise CheckpointError(told if told.startswith(str(source)) else f"{source}: {told}") from None
