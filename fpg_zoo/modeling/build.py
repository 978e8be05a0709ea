"""From configs to modules: a config class and its module meet in one of these tables, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fpg_zoo.config import (
    BackboneConfig,
    DetectorConfig,
    FPGConfig,
    FPNConfig,
    NASFPNConfig,
    NeckConfig,
    ResNetConfig,
    RetinaHeadConfig,
    RetinaNetConfig,
    TimmConfig,
    TwoStageConfig,
)
from fpg_zoo.config.heads import DenseHeadConfig
from fpg_zoo.config.serialization import register_config
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.backbones.resnet import ResNet
from fpg_zoo.modeling.backbones.timm_backbone import TimmBackbone
from fpg_zoo.modeling.detectors import Detector, RetinaNet, TwoStageDetector
from fpg_zoo.modeling.heads.retina_head import RetinaHead
from fpg_zoo.modeling.necks.fpg import FPG
from fpg_zoo.modeling.necks.fpn import FPN
from fpg_zoo.modeling.necks.nasfpn import NASFPN
from fpg_zoo.modeling.parts import Backbone, DenseHead, Neck

_BACKBONES: dict[type, Callable[[Any], Backbone]] = {ResNetConfig: ResNet, TimmConfig: TimmBackbone}
_NECKS: dict[type, Callable[[Any, Sequence[int]], Neck]] = {FPGConfig: FPG, FPNConfig: FPN, NASFPNConfig: NASFPN}
_DENSE_HEADS: dict[type, Callable[[Any, int, int], DenseHead]] = {RetinaHeadConfig: RetinaHead}


def register_backbone(config: type, module: Callable[[Any], Backbone]) -> None:
    """Add a backbone to those that a detector's config can name.

    Args:
        config: a frozen dataclass with what `fpg_zoo.config.BackboneConfig` asks for. Saved models name it by its class
            name.
        module: takes such a config and gives a `fpg_zoo.modeling.parts.Backbone`; its class, usually.

    Raises:
        ConfigError: there is a backbone for this class, a config of this class's name, or it is no frozen dataclass.
    """
    _register(config, module, _BACKBONES, BackboneConfig)


def register_head(config: type, module: Callable[[Any, int, int], DenseHead]) -> None:
    """Add a head to those that a RetinaNet's config can name.

    Args:
        config: a frozen dataclass with what `fpg_zoo.config.heads.DenseHeadConfig` asks for. Saved models name it by
            its class name.
        module: takes such a config, the neck's channels and the number of classes, and gives a
            `fpg_zoo.modeling.parts.DenseHead`; its class, usually.

    Raises:
        ConfigError: there is a head for this class, a config of this class's name, or it is no frozen dataclass.
    """
    _register(config, module, _DENSE_HEADS, DenseHeadConfig)


def register_neck(config: type, module: Callable[[Any, Sequence[int]], Neck]) -> None:
    """Add a neck to those that a detector's config can name.

    Args:
        config: a frozen dataclass with what `fpg_zoo.config.NeckConfig` asks for. Saved models name it by its class
            name.
        module: takes such a config and the channels of the backbone's stages, and gives a
            `fpg_zoo.modeling.parts.Neck`; its class, usually.

    Raises:
        ConfigError: there is a neck for this class, a config of this class's name, or it is no frozen dataclass.
    """
    _register(config, module, _NECKS, NeckConfig)


def _register(config: type, module: Any, table: dict[type, Any], part: Any) -> None:
    if config in table:
        raise ConfigError(f"{config.__name__} is registered already, for {table[config].__name__}")
    register_config(config, part)
    table[config] = module


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone that `config` describes, initialized for training.

    Raises:
        ConfigError: no backbone is registered for its class.
    """
    build: Callable[[BackboneConfig], Backbone] = _find(config, _BACKBONES, "backbone", "register_backbone")
    return build(config)


def build_neck(config: NeckConfig, channels: Sequence[int]) -> Neck:
    """The neck that `config` describes, on backbone stages of `channels`, initialized for training.

    Raises:
        ConfigError: no neck is registered for its class, or it does not fit the backbone.
    """
    build: Callable[[NeckConfig, Sequence[int]], Neck] = _find(config, _NECKS, "neck", "register_neck")
    return build(config, channels)


def build_dense_head(config: DenseHeadConfig, in_channels: int, num_classes: int) -> DenseHead:
    """The head of a RetinaNet that `config` describes, initialized for training.

    Raises:
        ConfigError: no head is registered for its class.
    """
    build: Callable[[DenseHeadConfig, int, int], DenseHead] = _find(
        config, _DENSE_HEADS, "head of a RetinaNet", "modeling.build.register_head"
    )
    return build(config, in_channels, num_classes)


def _build_retinanet(config: RetinaNetConfig, backbone: Backbone, neck: Neck, name: str) -> RetinaNet:
    head = build_dense_head(config.head, neck.out_channels, len(config.class_names))
    return RetinaNet(config, backbone, neck, head, name)


_DETECTORS: dict[type, Callable[[Any, Backbone, Neck, str], Detector]] = {
    TwoStageConfig: TwoStageDetector,
    RetinaNetConfig: _build_retinanet,
}


def build_detector(config: DetectorConfig, name: str = "custom") -> Detector:
    """The detector that `config` describes, initialized for training, in train mode; of float32, on the current default
    device.

    Raises:
        ConfigError: nothing is registered for the class of the config or of its parts, or they do not fit.
    """
    build = _find(config, _DETECTORS, "detector", None)
    with _float32_by_default():
        backbone = build_backbone(config.backbone)
        detector: Detector = build(config, backbone, build_neck(config.neck, backbone.channels), name)
    return detector


def build_on_cpu(config: DetectorConfig, name: str) -> Detector:
    """The detector in eval mode, initialized for training, on the CPU whatever the program's default device is."""
    with torch.device("cpu"):
        return build_detector(config, name).eval()


def build_on_meta(config: DetectorConfig, name: str) -> Detector:
    """The detector in eval mode without memory or initial values, on the meta device."""
    with torch.device("meta"):
        return build_detector(config, name).eval()


def backbone_on_meta(config: BackboneConfig) -> Backbone:
    """The backbone in eval mode without memory or initial values, on the meta device."""
    with torch.device("meta"), _float32_by_default():
        return build_backbone(config).eval()


def _find(config: object, table: dict[type, Any], what: str, remedy: str | None) -> Any:
    if type(config) not in table:
        known = ", ".join(cls.__name__ for cls in table)
        add = f", or add yours with fpg_zoo.{remedy}" if remedy else ""
        raise ConfigError(f"{type(config).__name__} is no config of a {what}: use one of {known}{add}")
    return table[type(config)]


@contextlib.contextmanager
def _float32_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
