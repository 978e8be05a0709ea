"""The names that the published files give to our tensors, as literal tables, one for each part of a detector.

A row maps a module of ours to its module in the reference; what follows in the tensor's name (`weight`, `bias`,
`running_mean`...) is the same on both sides. `{a}` and `{b}` stand for numbers. `{each}` stands for every pyramid
level: the reference stores the one tensor that the levels share once per level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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
