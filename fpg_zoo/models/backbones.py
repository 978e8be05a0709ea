"""Backbones by name, and their weights from ImageNet: torchvision's through the zoo's cache, timm's through timm."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fpg_zoo.config.backbones import RESNETS, TIMM_PREFIX, BackboneConfig, TimmConfig
from fpg_zoo.config.detectors import PreprocessConfig
from fpg_zoo.config.families import NamedBackbone
from fpg_zoo.errors import CheckpointError, UnknownNameError
from fpg_zoo.text import printable, quoted
from fpg_zoo.weights.manifest import PublishedBackbone, load_manifest, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from fpg_zoo.modeling.detectors import Detector

# Names before a backbone's in others' files: of mmdetection's, mmpretrain's and our own detectors, of none in
# torchvision's and timm's.
_PREFIXES = ("", "backbone.")


def named_backbone(backbone: str | BackboneConfig) -> NamedBackbone:
    """The backbone that a name or a config stands for.

    Args:
        backbone: torchvision's name of a ResNet or ResNeXt, as `RESNETS` has them; `timm:NAME`; or a config.

    Raises:
        UnknownNameError: no such name; the message holds the nearest ones.
        ConfigError: timm is not installed, or its model cannot be a backbone.
    """
    if isinstance(backbone, str) and backbone.startswith(TIMM_PREFIX):
        from fpg_zoo.modeling.backbones.timm_backbone import timm_backbone

        return timm_backbone(backbone.removeprefix(TIMM_PREFIX))
    published = PreprocessConfig()
    if not isinstance(backbone, str):
        name = re.sub(r"\W+", "_", backbone.label).strip("_").lower()
        return NamedBackbone(config=backbone, short_name=name, mean=published.mean, std=published.std)
    if backbone not in RESNETS:
        raise UnknownNameError(
            f"no backbone {quoted(backbone)}: {nearest(backbone, list(RESNETS))} Any model of timm that gives feature "
            f"maps is {TIMM_PREFIX}NAME"
        )
    # Torchvision's mean and deviation are those of the published detectors.
    return NamedBackbone(config=RESNETS[backbone], short_name=backbone, mean=published.mean, std=published.std)


def weights_of(config: BackboneConfig) -> PublishedBackbone | None:
    """The manifest's row for a backbone of torchvision's; None for any other."""
    for name, known in RESNETS.items():
        if known == config:
            return load_manifest().backbone(name)
    return None


def has_weights(config: BackboneConfig) -> bool:
    """Whether `load_pretrained_backbone` has weights for it."""
    return isinstance(config, TimmConfig) or weights_of(config) is not None


def fetch_backbone(entry: PublishedBackbone) -> Path:
    """Torchvision's file as safetensors, from the cache or, the first time, the network.

    Raises:
        WeightsError: it cannot be had, is not the published file, or is of another backbone.
        StorageError: the cache cannot be written.
    """
    from fpg_zoo.checkpoints.mmdet_files import read_checkpoint
    from fpg_zoo.checkpoints.safetensors_files import write_safetensors
    from fpg_zoo.modeling.build import backbone_on_meta
    from fpg_zoo.weights.store import Store

    def convert(file: Path, origin: Mapping[str, str], target: Path) -> None:
        forms = backbone_on_meta(RESNETS[entry.architecture]).state_dict()
        tensors = _of_backbone(read_checkpoint(file).state_dict, forms, entry.url)
        write_safetensors(tensors, target, {**origin, "backbone": entry.architecture})

    return Store().obtain(entry, convert)


def load_pretrained_backbone(model: Detector) -> None:
    """Give a detector's backbone its weights from ImageNet.

    Raises:
        CheckpointError: none are published for this backbone.
        WeightsError: they cannot be had or trusted.
        StorageError: the cache cannot be written.
    """
    config = model.config.backbone
    if isinstance(config, TimmConfig):
        from fpg_zoo.modeling.backbones.timm_backbone import fetch_timm_weights

        load_backbone(model, fetch_timm_weights(config))
        return
    entry = weights_of(config)
    if entry is None:
        raise CheckpointError(
            f"no weights from ImageNet are known for the backbone of {model.name}, a {config.label}: give "
            "backbone_checkpoint= with a file of your own, or leave pretrained_backbone out"
        )
    load_backbone(model, fetch_backbone(entry))


def load_backbone(model: Detector, file: str | Path) -> None:
    """Give a detector's backbone the weights of a file.

    Args:
        model: the detector; of its other parts nothing changes.
        file: torchvision's, timm's, mmdetection's or mmpretrain's, or a detector of ours; written by torch.save or as
            safetensors, or a folder of ours. What it has beside the backbone is not looked at.

    Raises:
        CheckpointError: it cannot be read, or lacks tensors of the backbone or has them of other shapes. The model is
            unchanged then.
    """
    path = Path(os.path.expanduser(file))
    forms = model.backbone.state_dict()
    config = model.config.backbone
    tensors = _read(path)
    if isinstance(config, TimmConfig) and not any(name.startswith(_PREFIXES[1:]) for name in tensors):
        from fpg_zoo.modeling.backbones.timm_backbone import from_timm

        try:
            tensors = from_timm(config, tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{printable(path)}: {error}") from None
    model.backbone.load_state_dict(_of_backbone(tensors, forms, str(path)))


def _read(path: Path) -> Mapping[str, Tensor]:
    from fpg_zoo.checkpoints.mmdet_files import read_checkpoint
    from fpg_zoo.checkpoints.plain_names import with_plain_names
    from fpg_zoo.checkpoints.safetensors_files import WeightsFile, read_folder

    if path.is_dir():
        return read_folder(path)[2].tensors()
    if path.suffix.lower() == ".safetensors":
        return with_plain_names(WeightsFile(path).tensors())
    return read_checkpoint(path).state_dict


def _of_backbone(tensors: Mapping[str, Tensor], forms: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """The tensors of a backbone in a file, by the backbone's own names.

    BatchNorms of old files have no `num_batches_tracked`, which decides nothing here; it begins at 0.
    """
    import torch

    from fpg_zoo.checkpoints.fit import check_forms, some

    needed = {name for name in forms if not name.endswith("num_batches_tracked")}
    missing = {prefix: {name for name in needed if prefix + name not in tensors} for prefix in _PREFIXES}
    prefix = min(_PREFIXES, key=lambda prefix: len(missing[prefix]))
    if missing[prefix]:
        raise CheckpointError(
            f"{printable(place)}: not the weights of this backbone, as {len(missing[prefix])} of its {len(needed)} "
            f"tensors are missing: {some(sorted(missing[prefix]))}. Give a file of this very backbone, torchvision's, "
            "timm's, or a detector's"
        )
    found = {name: tensors[prefix + name] for name in forms if prefix + name in tensors}
    try:
        check_forms({name: forms[name] for name in found}, found)
    except CheckpointError as error:
        raise CheckpointError(f"{printable(place)}: of another backbone: {error}") from None
    fresh = {name: torch.zeros((), dtype=torch.int64) for name in forms if name not in found}
    return found | fresh
