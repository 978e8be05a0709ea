"""From a name to a model, and what the zoo knows of a name."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fpg_zoo.catalog import ARCHITECTURES, Architecture
from fpg_zoo.config import DetectorConfig
from fpg_zoo.errors import CheckpointError, ConfigError, UnknownNameError
from fpg_zoo.weights.manifest import Published, load_manifest, nearest

if TYPE_CHECKING:
    import torch

    from fpg_zoo.modeling.detectors import Detector

LOCAL = "local-dir:"
DEFAULT_CLASS_COUNT_HINT = "give class_names, or a num_classes of at least 1"


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
        from fpg_zoo.loading import build_on_meta

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
    base, _, tag = name.partition(".")
    if base not in ARCHITECTURES:
        raise UnknownNameError(f"no model {base!r} in the zoo: {nearest(base, list(ARCHITECTURES))}")
    return ARCHITECTURES[base], tag or None


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
        checkpoint: load this file instead: `.safetensors` of ours, or a file in the reference's format. It decides the
            number of classes and their names unless they are given.
        num_classes: number of classes without background. Where it is not the checkpoint's, all layers but those that
            depend on it are loaded, and a warning names the ones that were not.
        class_names: the classes' names, in order of the heads.
        device: where to put the model.

    Raises:
        UnknownNameError: no such name or tag; the message holds the nearest ones.
        ConfigError: arguments that contradict each other.
        WeightsError: the weights cannot be fetched, trusted or fitted.
    """
    from fpg_zoo import loading
    from fpg_zoo.modeling.detectors import build_detector

    classes = _wanted_classes(num_classes, class_names)
    if checkpoint is not None and (pretrained or (name or "").startswith(LOCAL)):
        raise ConfigError(f"checkpoint={str(checkpoint)!r} and another source of weights: give one of them")
    if name is not None and name.startswith(LOCAL):
        config, local_name, tensors = loading.read_local(Path(os.path.expanduser(name[len(LOCAL) :])))
        model = loading.assemble(config, local_name, tensors, classes)
    elif checkpoint is not None:
        architecture = None if name is None else _without_tag(name)
        model = _from_checkpoint(architecture, Path(os.path.expanduser(checkpoint)), classes)
    elif name is None:
        raise ConfigError("neither a name nor a checkpoint: give one; fpg_zoo.list_models() lists the names")
    else:
        architecture, tag = _architecture(name)
        config = architecture.build_config()
        if pretrained or tag:
            entry = load_manifest().find(architecture.name, tag)
            tensors, _ = loading.read_safetensors(loading.fetch(entry, config))
            model = loading.assemble(
                loading.with_classes(config, entry.class_names), architecture.name, tensors, classes
            )
        else:
            model = build_detector(
                loading.with_classes(config, classes) if classes else config, architecture.name
            ).eval()
    return model.to(device)


def _without_tag(name: str) -> Architecture:
    architecture, tag = _architecture(name)
    if tag:
        raise ConfigError(f"{name!r} names a published checkpoint and checkpoint= another one: leave the tag out")
    return architecture


def _wanted_classes(num_classes: int | None, class_names: Sequence[str] | None) -> tuple[str, ...] | None:
    from fpg_zoo.loading import numbered_classes

    if isinstance(class_names, str):
        raise ConfigError(f"class_names={class_names!r} is one text: give a list of names")
    if class_names is not None:
        if num_classes is not None and num_classes != len(class_names):
            raise ConfigError(f"num_classes={num_classes}, but class_names holds {len(class_names)} names")
        num_classes = len(class_names)
    if num_classes is not None and num_classes < 1:
        raise ConfigError(f"num_classes={num_classes}: {DEFAULT_CLASS_COUNT_HINT}")
    if class_names is not None:
        return tuple(class_names)
    return None if num_classes is None else numbered_classes(num_classes)


def _from_checkpoint(architecture: Architecture | None, path: Path, classes: tuple[str, ...] | None) -> Detector:
    from fpg_zoo import loading
    from fpg_zoo.weights.checkpoint import read_checkpoint
    from fpg_zoo.weights.reference_names import recognise

    if path.suffix == ".safetensors":
        tensors, metadata = loading.read_safetensors(path)
        config, found_name = loading.described(path, metadata)
        if architecture is not None and architecture.name != found_name:
            raise CheckpointError(f"{path} holds a {found_name}, not a {architecture.name}")
        return loading.assemble(config, found_name, tensors, classes)
    content = read_checkpoint(path)
    try:
        if architecture is None:
            architecture = ARCHITECTURES[recognise(content.shapes)]
        config = architecture.build_config()
        tensors = loading.from_reference(content.state_dict, config)
        fitted = loading.fitted_to(config, tensors)
        told = content.class_names
        if told is not None and len(told) == len(fitted.class_names):
            fitted = loading.with_classes(fitted, told)
        return loading.assemble(fitted, architecture.name, tensors, classes)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
