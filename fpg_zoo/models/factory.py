"""From a name to a model, and what the zoo knows of a name."""

from __future__ import annotations

import fnmatch
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fpg_zoo.config import DetectorConfig
from fpg_zoo.config.catalog import ARCHITECTURES, COSTS, Architecture
from fpg_zoo.config.validation import MOST_CLASSES
from fpg_zoo.errors import ConfigError, UnknownNameError
from fpg_zoo.text import quoted
from fpg_zoo.weights.manifest import Published, load_manifest, nearest

if TYPE_CHECKING:
    import torch

    from fpg_zoo.modeling.detectors import Detector

LOCAL, HUB = "local-dir:", "hf-hub:"


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

    @property
    def parameters(self) -> int:
        """Number of trained values (BatchNorm statistics are none)."""
        if self.name in COSTS:
            return COSTS[self.name].parameters
        from fpg_zoo.modeling.build import build_on_meta

        return sum(parameter.numel() for parameter in build_on_meta(self.config, self.name).parameters())

    @property
    def flops(self) -> int:
        """Floating-point operations for one square image of `config.preprocess`'s size, a multiplication and its
        addition being two; `fpg_zoo.modeling.flops.count_flops` has what is counted, and counts other sizes."""
        if self.name in COSTS:
            return COSTS[self.name].flops
        from fpg_zoo.modeling.flops import count_flops

        return count_flops(self.config)


def list_models(*patterns: str, pretrained: bool = False, exclude: str | Sequence[str] = ()) -> list[str]:
    """Names in the catalog, in natural order (2 before 10).

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
    checkpoints = manifest.of(architecture.name) if tag is None else (manifest.find(architecture.name, tag),)
    return ModelInfo(
        name=architecture.name,
        method=architecture.method,
        neck=architecture.neck,
        config=architecture.build_config(),
        checkpoints=checkpoints,
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
        raise UnknownNameError(f"no model {quoted(base)} in the zoo: {nearest(base, list(ARCHITECTURES))}")
    if dot and not tag:
        raise UnknownNameError(f"{quoted(name)} ends in a dot: name a tag after it, or leave it out")
    return ARCHITECTURES[base], tag or None


def check_source(name: str) -> None:
    """Whether `name` is one that gives a model with weights, without fetching anything.

    Raises:
        UnknownNameError: no such architecture or tag, or none was published.
    """
    if not name.startswith((LOCAL, HUB)):
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
            implies `pretrained`), `local-dir:PATH`, a folder with `config.json` and `model.safetensors`, or
            `hf-hub:OWNER/REPO[@REVISION]`, such a folder on the Hugging Face hub. May be left out with `checkpoint`,
            which is then recognized by its tensors.
        pretrained: load the published checkpoint; downloaded, verified and converted on first use.
        checkpoint: load this instead: a `.safetensors` file or a folder of ours; or a file of safetensors or of
            `torch.save` with a state dict, under our names or the reference's. It decides the number of classes and
            their names unless they are given; where it has no names, they are the catalog's or numbered.
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
    import torch

    from fpg_zoo.checkpoints.fit import with_classes
    from fpg_zoo.modeling.build import build_detector
    from fpg_zoo.models.loading import assemble, open_published, open_source

    classes = _classes_of(num_classes, class_names)
    elsewhere = name is not None and name.startswith((LOCAL, HUB))
    if checkpoint is not None and (pretrained or elsewhere):
        raise ConfigError(f"checkpoint={str(checkpoint)!r} and another source of weights: give one of them")
    if checkpoint is not None and not os.fspath(checkpoint):
        raise ConfigError("checkpoint='': give a file or a folder")
    if name is None and checkpoint is None:
        raise ConfigError("neither a name nor a checkpoint: give one; fpg_zoo.list_models() lists the names")
    if name is None or elsewhere or checkpoint is not None:
        architecture = None if name is None or elsewhere else _without_tag(name).name
        path = _folder_of(str(name)) if checkpoint is None else Path(os.path.expanduser(checkpoint))
        source = open_source(path, architecture, named=class_names is not None)
    else:
        known, tag = _architecture(name)
        config = known.build_config()
        if not (pretrained or tag):
            with torch.device("cpu"):  # whatever the program's default is
                model: Detector = build_detector(with_classes(config, classes), known.name)
            return model.eval().to(device)
        source = open_published(load_manifest().find(known.name, tag), config)
    model, fresh = assemble(source, classes)
    if fresh:
        warnings.warn(
            f"{model.name} for {len(model.class_names)} classes: not loaded, initialised at random: {', '.join(fresh)}",
            stacklevel=2,
        )
    return model.to(device)


def _folder_of(name: str) -> Path:
    """Where the model is that `local-dir:` or `hf-hub:` names; fetched, if need be."""
    if name.startswith(LOCAL):
        folder = Path(os.path.expanduser(name[len(LOCAL) :]))
        if folder.is_file() or name == LOCAL:
            raise ConfigError(f"{name}: {LOCAL} takes a folder; a file is read with checkpoint=")
        return folder
    from fpg_zoo.weights.hub.fetch import fetch

    return fetch(name[len(HUB) :])


def _without_tag(name: str) -> Architecture:
    architecture, tag = _architecture(name)
    if tag:
        raise ConfigError(f"{quoted(name)} names a published checkpoint and checkpoint= another one: leave the tag out")
    return architecture


def _classes_of(num_classes: int | None, class_names: Sequence[str] | None) -> tuple[str, ...] | int | None:
    if isinstance(class_names, str):
        raise ConfigError(f"class_names={quoted(class_names)} is one text: give a list of names")
    if num_classes is not None and (type(num_classes) is not int or not 1 <= num_classes <= MOST_CLASSES):
        raise ConfigError(
            f"num_classes={quoted(num_classes)}: give a whole number from 1 to {MOST_CLASSES}, or class_names"
        )
    if class_names is None:
        return num_classes
    if len(class_names) > MOST_CLASSES:
        raise ConfigError(f"class_names holds {len(class_names)} names, at most {MOST_CLASSES} will do")
    if num_classes is not None and num_classes != len(class_names):
        raise ConfigError(f"num_classes={num_classes}, but class_names holds {len(class_names)} names")
    return tuple(class_names)
