"""Detectors of mmdetection's that the catalog has not: recognized by their tensors, and computing the same."""

from __future__ import annotations

import dataclasses
import json
import lzma
from pathlib import Path
from typing import Any

import golden_weights
import pytest
import torch
from command import run
from conftest import GOLDEN
from torch import Tensor
from torchvision.ops import box_iou

import fpg_zoo
from fpg_zoo.checkpoints.mmdet_convert import to_reference
from fpg_zoo.checkpoints.mmdet_variants import variant_of
from fpg_zoo.config import (
    DetectorConfig,
    FPGConfig,
    FPNConfig,
    NASFPNConfig,
    PreprocessConfig,
    RetinaNetConfig,
    triangle_grid,
)
from fpg_zoo.config.backbones import RESNETS
from fpg_zoo.errors import CheckpointError
from fpg_zoo.modeling.build import build_on_meta
from fpg_zoo.models.loading import names_of_model

# Built by mmdetection 3.3.0, seven classes each, weights by golden_weights.py; every tensor, the pyramid, detections.
VARIANTS: dict[str, Any] = json.loads(lzma.decompress((GOLDEN / "variants.json.xz").read_bytes()))
NAMES = {
    "retinanet_r101_fpg5": "retinanet_resnet101_fpg5_chn128",
    "faster_rcnn_r18_fpn": "faster_rcnn_resnet18_fpn",
    "mask_rcnn_r50_fpg9_chn64": "mask_rcnn_resnet50_fpg_chn64",
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", NAMES)
def test_it_computes_what_mmdetection_does(variant: str, tmp_path: Path) -> None:
    entry = VARIANTS[variant]
    state_dict = {name: golden_weights.tensor(name, shape) for name, shape, _ in entry["schema"]}
    torch.save({"meta": {"cfg": entry["cfg"]}, "state_dict": state_dict}, tmp_path / "x.pth")
    done = run("convert", tmp_path / "x.pth", tmp_path / "converted")
    assert done.code == 0, done.err
    model = fpg_zoo.create_model(f"local-dir:{tmp_path / 'converted'}")
    assert (model.name, len(model.class_names)) == (NAMES[variant], 7)
    assert fpg_zoo.reference_state_dict(model).keys() == state_dict.keys()
    images = golden_weights.image((1, 3, 256, 384))
    with torch.inference_mode():
        pyramid = model.neck(model.backbone(images))
    assert [list(x.shape) for x in pyramid] == entry["shapes"]
    for x, expected in zip(pyramid, entry["pyramid"], strict=True):
        samples = x.flatten()[torch.linspace(0, x.numel() - 1, len(expected)).long()]
        torch.testing.assert_close(samples, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    (found,) = model.detect(images, [(250, 375)])
    same = box_iou(torch.tensor(entry["boxes"]), found.boxes) > 0.98
    same &= torch.tensor(entry["labels"])[:, None] == found.labels[None]
    same &= (torch.tensor(entry["scores"])[:, None] - found.scores[None]).abs() < 0.01
    assert int(same.any(dim=1).sum()) >= 97


def tensors_of(config: DetectorConfig) -> dict[str, Tensor]:
    """A detector's tensors as mmdetection names them, without memory."""
    model = build_on_meta(config, "own")
    return to_reference(model.state_dict(), names_of_model(model))


RETINA = fpg_zoo.model_info("retinanet_r50_fpg").config
FASTER = fpg_zoo.model_info("faster_rcnn_r50_fpg").config


def fpg(pathways: int, width: int) -> dict[str, Any]:
    return {"neck": FPGConfig(start_level=0, out_channels=width, grid=triangle_grid(pathways=pathways))}


@pytest.mark.parametrize(
    ("base", "changes", "name"),
    [
        (FASTER, fpg(5, 32), "faster_rcnn_resnet50_fpg5_chn32"),
        (FASTER, fpg(6, 512), "faster_rcnn_resnet50_fpg6_chn512"),
        (FASTER, fpg(7, 256) | {"backbone": RESNETS["resnet18"]}, "faster_rcnn_resnet18_fpg7"),
        (FASTER, {"backbone": RESNETS["resnet34"]}, "faster_rcnn_resnet34_fpg"),
        (FASTER, {"backbone": RESNETS["resnet152"], "neck": FPNConfig(start_level=0)}, "faster_rcnn_resnet152_fpn"),
        (FASTER, {"backbone": RESNETS["resnext101_64x4d"]}, "faster_rcnn_resnext101_64x4d_fpg"),
        (RETINA, {"neck": NASFPNConfig(stacks=3, out_channels=384)}, "retinanet_resnet50_nasfpn3_chn384"),
        (
            RETINA,
            {"neck": FPNConfig(start_level=1, out_channels=64, extra_levels="conv"), "preprocess": PreprocessConfig()},
            "retinanet_resnet50_fpn_chn64",
        ),
        (RETINA, {"backbone": RESNETS["wide_resnet50_2"]}, "retinanet_wide_resnet50_2_fpg"),
    ],
)
def test_depths_grids_and_widths_are_recognized(base: DetectorConfig, changes: dict[str, Any], name: str) -> None:
    config = dataclasses.replace(base, class_names=("class 0", "class 1", "class 2"), **changes)
    if isinstance(config, RetinaNetConfig):
        config = dataclasses.replace(config, head=dataclasses.replace(config.head, width=96, depth=2))
    found = variant_of(tensors_of(config))
    assert found is not None
    assert found == (name, config)


def test_three_pathways_that_touch_every_level_are_recognized() -> None:
    grid = dataclasses.replace(triangle_grid(pathways=5), directions=("up",) * 3, skipped=((), (4,), (0, 1)))
    config = dataclasses.replace(
        FASTER, class_names=("class 0",), neck=FPGConfig(start_level=0, out_channels=64, grid=grid)
    )
    assert variant_of(tensors_of(config)) == ("faster_rcnn_resnet50_fpg3_chn64", config)


def test_what_is_none_of_the_kind_is_told_as_before(tmp_path: Path) -> None:
    tensors = {
        name: torch.zeros(x.shape) for name, x in tensors_of(fpg_zoo.model_info("faster_rcnn_nano_fpg").config).items()
    }
    for change in ("left out", "too many", "other shape"):
        changed = dict(tensors)
        if change == "left out":
            del changed["rpn_head.rpn_conv.weight"]
        elif change == "too many":
            changed["neck.other.weight"] = torch.zeros(1)
        else:
            changed["neck.fpn_transitions.1.4.same_up.conv.weight"] = torch.zeros(1, 1, 3, 3)
        torch.save({"state_dict": changed}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="no model of the zoo: against the nearest, faster_rcnn_nano_fpg"):
            fpg_zoo.create_model(checkpoint=tmp_path / "x.pth")
    assert variant_of({}) is None
    huge = {"backbone.conv1.weight": torch.empty(64, 3, 7, 7, device="meta")}
    huge |= {f"backbone.layer1.{block}.conv1.weight": huge["backbone.conv1.weight"] for block in range(1000)}
    assert variant_of(huge) is None


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("backbone=dict(style='caffe')", "backbone.style='caffe'"),
        ("backbone=dict(type='ResNet', dilations=(1, 1, 2, 4))", "backbone.dilations="),
        ("neck=dict(norm_cfg=dict(type='BN', eps=0.001))", "neck.norm_cfg.eps=0.001"),
        ("rpn_head=dict(anchor_generator=dict(center_offset=0.5))", "anchor_generator.center_offset=0.5"),
        ("rpn_head=dict(anchor_generator=dict(strides=[8, 16, 32, 64, 128]))", "anchors have strides"),
        ("rpn_head=dict(anchor_generator=dict(ratios='all'))", "anchor_generator.ratios='all'"),
        ("rpn_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2]))", "target_stds="),
        ("roi_head=dict(bbox_head=dict(bbox_coder=dict(target_means=[0, 0, 0, 1])))", "target_means="),
        (
            "roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign', sampling_ratio=2)))",
            "sampling_ratio=2",
        ),
        ("roi_head=dict(mask_roi_extractor=dict(finest_scale=112))", "finest_scale=112"),
    ],
)
def test_what_no_tensor_tells_is_read_of_the_config(part: str, named: str, tmp_path: Path) -> None:
    model = fpg_zoo.create_model("faster_rcnn_nano_fpg", pretrained=True)
    content = {"meta": {"cfg": f"model = dict({part})"}, "state_dict": fpg_zoo.reference_state_dict(model)}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=named):
        fpg_zoo.create_model(checkpoint=tmp_path / "x.pth")


def test_anchors_and_deltas_of_the_config_become_ours(tmp_path: Path) -> None:
    model = fpg_zoo.create_model("faster_rcnn_nano_fpg", pretrained=True)
    text = (
        "model = dict(rpn_head=dict(anchor_generator=dict(scales=[4], ratios=[0.33, 1.0, 3.0])), "
        "roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.05, 0.05, 0.1, 0.1]))))"
    )
    torch.save({"meta": {"cfg": text}, "state_dict": fpg_zoo.reference_state_dict(model)}, tmp_path / "x.pth")
    config = fpg_zoo.create_model(checkpoint=tmp_path / "x.pth").config
    assert (config.rpn.anchors.scales, config.rpn.anchors.ratios) == ((4.0,), (0.33, 1.0, 3.0))  # type: ignore[union-attr]
    assert config.box.delta_std == (0.05, 0.05, 0.1, 0.1)  # type: ignore[union-attr]
