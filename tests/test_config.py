"""Configs that describe no detector are refused where they are written, with the value and the remedy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo.config import AnchorConfig, FPGConfig, FPNConfig, NASFPNConfig, ResNetConfig, RPNConfig
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.fpn import FPN
from fpg_zoo.modeling.nasfpn import NASFPN

TWO_STAGE = fpg_zoo.model_info("faster_rcnn_r50_fpn").config
RETINANET = fpg_zoo.model_info("retinanet_r50_fpn").config


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ResNetConfig(block="wide"), r"block='wide': use one of 'basic', 'bottleneck'"),  # type: ignore[arg-type]
        (lambda: ResNetConfig(width=0), "width=0: it takes a whole number of at least 1"),
        (lambda: ResNetConfig(depths=(1, 2, 0, 1)), r"depths\[2\]=0"),
        (lambda: ResNetConfig(depths=(1, 2)), r"depths=\(1, 2\): give the blocks of each of 4 stages"),  # type: ignore[arg-type]
        (lambda: FPNConfig(start=0, extra_levels="poool"), "extra_levels='poool': use one of 'pool', 'conv'"),  # type: ignore[arg-type]
        (lambda: FPGConfig(start=0, extra_levels="poool"), "extra_levels='poool'"),  # type: ignore[arg-type]
        (lambda: FPGConfig(start=0, width=-1), "width=-1"),
        (lambda: NASFPNConfig(stacks=0), "stacks=0"),
        (lambda: FPN(FPNConfig(start=0, levels=3), (8, 8, 8, 8)), "3 levels from backbone stage 0 of 4"),
        (
            lambda: dataclasses.replace(TWO_STAGE, rpn=RPNConfig(anchors=AnchorConfig(strides=(4, 8), scales=(8.0,)))),
            "2 strides for 5 pyramid levels",
        ),
        (lambda: dataclasses.replace(RETINANET, neck=FPNConfig(start=1, levels=4)), "5 strides for 4 pyramid levels"),
        (lambda: dataclasses.replace(TWO_STAGE, roi_levels=6), "roi_levels=6"),
    ],
)
def test_what_describes_no_detector_is_refused(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make()


def test_maps_that_cannot_be_pooled_to_each_other_are_refused() -> None:
    # 96 pixels: C3 to P7 are 12, 6, 3, 1 and 0 cells; 3 is no multiple of what it is halved to.
    neck = NASFPN(NASFPNConfig(width=8, stacks=1), (4, 8, 8, 8)).eval()
    sides = (24, 20, 10, 5)
    with pytest.raises(ValueError, match=r"5x5 map cannot be pooled to 2x2 by a whole ratio: pad the images"):
        neck([torch.zeros(1, channels, side, side) for channels, side in zip((4, 8, 8, 8), sides, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mask_rcnn_nano_fpg", "retinanet_nano_fpg"])
def test_models_of_any_precision_give_float32_detections(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 128, 128)
    wanted = tiny_model(name).detect(images, [(128, 128)])[0]
    found = copy.deepcopy(tiny_model(name)).to(dtype).detect(images.to(dtype), [(128, 128)])[0]
    assert (found.boxes.dtype, found.scores.dtype) == (torch.float32, torch.float32)
    assert len(found) > 0
    # 8 bits of bfloat16 through a network of a hundred layers; float64 is only rounded at the end.
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    assert float(found.scores[0]) == pytest.approx(float(wanted.scores[0]), abs=tolerance)
