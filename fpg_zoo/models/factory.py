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

from fpg_zoo.config import BackboneConfig, DetectorConfig
from fpg_zoo.config.catalog import ARCHITECTURES, COSTS, Cost
from fpg_zoo.config.validation import MOST_CLASSES, check_positive
from fpg_zoo.errors import ConfigError
from fpg_zoo.models.config_file import read_config_file
from fpg_zoo.models.names import HUB, LOCAL, find_architecture
from fpg_zoo.text import quoted
from fpg_zoo.weights.manifest import Published, load_manifest

if TYPE_CHECKING:
    import torch

    from fpg_zoo.modeling.detectors import Detector


@dataclass(frozen=True)
class ModelInfo:
    """What the zoo knows of an architecture.

    Attributes:
        name: as `create_model` takes it, or as the model is called that it makes of a family and a backbone.
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
        return self.cost().parameters

    @property
    def flops(self) -> int:
        """Floating-point operations for one square image, as of `cost`."""
        return self.cost().flops

    def cost(self, image_size: int | tuple[int, int] | None = None) -> Cost:
        """Parameters, FLOPs, activations and memory for one image; `Cost` says what each is.

        Of the catalog's models at their own size they are known. Else they are counted, which takes seconds and no
        weights.

        Args:
            image_size: the side, or (height, width), in pixels of the image as the network gets it, before padding;
                None for what a square image is resized to.

        Raises:
            ConfigError: a side is no whole number of at least 1, or a part of the config is not registered.
        """
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if size is not None:
            for side in size:
                check_positive(image_size=side)
        catalogs = self.name in COSTS and self.config == ARCHITECTURES[self.name].build_config()
        if catalogs and size in (None, self.config.preprocess.square_size):
            return COSTS[self.name]
        from fpg_zoo.modeling.costs import count_costs

        return count_costs(self.config, size)


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


def model_info(
    name: str | None = None,
    *,
    backbone: str | BackboneConfig | None = None,
    config: DetectorConfig | str | Path | None = None,
) -> ModelInfo:
    """What the zoo knows of a model (a tag is allowed and then the only one listed).

    Args:
        name: as of `create_model`: of an architecture, with or without a tag, or of a family; `local-dir:PATH` or
            `hf-hub:OWNER/REPO[@REVISION]`, of which the description alone is read.
        backbone, config: as of `create_model`.

    Raises:
        UnknownNameError: no such architecture, tag or backbone; the message holds the nearest names.
        ConfigError: a family without a backbone, or an architecture with one; or the two do not fit; or the config file
            describes no detector.
        WeightsError: the description of `local-dir:` or `hf-hub:` cannot be had or read.
    """
    _check_sources(name, False, None, backbone, config, False, None)
    if config is not None or (name is not None and name.startswith((LOCAL, HUB))):
        if config is not None:
            own_name, own_config = _own(name, backbone, config)
        else:
            from fpg_zoo.checkpoints.safetensors_files import read_folder

            own_config, own_name, _ = read_folder(_folder_of(str(name)))
        neck = type(own_config.neck).__name__.removesuffix("Config")
        return ModelInfo(name=own_name, method=own_config.method, neck=neck, config=own_config, checkpoints=())
    assert name is not None
    known, tag = find_architecture(name, backbone)
    manifest = load_manifest()
    return ModelInfo(
        name=known.name,
        method=known.method,
        neck=known.neck,
        config=known.build_config(),
        checkpoints=manifest.of(known.name) if tag is None else (manifest.find(known.name, tag),),
    )


def published(name: str) -> Published:
    """The published checkpoint that `name` or `name.tag` stands for.

    Raises:
        UnknownNameError: no such architecture or tag, or none was published.
    """
    architecture, tag = find_architecture(name)
    return load_manifest().find(architecture.name, tag)


def is_source_of_weights(name: str | None) -> bool:
    """Whether a name stands for a model with its weights, as one with a tag, `local-dir:` or `hf-hub:` does."""
    return name is not None and (name.startswith((LOCAL, HUB)) or "." in name)


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
    backbone: str | BackboneConfig | None = None,
    config: DetectorConfig | str | Path | None = None,
    pretrained_backbone: bool = False,
    backbone_checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    ignore_settings: bool = False,
    device: torch.device | str = "cpu",
) -> Detector:
    """A detector in eval mode.

    Args:
        name: an architecture (`mask_rcnn_r50_fpg_chn128`), one with a tag (`faster_rcnn_r50_fpg.coco_2021`, which
            implies `pretrained`), `local-dir:PATH`, a folder with `config.json` and `model.safetensors`, or
            `hf-hub:OWNER/REPO[@REVISION]`, such a folder on the Hugging Face hub. Or a family, which is an
            architecture's name without its backbone (`mask_rcnn_fpg_chn128`), with `backbone`. May be left out with
            `checkpoint`, which is then recognized by its tensors.
        pretrained: load the published checkpoint; downloaded, verified and converted on first use.
        checkpoint: load this instead: a `.safetensors` file or a folder of ours; or a file of safetensors or of
            `torch.save` with a state dict, under our names or the reference's. It decides the number of classes and
            their names unless they are given; where it has no names, they are the catalog's or numbered.
        backbone: a family's: one of torchvision's ResNets or ResNeXts by its name (`resnet101`); any model of timm that
            gives feature maps, as `timm:NAME`, by timm's name with or without a tag; or a config. The pyramid begins at
            the published one's stride, or at the backbone's finest where that is coarser; anchors keep their sizes.
        config: a detector of your own, in place of a name's: its config, or a TOML or JSON file that holds all of it or
            what differs from a named one (`docs/backbones.md`). With it, `name` is what to call it.
        pretrained_backbone: begin with a backbone trained on ImageNet: torchvision's weights, downloaded, verified and
            converted on first use, or those that timm names, from the Hugging Face hub.
        backbone_checkpoint: begin with the backbone in this file: torchvision's, timm's, mmdetection's, mmpretrain's,
            or a detector's of ours.
        num_classes: number of classes without background. Where it is not the checkpoint's, all layers but those that
            depend on it are loaded, and a warning names the ones that were not. The classes are then numbered.
        class_names: the classes' names, in order of the heads; their number counts as `num_classes`.
        ignore_settings: a checkpoint of mmdetection's carries the settings that it was tested with, which become the
            model's. Where one cannot be had, name it in a warning and go on without it.
        device: where to put the model.

    Raises:
        UnknownNameError: no such name, tag or backbone; the message holds the nearest ones.
        ConfigError: arguments that contradict each other, or a backbone of timm without timm.
        WeightsError: the weights cannot be fetched, trusted or fitted.
        StorageError: they cannot be kept in the cache.
    """
    from fpg_zoo.checkpoints.fit import with_classes
    from fpg_zoo.modeling.build import build_on_cpu
    from fpg_zoo.models.backbones import load_backbone, load_pretrained_backbone
    from fpg_zoo.models.loading import Named, assemble, open_published, open_source

    classes = _classes_of(num_classes, class_names)
    elsewhere = name is not None and name.startswith((LOCAL, HUB))
    _check_sources(name, pretrained, checkpoint, backbone, config, pretrained_backbone, backbone_checkpoint)
    if (name is None and config is None) or elsewhere:
        path = _folder_of(str(name)) if checkpoint is None else Path(os.path.expanduser(checkpoint))
        source = open_source(path, None, named=class_names is not None, ignore_settings=ignore_settings)
    else:
        if config is None:
            row, tag = find_architecture(str(name), backbone)
            known = Named(row.name, row.build_config())
        else:
            known, tag = Named(*_own(name, backbone, config)), None
        if checkpoint is not None:
            if tag:
                raise ConfigError(
                    f"{quoted(name)} names a published checkpoint and checkpoint= another one: leave the tag out"
                )
            path = Path(os.path.expanduser(checkpoint))
            source = open_source(path, known, named=class_names is not None, ignore_settings=ignore_settings)
        elif pretrained or tag:
            if pretrained_backbone or backbone_checkpoint is not None:
                raise ConfigError(
                    f"{quoted(name)} names a published checkpoint, which has a backbone: leave the tag out"
                )
            source = open_published(load_manifest().find(known.name, tag), known.config)
        else:
            model = build_on_cpu(with_classes(known.config, classes), known.name)
            if pretrained_backbone:
                load_pretrained_backbone(model)
            if backbone_checkpoint is not None:
                load_backbone(model, backbone_checkpoint)
            return model.to(device)
    model, fresh = assemble(source, classes)
    if fresh:
        warnings.warn(
            f"{model.name} for {len(model.class_names)} classes: not loaded, initialised at random: {', '.join(fresh)}",
            stacklevel=2,
        )
    return model.to(device)


def _own(
    name: str | None, backbone: str | BackboneConfig | None, config: DetectorConfig | str | Path
) -> tuple[str, DetectorConfig]:
    """The name and the config of a detector of the user's own."""
    if not isinstance(config, (str, os.PathLike)):
        if backbone is not None:
            raise ConfigError("backbone= and a whole config: its backbone is config.backbone; leave backbone= out")
        return name or "custom", config
    own_name, own_config = read_config_file(Path(os.path.expanduser(config)), backbone)
    return name or own_name, own_config


def _check_sources(
    name: str | None,
    pretrained: bool,
    checkpoint: str | Path | None,
    backbone: str | BackboneConfig | None,
    config: DetectorConfig | str | Path | None,
    pretrained_backbone: bool,
    backbone_checkpoint: str | Path | None,
) -> None:
    """Refuse arguments that name no source of weights or several."""
    elsewhere = name is not None and name.startswith((LOCAL, HUB))
    if name is None and checkpoint is None and config is None:
        raise ConfigError("neither a name nor a checkpoint: give one; fpg_zoo.list_models() lists the names")
    if config is not None and (pretrained or elsewhere):
        raise ConfigError("config= and another detector's weights: a config of your own has none; give checkpoint=")
    for argument, file in (("checkpoint", checkpoint), ("backbone_checkpoint", backbone_checkpoint)):
        if file is not None and not os.fspath(file):
            raise ConfigError(f"{argument}='': give a file or a folder")
    if checkpoint is not None and (pretrained or elsewhere):
        raise ConfigError(f"checkpoint={str(checkpoint)!r} and another source of weights: give one of them")
    if pretrained_backbone and backbone_checkpoint is not None:
        raise ConfigError(f"pretrained_backbone and backbone_checkpoint={str(backbone_checkpoint)!r}: give one of them")
    if pretrained_backbone or backbone_checkpoint is not None:
        given = "pretrained_backbone" if pretrained_backbone else "backbone_checkpoint"
        if pretrained or checkpoint is not None or elsewhere:
            raise ConfigError(f"{given} and the weights of a whole detector, which has a backbone: give one of them")
    if backbone is not None and config is None and (name is None or elsewhere):
        raise ConfigError("backbone= goes with the name of a family, as in create_model('retinanet_fpg', backbone=...)")


def _folder_of(name: str) -> Path:
    """Where the model is that `local-dir:` or `hf-hub:` names; fetched, if need be."""
    if name.startswith(LOCAL):
        folder = Path(os.path.expanduser(name[len(LOCAL) :]))
        if folder.is_file() or name == LOCAL:
            raise ConfigError(f"{name}: {LOCAL} takes a folder; a file is read with checkpoint=")
        return folder
    from fpg_zoo.weights.hub.fetch import fetch

    return fetch(name[len(HUB) :])


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
