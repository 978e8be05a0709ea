"""The catalog's detectors on other backbones: a family is a name without `r50`, such as `retinanet_fpg_chn128`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fpg_zoo.config.backbones import BackboneConfig
from fpg_zoo.config.catalog import ARCHITECTURES, Architecture
from fpg_zoo.config.detectors import DetectorConfig, TwoStageConfig, fitting_divisor, pyramid_strides
from fpg_zoo.config.heads import AnchorConfig
from fpg_zoo.config.necks import NeckConfig
from fpg_zoo.errors import ConfigError

_BACKBONE = "_r50_"

# By the family's name, the architecture of the catalog that it is the family of.
FAMILIES: dict[str, Architecture] = {
    name.replace(_BACKBONE, "_"): row for name, row in ARCHITECTURES.items() if _BACKBONE in name
}


@dataclass(frozen=True, kw_only=True)
class NamedBackbone:
    """A backbone as it is asked for by name.

    Attributes:
        config: what it is.
        short_name: goes into the detector's name.
        mean, std: what its weights take, per RGB channel on the 0..255 scale.
    """

    config: BackboneConfig
    short_name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def with_backbone(family: str, backbone: NamedBackbone) -> tuple[str, DetectorConfig]:
    """A family's detector on another backbone.

    The pyramid begins at the stride of the published one, or at the backbone's finest stage where that is coarser.
    Anchors keep their sizes in pixels: where the strides are larger, the scales are smaller.

    Args:
        family: a key of `FAMILIES`.
        backbone: to put in place of ResNet-50.

    Returns:
        Its name, such as `retinanet_resnet101_fpg_chn128`, and its config. On ResNet-50 both are the catalog's.

    Raises:
        ConfigError: the backbone is too coarse for the pyramid.
    """
    row = FAMILIES[family]
    published = row.build_config()
    if backbone.config == published.backbone:
        return row.name, published
    method = row.name.partition(_BACKBONE)[0]
    name = f"{method}_{backbone.short_name}_{row.name.removeprefix(method + _BACKBONE)}"
    first = published.backbone.strides[published.neck.start_level]
    starts = [level for level, stride in enumerate(backbone.config.strides) if stride >= first]
    if not starts:
        raise ConfigError(
            f"{backbone.short_name}: its strides are {backbone.config.strides}, and a pyramid of {family} begins at "
            f"{first}: choose a backbone with a stage of at least that"
        )
    start = starts[0]
    neck: NeckConfig = dataclasses.replace(published.neck, start_level=start)  # type: ignore[type-var]
    strides = pyramid_strides(backbone.config, neck)
    preprocess = dataclasses.replace(
        published.preprocess,
        mean=backbone.mean,
        std=backbone.std,
        pad_divisor=fitting_divisor(published.preprocess.pad_divisor, backbone.config, neck),
    )

    def moved(anchors: AnchorConfig) -> AnchorConfig:
        return dataclasses.replace(
            anchors,
            strides=strides,
            scales=tuple(scale * first / strides[0] for scale in anchors.scales),
        )

    changes = {"backbone": backbone.config, "neck": neck, "preprocess": preprocess}
    if isinstance(published, TwoStageConfig):
        rpn = dataclasses.replace(published.rpn, anchors=moved(published.rpn.anchors))
        return name, dataclasses.replace(published, rpn=rpn, **changes)  # type: ignore[arg-type]
    head = dataclasses.replace(published.head, anchors=moved(published.head.anchors))  # type: ignore[type-var]
    return name, dataclasses.replace(published, head=head, **changes)  # type: ignore[arg-type]
