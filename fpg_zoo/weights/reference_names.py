"""The names that the published files give to our tensors, as literal tables, one for each part of a detector.

A row maps a module of ours to its module in the reference; what follows in the tensor's name (`weight`, `bias`,
`running_mean`...) is the same on both sides. `{a}` and `{b}` stand for numbers. `{each}` stands for every pyramid
level: the reference stores the one tensor that the levels share once per level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from fpg_zoo.config import DetectorConfig, FPGConfig, FPNConfig, RetinaNetConfig
from fpg_zoo.errors import CheckpointError

Table = tuple[tuple[str, str], ...]

_BACKBONE: Table = (
    ("backbone.conv1", "backbone.conv1"),
    ("backbone.bn1", "backbone.bn1"),
    ("backbone.layer{a}.{b}.conv1", "backbone.layer{a}.{b}.conv1"),
    ("backbone.layer{a}.{b}.bn1", "backbone.layer{a}.{b}.bn1"),
    ("backbone.layer{a}.{b}.conv2", "backbone.layer{a}.{b}.conv2"),
    ("backbone.layer{a}.{b}.bn2", "backbone.layer{a}.{b}.bn2"),
    ("backbone.layer{a}.{b}.conv3", "backbone.layer{a}.{b}.conv3"),
    ("backbone.layer{a}.{b}.bn3", "backbone.layer{a}.{b}.bn3"),
    ("backbone.layer{a}.{b}.downsample.0", "backbone.layer{a}.{b}.downsample.0"),
    ("backbone.layer{a}.{b}.downsample.1", "backbone.layer{a}.{b}.downsample.1"),
)

_FPG: Table = (
    ("neck.inputs.project.{a}", "neck.lateral_convs.{a}"),
    ("neck.inputs.extra.{a}", "neck.extra_downsamples.{a}"),
    ("neck.pathways.{a}.nodes.{b}.from_finer.conv", "neck.fpn_transitions.{a}.{b}.same_up.conv"),
    ("neck.pathways.{a}.nodes.{b}.from_finer.norm", "neck.fpn_transitions.{a}.{b}.same_up.bn"),
    ("neck.pathways.{a}.nodes.{b}.lateral.conv", "neck.fpn_transitions.{a}.{b}.across_lateral.conv"),
    ("neck.pathways.{a}.nodes.{b}.lateral.norm", "neck.fpn_transitions.{a}.{b}.across_lateral.bn"),
    ("neck.pathways.{a}.nodes.{b}.across_from_coarser.conv", "neck.fpn_transitions.{a}.{b}.across_down.conv.conv"),
    ("neck.pathways.{a}.nodes.{b}.across_from_coarser.norm", "neck.fpn_transitions.{a}.{b}.across_down.conv.bn"),
    ("neck.pathways.{a}.nodes.{b}.skip.conv", "neck.fpn_transitions.{a}.{b}.across_skip.conv"),
    ("neck.pathways.{a}.nodes.{b}.skip.norm", "neck.fpn_transitions.{a}.{b}.across_skip.bn"),
    ("neck.outputs.{a}", "neck.output_transition.{a}.conv_out.conv"),
)

# With pooled extra levels the laterals are normalised; with convolved ones they are plain, and the extra levels'
# convolutions continue the numbering of the three outputs.
_FPN_POOLED: Table = (
    ("neck.laterals.{a}.conv", "neck.lateral_convs.{a}.conv"),
    ("neck.laterals.{a}.norm", "neck.lateral_convs.{a}.bn"),
    ("neck.outputs.{a}.conv", "neck.fpn_convs.{a}.conv"),
    ("neck.outputs.{a}.norm", "neck.fpn_convs.{a}.bn"),
)

_FPN_CONVOLVED: Table = (
    ("neck.laterals.{a}", "neck.lateral_convs.{a}.conv"),
    ("neck.outputs.{a}.conv", "neck.fpn_convs.{a}.conv"),
    ("neck.outputs.{a}.norm", "neck.fpn_convs.{a}.bn"),
    ("neck.extra.0.conv", "neck.fpn_convs.3.conv"),
    ("neck.extra.0.norm", "neck.fpn_convs.3.bn"),
    ("neck.extra.1.conv", "neck.fpn_convs.4.conv"),
    ("neck.extra.1.norm", "neck.fpn_convs.4.bn"),
)

_NASFPN: Table = (
    ("neck.laterals.{a}.conv", "neck.lateral_convs.{a}.conv"),
    ("neck.laterals.{a}.norm", "neck.lateral_convs.{a}.bn"),
    ("neck.extra.{a}.conv", "neck.extra_downsamples.{a}.0.conv"),
    ("neck.extra.{a}.norm", "neck.extra_downsamples.{a}.0.bn"),
    ("neck.stacks.{a}.p4_gp_of_6_4.conv", "neck.fpn_stages.{a}.gp_64_4.out_conv.conv"),
    ("neck.stacks.{a}.p4_gp_of_6_4.norm", "neck.fpn_stages.{a}.gp_64_4.out_conv.bn"),
    ("neck.stacks.{a}.p4_sum_of_4_4.conv", "neck.fpn_stages.{a}.sum_44_4.out_conv.conv"),
    ("neck.stacks.{a}.p4_sum_of_4_4.norm", "neck.fpn_stages.{a}.sum_44_4.out_conv.bn"),
    ("neck.stacks.{a}.p3_sum_of_4_3.conv", "neck.fpn_stages.{a}.sum_43_3.out_conv.conv"),
    ("neck.stacks.{a}.p3_sum_of_4_3.norm", "neck.fpn_stages.{a}.sum_43_3.out_conv.bn"),
    ("neck.stacks.{a}.p4_sum_of_3_4.conv", "neck.fpn_stages.{a}.sum_34_4.out_conv.conv"),
    ("neck.stacks.{a}.p4_sum_of_3_4.norm", "neck.fpn_stages.{a}.sum_34_4.out_conv.bn"),
    ("neck.stacks.{a}.p5_sum_of_5_and_gp_4_3.conv", "neck.fpn_stages.{a}.sum_55_5.out_conv.conv"),
    ("neck.stacks.{a}.p5_sum_of_5_and_gp_4_3.norm", "neck.fpn_stages.{a}.sum_55_5.out_conv.bn"),
    ("neck.stacks.{a}.p7_sum_of_7_and_gp_5_4.conv", "neck.fpn_stages.{a}.sum_77_7.out_conv.conv"),
    ("neck.stacks.{a}.p7_sum_of_7_and_gp_5_4.norm", "neck.fpn_stages.{a}.sum_77_7.out_conv.bn"),
    ("neck.stacks.{a}.p6_gp_of_7_5.conv", "neck.fpn_stages.{a}.gp_75_6.out_conv.conv"),
    ("neck.stacks.{a}.p6_gp_of_7_5.norm", "neck.fpn_stages.{a}.gp_75_6.out_conv.bn"),
)

_TWO_STAGE: Table = (
    ("rpn.conv", "rpn_head.rpn_conv"),
    ("rpn.objectness", "rpn_head.rpn_cls"),
    ("rpn.deltas", "rpn_head.rpn_reg"),
    ("box_head.fc1", "roi_head.bbox_head.shared_fcs.0"),
    ("box_head.fc2", "roi_head.bbox_head.shared_fcs.1"),
    ("box_head.classes", "roi_head.bbox_head.fc_cls"),
    ("box_head.deltas", "roi_head.bbox_head.fc_reg"),
    ("mask_head.convs.{a}.conv", "roi_head.mask_head.convs.{a}.conv"),
    ("mask_head.convs.{a}.norm", "roi_head.mask_head.convs.{a}.bn"),
    ("mask_head.upsample", "roi_head.mask_head.upsample"),
    ("mask_head.classes", "roi_head.mask_head.conv_logits"),
)

_RETINANET: Table = (
    ("head.class_tower.{a}.conv", "bbox_head.cls_convs.{each}.{a}.conv"),
    ("head.class_tower.{a}.norms.{b}", "bbox_head.cls_convs.{b}.{a}.bn"),
    ("head.box_tower.{a}.conv", "bbox_head.reg_convs.{each}.{a}.conv"),
    ("head.box_tower.{a}.norms.{b}", "bbox_head.reg_convs.{b}.{a}.bn"),
    ("head.classes", "bbox_head.retina_cls"),
    ("head.deltas", "bbox_head.retina_reg"),
)


def _table(config: DetectorConfig) -> Table:
    if isinstance(config.neck, FPGConfig):
        neck = _FPG
    elif isinstance(config.neck, FPNConfig):
        neck = _FPN_POOLED if config.neck.extra_levels == "pool" else _FPN_CONVOLVED
    else:
        neck = _NASFPN
    head = _RETINANET if isinstance(config, RetinaNetConfig) else _TWO_STAGE
    return _BACKBONE + neck + head


def reference_names(names: Iterable[str], config: DetectorConfig) -> dict[str, tuple[str, ...]]:
    """The reference's names for tensors of ours.

    Args:
        names: our tensor names.
        config: the detector they belong to.

    Returns:
        Per name of ours, the reference's; several where the reference repeats a shared tensor.

    Raises:
        CheckpointError: the reference has no name for a tensor (a grid that was never published, say).
    """
    levels = len(config.head.anchors.strides) if isinstance(config, RetinaNetConfig) else 1
    rows = []
    for ours, theirs in _table(config):
        pattern = re.escape(ours).replace(r"\{a\}", r"(?P<a>\d+)").replace(r"\{b\}", r"(?P<b>\d+)")
        rows.append((re.compile(rf"{pattern}\.(?P<leaf>[a-z_]+)"), theirs))
    mapped = {}
    for name in names:
        matches = [(match, theirs) for pattern, theirs in rows if (match := pattern.fullmatch(name))]
        if len(matches) != 1:
            raise CheckpointError(
                f"{name}: the published files have no such tensor; only published architectures have reference names"
            )
        match, theirs = matches[0]
        copies = range(levels) if "{each}" in theirs else range(1)
        numbers = match.groupdict()
        leaf = numbers.pop("leaf")
        mapped[name] = tuple(f"{theirs.format(**numbers, each=each)}.{leaf}" for each in copies)
    return mapped


_FAMILIES = (
    ("rpn_head.rpn_conv.weight", "roi_head.mask_head.conv_logits.weight", "mask_rcnn"),
    ("rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.weight", "faster_rcnn"),
    ("bbox_head.retina_cls.weight", "bbox_head.cls_convs.0.0.conv.weight", "retinanet"),
)


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The architecture that a reference state dict belongs to, told from its tensors.

    Args:
        shapes: the shape of each tensor, by the reference's name.

    Returns:
        The catalogue's name. Whether every tensor fits is for the loading to check.

    Raises:
        CheckpointError: it is none of the zoo's; the message says what is missing or different.
    """
    family = next((name for first, second, name in _FAMILIES if first in shapes and second in shapes), None)
    if family is None:
        raise CheckpointError(
            f"no model of the zoo: neither an RPN with RoI heads nor a RetinaNet head with shared towers among its "
            f"{len(shapes)} tensors ({_sample(shapes)})"
        )
    if not any(name.startswith("neck.") for name in shapes):
        raise CheckpointError(f"no model of the zoo: a {family} without a neck")
    if shapes.get("backbone.layer3.5.conv3.weight") != (1024, 256, 1, 1) or "backbone.layer3.6.conv1.weight" in shapes:
        if shapes.get("backbone.conv1.weight", (0,))[0] == 24:
            return f"{family}_nano_fpg"
        raise CheckpointError(f"no model of the zoo: a {family} whose backbone is no ResNet-50")
    if "neck.fpn_stages.0.gp_64_4.out_conv.conv.weight" in shapes:
        return f"{family}_r50_nasfpn"
    if any(name.startswith("neck.fpn_transitions.") for name in shapes):
        width = shapes.get("neck.lateral_convs.0.weight", (0,))[0]
        if width not in (128, 256):
            raise CheckpointError(
                f"no model of the zoo: a Feature Pyramid Grid {width} wide, the zoo's are 128 and 256"
            )
        return f"{family}_r50_fpg" if width == 256 else f"{family}_r50_fpg_chn128"
    return f"{family}_r50_fpn"


def _sample(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(list(shapes)[:2]) + (", ..." if len(shapes) > 2 else "")
