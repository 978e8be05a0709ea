"""The names that mmdetection's files give to our tensors, as literal tables, one for each part of a detector.

A row maps a module of a part to its module in a whole detector of mmdetection; what follows in the tensor's name
(`weight`, `bias`, `running_mean`...) is the same on both sides. `{a}` and `{b}` stand for numbers. `{each}`
stands for every pyramid level: the reference stores the one tensor that the levels share once per level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from fpg_zoo.errors import CheckpointError

NameTable = tuple[tuple[str, str], ...]

RESNET: NameTable = (
    ("conv1", "backbone.conv1"),
    ("bn1", "backbone.bn1"),
    ("layer{a}.{b}.conv1", "backbone.layer{a}.{b}.conv1"),
    ("layer{a}.{b}.bn1", "backbone.layer{a}.{b}.bn1"),
    ("layer{a}.{b}.conv2", "backbone.layer{a}.{b}.conv2"),
    ("layer{a}.{b}.bn2", "backbone.layer{a}.{b}.bn2"),
    ("layer{a}.{b}.conv3", "backbone.layer{a}.{b}.conv3"),
    ("layer{a}.{b}.bn3", "backbone.layer{a}.{b}.bn3"),
    ("layer{a}.{b}.downsample.0", "backbone.layer{a}.{b}.downsample.0"),
    ("layer{a}.{b}.downsample.1", "backbone.layer{a}.{b}.downsample.1"),
)

FPG: NameTable = (
    ("inputs.project.{a}", "neck.lateral_convs.{a}"),
    ("inputs.extra.{a}", "neck.extra_downsamples.{a}"),
    ("pathways.{a}.nodes.{b}.from_finer.conv", "neck.fpn_transitions.{a}.{b}.same_up.conv"),
    ("pathways.{a}.nodes.{b}.from_finer.norm", "neck.fpn_transitions.{a}.{b}.same_up.bn"),
    ("pathways.{a}.nodes.{b}.lateral.conv", "neck.fpn_transitions.{a}.{b}.across_lateral.conv"),
    ("pathways.{a}.nodes.{b}.lateral.norm", "neck.fpn_transitions.{a}.{b}.across_lateral.bn"),
    ("pathways.{a}.nodes.{b}.across_from_coarser.conv", "neck.fpn_transitions.{a}.{b}.across_down.conv.conv"),
    ("pathways.{a}.nodes.{b}.across_from_coarser.norm", "neck.fpn_transitions.{a}.{b}.across_down.conv.bn"),
    ("pathways.{a}.nodes.{b}.skip.conv", "neck.fpn_transitions.{a}.{b}.across_skip.conv"),
    ("pathways.{a}.nodes.{b}.skip.norm", "neck.fpn_transitions.{a}.{b}.across_skip.bn"),
    ("outputs.{a}", "neck.output_transition.{a}.conv_out.conv"),
)

# With pooled extra levels the laterals are normalized; with convolved ones they are plain, and the extra levels'
# convolutions continue the numbering of the three outputs.
FPN_POOLED: NameTable = (
    ("laterals.{a}.conv", "neck.lateral_convs.{a}.conv"),
    ("laterals.{a}.norm", "neck.lateral_convs.{a}.bn"),
    ("outputs.{a}.conv", "neck.fpn_convs.{a}.conv"),
    ("outputs.{a}.norm", "neck.fpn_convs.{a}.bn"),
)

FPN_CONVOLVED: NameTable = (
    ("laterals.{a}", "neck.lateral_convs.{a}.conv"),
    ("outputs.{a}.conv", "neck.fpn_convs.{a}.conv"),
    ("outputs.{a}.norm", "neck.fpn_convs.{a}.bn"),
    ("extra.0.conv", "neck.fpn_convs.3.conv"),
    ("extra.0.norm", "neck.fpn_convs.3.bn"),
    ("extra.1.conv", "neck.fpn_convs.4.conv"),
    ("extra.1.norm", "neck.fpn_convs.4.bn"),
)

NASFPN: NameTable = (
    ("laterals.{a}.conv", "neck.lateral_convs.{a}.conv"),
    ("laterals.{a}.norm", "neck.lateral_convs.{a}.bn"),
    ("extra.{a}.conv", "neck.extra_downsamples.{a}.0.conv"),
    ("extra.{a}.norm", "neck.extra_downsamples.{a}.0.bn"),
    ("stacks.{a}.p4_gp_of_6_4.conv", "neck.fpn_stages.{a}.gp_64_4.out_conv.conv"),
    ("stacks.{a}.p4_gp_of_6_4.norm", "neck.fpn_stages.{a}.gp_64_4.out_conv.bn"),
    ("stacks.{a}.p4_sum_of_4_4.conv", "neck.fpn_stages.{a}.sum_44_4.out_conv.conv"),
    ("stacks.{a}.p4_sum_of_4_4.norm", "neck.fpn_stages.{a}.sum_44_4.out_conv.bn"),
    ("stacks.{a}.p3_sum_of_4_3.conv", "neck.fpn_stages.{a}.sum_43_3.out_conv.conv"),
    ("stacks.{a}.p3_sum_of_4_3.norm", "neck.fpn_stages.{a}.sum_43_3.out_conv.bn"),
    ("stacks.{a}.p4_sum_of_3_4.conv", "neck.fpn_stages.{a}.sum_34_4.out_conv.conv"),
    ("stacks.{a}.p4_sum_of_3_4.norm", "neck.fpn_stages.{a}.sum_34_4.out_conv.bn"),
    ("stacks.{a}.p5_sum_of_5_and_gp_4_3.conv", "neck.fpn_stages.{a}.sum_55_5.out_conv.conv"),
    ("stacks.{a}.p5_sum_of_5_and_gp_4_3.norm", "neck.fpn_stages.{a}.sum_55_5.out_conv.bn"),
    ("stacks.{a}.p7_sum_of_7_and_gp_5_4.conv", "neck.fpn_stages.{a}.sum_77_7.out_conv.conv"),
    ("stacks.{a}.p7_sum_of_7_and_gp_5_4.norm", "neck.fpn_stages.{a}.sum_77_7.out_conv.bn"),
    ("stacks.{a}.p6_gp_of_7_5.conv", "neck.fpn_stages.{a}.gp_75_6.out_conv.conv"),
    ("stacks.{a}.p6_gp_of_7_5.norm", "neck.fpn_stages.{a}.gp_75_6.out_conv.bn"),
)

RPN: NameTable = (
    ("conv", "rpn_head.rpn_conv"),
    ("objectness", "rpn_head.rpn_cls"),
    ("deltas", "rpn_head.rpn_reg"),
)

BOX_HEAD: NameTable = (
    ("fc1", "roi_head.bbox_head.shared_fcs.0"),
    ("fc2", "roi_head.bbox_head.shared_fcs.1"),
    ("classes", "roi_head.bbox_head.fc_cls"),
    ("deltas", "roi_head.bbox_head.fc_reg"),
)

MASK_HEAD: NameTable = (
    ("convs.{a}.conv", "roi_head.mask_head.convs.{a}.conv"),
    ("convs.{a}.norm", "roi_head.mask_head.convs.{a}.bn"),
    ("upsample", "roi_head.mask_head.upsample"),
    ("classes", "roi_head.mask_head.conv_logits"),
)

RETINA_HEAD: NameTable = (
    ("class_tower.{a}.conv", "bbox_head.cls_convs.{each}.{a}.conv"),
    ("class_tower.{a}.norms.{b}", "bbox_head.cls_convs.{b}.{a}.bn"),
    ("box_tower.{a}.conv", "bbox_head.reg_convs.{each}.{a}.conv"),
    ("box_tower.{a}.norms.{b}", "bbox_head.reg_convs.{b}.{a}.bn"),
    ("classes", "bbox_head.retina_cls"),
    ("deltas", "bbox_head.retina_reg"),
)


def reference_names(
    names: Iterable[str], tables: Mapping[str, NameTable | None], levels: int
) -> dict[str, tuple[str, ...]]:
    """The reference's names for tensors of ours.

    Args:
        names: our tensor names.
        tables: of each part of the detector, by the part's name; None for a part that the reference has not.
        levels: of the pyramid.

    Returns:
        Per name of ours, the reference's; several where the reference repeats a shared tensor.

    Raises:
        CheckpointError: the reference has no name for a tensor (a grid that was never published, say).
    """
    rows = []
    for part, table in tables.items():
        for ours, theirs in table or ():
            pattern = re.escape(f"{part}.{ours}").replace(r"\{a\}", r"(?P<a>\d+)").replace(r"\{b\}", r"(?P<b>\d+)")
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
