"""What names of models stand for: the catalog's architectures, and families on a backbone."""

from __future__ import annotations

from fpg_zoo.config import BackboneConfig
from fpg_zoo.config.catalog import ARCHITECTURES, Architecture
from fpg_zoo.config.families import FAMILIES, with_backbone
from fpg_zoo.errors import ConfigError, UnknownNameError
from fpg_zoo.models.backbones import named_backbone
from fpg_zoo.text import quoted
from fpg_zoo.weights.manifest import nearest

LOCAL, HUB = "local-dir:", "hf-hub:"


def find_architecture(name: str, backbone: str | BackboneConfig | None = None) -> tuple[Architecture, str | None]:
    """What a name stands for, and the tag in it.

    Args:
        name: of an architecture, with or without a tag, or of a family.
        backbone: of a family, as of `create_model`. The row is made for it.

    Raises:
        UnknownNameError: no such architecture or backbone; the message holds the nearest names.
        ConfigError: a family without a backbone, or an architecture with one; or the two do not fit.
    """
    base, dot, tag = name.partition(".")
    if base not in ARCHITECTURES and base not in FAMILIES:
        known = FAMILIES if backbone is not None else ARCHITECTURES
        raise UnknownNameError(f"no model {quoted(base)} in the zoo: {nearest(base, list(known))}")
    if dot and not tag:
        raise UnknownNameError(f"{quoted(name)} ends in a dot: name a tag after it, or leave it out")
    if base in ARCHITECTURES:
        if backbone is not None:
            family = next((key for key, row in FAMILIES.items() if row.name == base), None)
            remedy = f"{family!r} takes one" if family else f"these take one: {', '.join(FAMILIES)}"
            raise ConfigError(f"{base} has a backbone, {_of(base)}, and backbone= names another: {remedy}")
        return ARCHITECTURES[base], tag or None
    row = FAMILIES[base]
    if backbone is None:
        raise ConfigError(
            f"{base} is a family: give it a backbone, as in backbone='resnet101'; on ResNet-50, as published, it is "
            f"{row.name}"
        )
    if tag:
        raise UnknownNameError(f"{quoted(name)}: tags name published weights, and a family has none: leave it out")
    own_name, config = with_backbone(base, named_backbone(backbone))
    return Architecture(name=own_name, method=row.method, neck=row.neck, build_config=lambda: config), None


def _of(name: str) -> str:
    return ARCHITECTURES[name].build_config().backbone.label
