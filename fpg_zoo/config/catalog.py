"""The architectures of the zoo, by name. One keyword-only tree per family; a variant passes only what differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fpg_zoo.config.backbones import BackboneConfig, ResNetConfig
from fpg_zoo.config.coco_classes import COCO_CLASSES
from fpg_zoo.config.detectors import DetectorConfig, PreprocessConfig, RetinaNetConfig, TwoStageConfig
from fpg_zoo.config.heads import AnchorConfig, BoxHeadConfig, MaskHeadConfig, RetinaHeadConfig, RPNConfig
from fpg_zoo.config.necks import FPGConfig, FPNConfig, NASFPNConfig, NeckConfig, triangle_grid

R50 = ResNetConfig()
NANO = ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=24)
RPN_ANCHORS = AnchorConfig(strides=(4, 8, 16, 32, 64), scales=(8.0,))
RETINA_ANCHORS = AnchorConfig(strides=(8, 16, 32, 64, 128), scales=tuple(4 * 2 ** (i / 3) for i in range(3)))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a detector costs for one image in float32, as counted by `fpg_zoo.modeling.costs`.

    Attributes:
        parameters: number of trained values; BatchNorm statistics are none.
        flops: floating-point operations of convolutions and matrix products, a multiplication and its addition being
            two, as in `torch.utils.flop_counter`.
        activations: number of values that convolutions and matrix products give, as fvcore and timm count them.
        memory: bytes of the weights, the input and the layers' tensors at the moment when there are most. What kernels
            take for themselves, RoIAlign, NMS and pasted masks come on top, so that a measured peak is higher.
    """

    parameters: int
    flops: int
    activations: int
    memory: int


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A named detector: `method` and `neck` as the table prints them, and how to make its config."""

    name: str
    method: str
    neck: str
    build_config: Callable[[], DetectorConfig]


def _two_stage(
    *,
    neck: NeckConfig,
    mask: MaskHeadConfig | None,
    backbone: BackboneConfig = R50,
    rpn_width: int = 256,
    box_width: int = 1024,
    longest_side: int = 640,
) -> TwoStageConfig:
    return TwoStageConfig(
        backbone=backbone,
        neck=neck,
        rpn=RPNConfig(anchors=RPN_ANCHORS, width=rpn_width),
        box=BoxHeadConfig(width=box_width),
        mask=mask,
        class_names=COCO_CLASSES,
        preprocess=PreprocessConfig(longest_side=longest_side, pad_divisor=64),
    )


def _retinanet(
    *,
    neck: NeckConfig,
    backbone: BackboneConfig = R50,
    head_width: int = 256,
    head_depth: int = 4,
    longest_side: int = 640,
    pad_divisor: int = 128,
) -> RetinaNetConfig:
    return RetinaNetConfig(
        backbone=backbone,
        neck=neck,
        head=RetinaHeadConfig(anchors=RETINA_ANCHORS, width=head_width, depth=head_depth),
        class_names=COCO_CLASSES,
        preprocess=PreprocessConfig(longest_side=longest_side, pad_divisor=pad_divisor),
    )


def _nano_fpg(*, start: int) -> FPGConfig:
    return FPGConfig(
        start_level=start,
        out_channels=48,
        grid=triangle_grid(pathways=5),
        extra_levels="pool" if start == 0 else "conv",
    )


# Pixels. RetinaNet's inputs are padded to multiples of 128.
_NANO_SIDE = 384


def _nano_two_stage(mask: MaskHeadConfig | None) -> TwoStageConfig:
    return _two_stage(
        neck=_nano_fpg(start=0), mask=mask, backbone=NANO, rpn_width=48, box_width=256, longest_side=_NANO_SIDE
    )


def _row(name: str, method: str, neck: str, build_config: Callable[[], DetectorConfig]) -> Architecture:
    return Architecture(name=name, method=method, neck=neck, build_config=build_config)


_MASK = MaskHeadConfig()

_ROWS = (
    _row("faster_rcnn_r50_fpg", "Faster R-CNN", "FPG", lambda: _two_stage(neck=FPGConfig(start_level=0), mask=None)),
    _row(
        "faster_rcnn_r50_fpg_chn128",
        "Faster R-CNN",
        "FPG-chn128",
        lambda: _two_stage(neck=FPGConfig(start_level=0, out_channels=128), mask=None),
    ),
    _row("faster_rcnn_r50_fpn", "Faster R-CNN", "FPN", lambda: _two_stage(neck=FPNConfig(start_level=0), mask=None)),
    _row("mask_rcnn_r50_fpg", "Mask R-CNN", "FPG", lambda: _two_stage(neck=FPGConfig(start_level=0), mask=_MASK)),
    _row(
        "mask_rcnn_r50_fpg_chn128",
        "Mask R-CNN",
        "FPG-chn128",
        lambda: _two_stage(neck=FPGConfig(start_level=0, out_channels=128), mask=_MASK),
    ),
    _row("mask_rcnn_r50_fpn", "Mask R-CNN", "FPN", lambda: _two_stage(neck=FPNConfig(start_level=0), mask=_MASK)),
    _row(
        "retinanet_r50_fpg",
        "RetinaNet",
        "FPG",
        lambda: _retinanet(neck=FPGConfig(start_level=1, extra_levels="conv")),
    ),
    # Two configurations of this row circulate, with head towers 256 and 128 wide; loading follows the file.
    _row(
        "retinanet_r50_fpg_chn128",
        "RetinaNet",
        "FPG-chn128",
        lambda: _retinanet(neck=FPGConfig(start_level=1, out_channels=128, extra_levels="conv")),
    ),
    _row(
        "retinanet_r50_fpn",
        "RetinaNet",
        "FPN",
        lambda: _retinanet(neck=FPNConfig(start_level=1, extra_levels="conv"), pad_divisor=64),
    ),
    _row("retinanet_r50_nasfpn", "RetinaNet", "NAS-FPN", lambda: _retinanet(neck=NASFPNConfig())),
    _row("faster_rcnn_nano_fpg", "Faster R-CNN", "FPG-nano", lambda: _nano_two_stage(None)),
    _row("mask_rcnn_nano_fpg", "Mask R-CNN", "FPG-nano", lambda: _nano_two_stage(MaskHeadConfig(width=48, depth=2))),
    _row(
        "retinanet_nano_fpg",
        "RetinaNet",
        "FPG-nano",
        lambda: _retinanet(
            neck=_nano_fpg(start=1), backbone=NANO, head_width=48, head_depth=2, longest_side=_NANO_SIDE
        ),
    ),
)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}

# Counted once, so that they are known without building a model; a test counts them again.
COSTS: dict[str, Cost] = {
    "faster_rcnn_r50_fpg": Cost(
        parameters=80_025_312, flops=506_601_625_600, activations=272_912_500, memory=575_551_256
    ),
    "faster_rcnn_r50_fpg_chn128": Cost(
        parameters=42_357_856, flops=197_134_080_000, activations=187_664_500, memory=324_296_984
    ),
    "faster_rcnn_r50_fpn": Cost(
        parameters=41_755_104, flops=182_224_640_000, activations=119_824_500, memory=334_778_216
    ),
    "mask_rcnn_r50_fpg": Cost(
        parameters=82_669_616, flops=612_573_337_600, activations=319_325_300, memory=628_913_272
    ),
    "mask_rcnn_r50_fpg_chn128": Cost(
        parameters=44_707_248, flops=291_545_241_600, activations=234_077_300, memory=423_750_264
    ),
    "mask_rcnn_r50_fpn": Cost(
        parameters=44_399_408, flops=288_196_352_000, activations=166_237_300, memory=475_589_832
    ),
    "retinanet_r50_fpg": Cost(
        parameters=72_720_692, flops=271_083_571_200, activations=157_260_900, memory=395_733_416
    ),
    "retinanet_r50_fpg_chn128": Cost(
        parameters=40_328_756, flops=191_107_532_800, activations=135_945_700, memory=251_854_248
    ),
    "retinanet_r50_fpn": Cost(
        parameters=37_988_404, flops=190_697_113_600, activations=118_963_300, memory=242_373_088
    ),
    "retinanet_r50_nasfpn": Cost(
        parameters=59_979_828, flops=276_700_006_400, activations=137_920_100, memory=332_615_528
    ),
    "faster_rcnn_nano_fpg": Cost(parameters=2_179_528, flops=4_626_715_776, activations=7_450_996, memory=28_025_072),
    "mask_rcnn_nano_fpg": Cost(parameters=2_234_376, flops=7_215_797_376, activations=19_367_796, memory=60_079_872),
    "retinanet_nano_fpg": Cost(parameters=1_839_372, flops=3_836_896_128, activations=5_781_780, memory=19_038_064),
}
