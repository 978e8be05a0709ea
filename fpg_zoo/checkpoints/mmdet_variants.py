"""Detectors of mmdetection's that the catalog has not, recognized by their tensors: other depths, grids and widths."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from fpg_zoo.config import (
    BoxHeadConfig,
    DetectorConfig,
    FPGConfig,
    FPGGrid,
    FPNConfig,
    MaskHeadConfig,
    NASFPNConfig,
    NeckConfig,
    PreprocessConfig,
    ResNetConfig,
    RetinaHeadConfig,
    RetinaNetConfig,
    RPNConfig,
    TwoStageConfig,
)
from fpg_zoo.config.backbones import BACKBONE_STAGES, RESNETS
from fpg_zoo.config.catalog import RETINA_ANCHORS, RPN_ANCHORS
from fpg_zoo.config.detectors import fitting_divisor, pyramid_strides
from fpg_zoo.config.validation import MOST_CLASSES
from fpg_zoo.errors import ConfigError

_LEVELS = 5
_DIVISOR = PreprocessConfig().pad_divisor
_UP: Literal["up"] = "up"
_NODE = re.compile(r"neck\.fpn_transitions\.(\d{1,3})\.(\d{1,2})\.(\w+)\.")
_BLOCK = re.compile(r"backbone\.layer([1-4])\.(\d{1,3})\.")
_MOST = 200  # blocks or pathways that are looked at


class _OtherError(Exception):
    """It is none of the family."""


def variant_of(tensors: Mapping[str, Tensor]) -> tuple[str, DetectorConfig] | None:
    """The detector that mmdetection's names and shapes describe; None if it is none of FPG's, FPN's and NAS-FPN's kind.

    What no tensor tells is as published: anchors, thresholds, what is added beyond the backbone's levels. The caller
    compares every name and shape with those of the result.

    Args:
        tensors: under mmdetection's names; only the shapes are looked at.

    Returns:
        A name, such as `retinanet_resnet101_fpg5_chn128`, and the config.
    """
    try:
        backbone_name, backbone = _backbone(tensors)
        neck_name, neck = _neck(tensors)
        if "bbox_head.retina_cls.weight" in tensors:
            return f"retinanet_{backbone_name}_{neck_name}", _retinanet(tensors, backbone, neck)
        if "roi_head.bbox_head.fc_cls.weight" in tensors:
            method = "mask_rcnn" if "roi_head.mask_head.conv_logits.weight" in tensors else "faster_rcnn"
            return f"{method}_{backbone_name}_{neck_name}", _two_stage(tensors, backbone, neck)
    except (ConfigError, _OtherError):
        pass
    return None


def _shape(tensors: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != rank or not tensor.numel():
        raise _OtherError
    return tuple(tensor.shape)


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    """How many there are of a numbered tensor, `{}` being the number."""
    return next((number for number in range(_MOST) if name.format(number) not in tensors), _MOST)


def _backbone(tensors: Mapping[str, Tensor]) -> tuple[str, ResNetConfig]:
    width = _shape(tensors, "backbone.conv1.weight", 4)[0]
    blocks: dict[int, set[int]] = collections.defaultdict(set)
    for match in filter(None, map(_BLOCK.match, tensors)):
        blocks[int(match[1])].add(int(match[2]))
    first, second, third, fourth = (len(blocks[stage]) for stage in range(1, BACKBONE_STAGES + 1))
    if "backbone.layer1.0.conv3.weight" not in tensors:
        config = ResNetConfig(block="basic", depths=(first, second, third, fourth), width=width)
    else:
        inner, per_group = _shape(tensors, "backbone.layer1.0.conv2.weight", 4)[:2]
        groups = inner // per_group
        config = ResNetConfig(
            depths=(first, second, third, fourth),
            width=width,
            groups=groups,
            width_per_group=inner * 64 // (groups * width),
        )
    known = next((name for name, one in RESNETS.items() if one == config), None)
    return known or "resnet", config


def _neck(tensors: Mapping[str, Tensor]) -> tuple[str, NeckConfig]:
    if any(name.startswith("neck.fpn_transitions.") for name in tensors):
        return _fpg(tensors)
    laterals = _count(tensors, "neck.lateral_convs.{}.conv.weight")
    out_channels = _shape(tensors, "neck.lateral_convs.0.conv.weight", 4)[0]
    start_level = BACKBONE_STAGES - laterals
    width = "" if out_channels == 256 else f"_chn{out_channels}"
    if any(name.startswith("neck.fpn_stages.") for name in tensors):
        stacks = _count(tensors, "neck.fpn_stages.{}.gp_64_4.out_conv.conv.weight")
        number = "" if stacks == NASFPNConfig().stacks else str(stacks)
        return f"nasfpn{number}{width}", NASFPNConfig(out_channels=out_channels, stacks=stacks, start_level=start_level)
    convolved = _count(tensors, "neck.fpn_convs.{}.conv.weight") - laterals
    levels = laterals + convolved if convolved else _LEVELS
    fpn = FPNConfig(
        start_level=start_level,
        out_channels=out_channels,
        levels=levels,
        extra_levels="conv" if "neck.lateral_convs.0.bn.weight" not in tensors else "pool",
    )
    return f"fpn{width}", fpn


def _fpg(tensors: Mapping[str, Tensor]) -> tuple[str, NeckConfig]:
    nodes: dict[int, dict[int, set[str]]] = collections.defaultdict(lambda: collections.defaultdict(set))
    for match in filter(None, map(_NODE.match, tensors)):
        nodes[int(match[1])][int(match[2])].add(match[3])
    pathways = max(nodes) + 1
    levels = _count(tensors, "neck.output_transition.{}.conv_out.conv.weight")
    kinds = {kind for columns in nodes.values() for kinds in columns.values() for kind in kinds}
    laterals = _count(tensors, "neck.lateral_convs.{}.weight")
    out_channels = _shape(tensors, "neck.lateral_convs.0.weight", 4)[0]
    grid = FPGGrid(
        directions=(_UP,) * pathways,
        skipped=tuple(tuple(level for level in range(levels) if not nodes[path][level]) for path in range(pathways)),
        levels=levels,
        along="same_up" in kinds,
        lateral="conv" if "across_lateral" in kinds else None,
        skip="conv" if "across_skip" in kinds else None,
        across_from_coarser="across_down" in kinds,
    )
    config = FPGConfig(
        start_level=BACKBONE_STAGES - laterals,
        out_channels=out_channels,
        grid=grid,
        extra_levels="conv" if "neck.extra_downsamples.0.weight" in tensors else "pool",
    )
    number = "" if pathways == FPGConfig(start_level=0).grid.pathways else str(pathways)
    return f"fpg{number}" + ("" if out_channels == 256 else f"_chn{out_channels}"), config


def _retinanet(tensors: Mapping[str, Tensor], backbone: ResNetConfig, neck: NeckConfig) -> DetectorConfig:
    anchors = dataclasses.replace(RETINA_ANCHORS, strides=pyramid_strides(backbone, neck))
    classes = _shape(tensors, "bbox_head.retina_cls.weight", 4)[0] // anchors.per_cell
    return RetinaNetConfig(
        backbone=backbone,
        neck=neck,
        head=RetinaHeadConfig(
            anchors=anchors,
            width=_shape(tensors, "bbox_head.retina_cls.weight", 4)[1],
            depth=_count(tensors, "bbox_head.cls_convs.0.{}.conv.weight"),
        ),
        class_names=_numbered(classes),
        preprocess=PreprocessConfig(pad_divisor=fitting_divisor(_DIVISOR, backbone, neck)),
    )


def _two_stage(tensors: Mapping[str, Tensor], backbone: ResNetConfig, neck: NeckConfig) -> DetectorConfig:
    anchors = dataclasses.replace(RPN_ANCHORS, strides=pyramid_strides(backbone, neck))
    hidden, pooled = _shape(tensors, "roi_head.bbox_head.shared_fcs.0.weight", 2)
    mask = None
    if "roi_head.mask_head.conv_logits.weight" in tensors:
        mask = MaskHeadConfig(
            width=_shape(tensors, "roi_head.mask_head.conv_logits.weight", 4)[1],
            depth=_count(tensors, "roi_head.mask_head.convs.{}.conv.weight"),
        )
    return TwoStageConfig(
        backbone=backbone,
        neck=neck,
        rpn=RPNConfig(anchors=anchors, width=_shape(tensors, "rpn_head.rpn_conv.weight", 4)[0]),
        box=BoxHeadConfig(width=hidden, pool=math.isqrt(pooled // neck.out_channels)),
        mask=mask,
        class_names=_numbered(_shape(tensors, "roi_head.bbox_head.fc_cls.weight", 2)[0] - 1),
        preprocess=PreprocessConfig(pad_divisor=fitting_divisor(_DIVISOR, backbone, neck)),
        roi_levels=min(4, neck.levels),
    )


def _numbered(classes: int) -> tuple[str, ...]:
    if not 0 < classes <= MOST_CLASSES:
        raise _OtherError
    return tuple(f"class {index}" for index in range(classes))
