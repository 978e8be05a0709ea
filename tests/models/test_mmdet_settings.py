"""Settings of testing in mmdetection's files: taken over, equal to mmdetection's own detections, or refused by name."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import golden_weights
import numpy as np
import pytest
import torch
from command import run
from conftest import GOLDEN
from pycocotools import mask as mask_api
from torchvision.ops import box_iou

import fpg_zoo
from fpg_zoo.checkpoints.mmdet_settings import inference_settings_of, read_config_text
from fpg_zoo.config import BoxHeadConfig, PreprocessConfig, SoftNMSConfig, TwoStageConfig
from fpg_zoo.errors import CheckpointError
from fpg_zoo.modeling.preprocess import preprocess
from fpg_zoo.structures.boxes import soft_nms_within
from fpg_zoo.structures.images import read_image, to_pixels

# mmdetection 3.3.0's own detections under these settings, of weights by golden_weights.py.
FOREIGN: dict[str, Any] = json.loads((GOLDEN / "foreign_settings.json").read_text())
CASES = [key for key in FOREIGN if key.endswith(".jpg")]
NAME = "faster_rcnn_nano_fpg"


@functools.cache
def nano() -> dict[str, torch.Tensor]:
    return fpg_zoo.reference_state_dict(fpg_zoo.create_model(NAME, pretrained=True))


def saved(folder: Path, cfg: str, *, key: str = "cfg") -> Path:
    """A small model in mmdetection's form, with settings."""
    torch.save({"meta": {key: cfg}, "state_dict": nano()}, folder / "x.pth")
    return folder / "x.pth"


@pytest.mark.slow
@pytest.mark.parametrize("key", CASES)
def test_detections_are_mmdetections_own(key: str, data_folder: Path, tmp_path: Path) -> None:
    name, kind, photo = key.split("/")
    entry = FOREIGN[key]
    state_dict = golden_weights.golden_state_dict(fpg_zoo.create_model(name))
    torch.save({"meta": {"cfg": FOREIGN[f"{name}/{kind}/cfg"]}, "state_dict": state_dict}, tmp_path / "x.pth")
    done = run("convert", tmp_path / "x.pth", tmp_path / "converted")
    assert done.code == 0
    assert ("channel_order='BGR'" in done.out) == (kind == "bgr")
    model = fpg_zoo.create_model(f"local-dir:{tmp_path / 'converted'}")
    image = data_folder / "coco" / "val2017" / photo
    batch, sizes = preprocess([to_pixels(read_image(image))], model.config.preprocess)
    assert (list(sizes[0]), list(batch.shape[2:])) == (entry["resized"], entry["padded"])
    pixels = batch.flatten()[torch.linspace(0, batch.numel() - 1, len(entry["pixels"])).long()]
    assert (pixels - torch.tensor(entry["pixels"])).abs().max() < 1 / 57 + 1e-4  # a gray level, and what is written
    (found,) = fpg_zoo.Predictor(model)(image)
    same = box_iou(torch.tensor(entry["boxes"]), found.boxes) > 0.98
    same &= torch.tensor(entry["labels"])[:, None] == found.labels[None]
    same &= (torch.tensor(entry["scores"])[:, None] - found.scores[None]).abs() < 0.01
    assert int(same.any(dim=1).sum()) >= 0.97 * len(entry["boxes"])
    assert abs(len(found) - len(entry["boxes"])) <= 3
    if "masks" in entry:
        assert found.masks is not None
        for index, rle in enumerate(entry["masks"]):
            ours = np.asfortranarray(found.masks[int(same[index].nonzero()[0])].numpy().astype(np.uint8))
            assert mask_api.iou([mask_api.encode(ours)], [rle], [0])[0, 0] > 0.98


V3 = """
model = dict(
    data_preprocessor=dict(bgr_to_rgb=False, mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], pad_size_divisor=128),
    test_cfg=dict(
        rcnn=dict(score_thr=0.3, max_per_img=7,
                  nms=dict(type='soft_nms', iou_threshold=0.6, method='gaussian', sigma=0.4)),
        rpn=dict(nms_pre=500, max_per_img=200, nms=dict(type='nms', iou_threshold=0.8), min_bbox_size=0)))
test_pipeline = [dict(type='Resize', scale=(640, 640), keep_ratio=True)]
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='mmdet.PackDetInputs', meta_keys=('img_id',))]))
"""
V2 = """
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
model = dict(test_cfg=dict(
    rpn=dict(nms_pre=500, max_per_img=200, nms=dict(type='nms', iou_threshold=0.8), min_bbox_size=0),
    rcnn=dict(score_thr=0.3, max_per_img=7,
              nms=dict(type='soft_nms', iou_threshold=0.6, method='gaussian', sigma=0.4))))
data = dict(test=dict(type='CocoDataset', pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='RandomFlip', flip_ratio=0.5),
        dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False),
        dict(type='Pad', size_divisor=128),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img'])])]))
"""


@pytest.mark.parametrize(("key", "text"), [("cfg", V3), ("config", V2)], ids=["3.x", "2.x"])
def test_both_versions_settings_become_ours(key: str, text: str, tmp_path: Path) -> None:
    model = fpg_zoo.create_model(checkpoint=saved(tmp_path, text, key=key))
    assert isinstance(model.config, TwoStageConfig)
    assert model.config.preprocess == PreprocessConfig(
        longest_side=1333,
        shortest_side=800,
        mean=(103.53, 116.28, 123.675),
        std=(1.0, 1.0, 1.0),
        channel_order="BGR",
        pad_divisor=128,
    )
    assert model.config.box == BoxHeadConfig(
        width=256,
        score_threshold=0.3,
        nms_iou=0.6,
        detections=7,
        soft_nms=SoftNMSConfig(method="gaussian", sigma=0.4, min_score=0.001),
    )
    assert (model.config.rpn.candidates_per_level, model.config.rpn.proposals, model.config.rpn.nms_iou) == (
        500,
        200,
        0.8,
    )
    model.save_pretrained(tmp_path / "saved")
    assert fpg_zoo.create_model(f"local-dir:{tmp_path / 'saved'}").config == model.config


def test_what_a_file_does_not_say_stays_as_it_is(tmp_path: Path) -> None:
    expected = fpg_zoo.model_info(NAME).config
    for text in ("", "x = 1", "model = dict(type='FasterRCNN')", "'''A docstring.'''\n", "model = 3\ndata = []"):
        model = fpg_zoo.create_model(checkpoint=saved(tmp_path, text))
        assert (model.config.preprocess, model.config.neck) == (expected.preprocess, expected.neck)
        assert model.config.box == expected.box  # type: ignore[union-attr]


def pipeline(*steps: str) -> str:
    return f"test_dataloader = dict(dataset=dict(pipeline=[{', '.join(steps)}]))"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (pipeline("dict(type='Resize', scale=(640, 640), interpolation='area')"), "Resize.interpolation='area'"),
        (pipeline("dict(type='Resize', scale=[(640, 640), (800, 800)])"), r"Resize to \[\[640, 640\], \[800, 800\]\]"),
        (pipeline("dict(type='Resize', scale_factor=2.0)"), "Resize to None"),
        (pipeline("dict(type='Pad', size=(640, 640))"), r"Pad to \[640, 640\]"),
        (pipeline("dict(type='Pad', size_divisor=64, pad_val=dict(img=(114, 114, 114)))"), "Pad.pad_val="),
        (pipeline("dict(type='Albu', transforms=[])"), "the step 'Albu' of the test pipeline"),
        (pipeline("dict(type='MultiScaleFlipAug', img_scale=(640, 640), flip=True)"), "flip=True"),
        (pipeline("dict(type='LoadImageFromFile', color_type='grayscale')"), "color_type='grayscale'"),
        ("model = dict(test_cfg=dict(rcnn=dict(nms=dict(type='nms_match', iou_threshold=0.5))))", "'nms_match'"),
        ("model = dict(test_cfg=dict(rcnn=dict(mask_thr_binary=0.4)))", "mask_thr_binary=0.4"),
        ("model = dict(test_cfg=dict(rcnn=dict(max_per_img=-1)))", "detections=-1"),
        ("model = dict(test_cfg=dict(rcnn=dict(score_thr='high')))", "score_threshold='high'"),
        ("model = dict(test_cfg=dict(rpn=dict(nms=dict(type='soft_nms'))))", "'soft_nms'"),
        ("model = dict(data_preprocessor=dict(pad_size_divisor=32))", "pad_divisor=32"),
        ("model = dict(data_preprocessor=dict(mean=[0, 0, 0], std=[1, 1, 0]))", "std"),
        # Not data: nothing of it is executed.
        ("import os", "line 1 is neither a literal nor dict"),
        ("os", "line 1 is no assignment"),
        ("x = __import__('os').system('touch /tmp/never')", "line 1 is neither a literal nor dict"),
        ("x = dict(**y)", "line 1 is neither a literal nor dict"),
        ("x = 1 or 2", "line 1 is neither a literal nor dict"),
        ("x = [1] * 10**9", "neither a literal nor dict"),
        ("x = " + "[" * 150 + "]" * 150, "nested more than 100 deep"),
        ("x = " + "-" * 5000 + "1", "nested|cannot be read as data"),
        ("x = (", "cannot be read as data"),
        ("x = '" + "a" * 60_000 + "'", "a line has more than 50000 characters"),
        # Of longer ones Python 3.10 dies.
        ("x = " + "1 + " * 10_000 + "1", "line 1 is neither a literal nor dict"),
        ("x = a" + ".b" * 20_000, "line 1 is neither a literal nor dict"),
        ("x = dict" + "()" * 20_000, "line 1 is neither a literal nor dict"),
        ("x = a" + "[0]" * 10_000, "line 1 is neither a literal nor dict"),
        ("x = '\\x00'\n\0", "cannot be read as data"),
    ],
)
def test_what_cannot_be_had_is_refused_or_left_out_by_name(text: str, named: str, tmp_path: Path) -> None:
    file = saved(tmp_path, text)
    with pytest.raises(CheckpointError, match=named) as caught:
        fpg_zoo.create_model(checkpoint=file)
    assert str(caught.value).startswith(str(file))
    assert "ignore_settings=True) or fpg-zoo convert --ignore-settings" in str(caught.value)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fpg_zoo.create_model(checkpoint=file, ignore_settings=True)
    assert any("settings of the checkpoint that are left out" in str(one.message) for one in warned)


def test_the_command_refuses_and_leaves_out_likewise(tmp_path: Path) -> None:
    file = saved(tmp_path, "model = dict(test_cfg=dict(rcnn=dict(mask_thr_binary=0.4)))")
    done = run("convert", file, tmp_path / "out")
    assert (done.code, (tmp_path / "out").exists()) == (2, False)
    done = run("convert", file, tmp_path / "out", "--ignore-settings")
    assert (done.code, "left out: mask_thr_binary=0.4" in done.err) == (0, True)


def test_a_config_that_is_no_text_is_told() -> None:
    with pytest.raises(CheckpointError, match="of the type int, not a text"):
        read_config_text({"cfg": 3})
    with pytest.raises(CheckpointError, match="characters, at most"):
        read_config_text({"cfg": "#" * 2_000_000})
    assert read_config_text({"cfg": "", "epoch": 3}) is None


def test_data_are_read_as_they_are() -> None:
    text = "a = 'C:\\data'\nb = dict(c='x', d=-1, e=[+2.5, (None, True)], f={'g': 1})\n"
    assert read_config_text({"cfg": text}) == {
        "a": "C:\\data",
        "b": {"c": "x", "d": -1, "e": [2.5, [None, True]], "f": {"g": 1}},
    }


def test_stretching_and_class_agnostic_nms_are_read() -> None:
    text = pipeline("dict(type='Resize', scale=(512, 384), keep_ratio=False)") + (
        "\nmodel = dict(test_cfg=dict(score_thr=0, nms_pre=900, max_per_img=20, min_bbox_size=0, "
        "nms=dict(type='nms', iou_threshold=0.3, class_agnostic=True)))"
    )
    content = read_config_text({"cfg": text})
    assert content is not None
    settings = inference_settings_of(content)
    assert settings.unsupported == []
    # mmdetection's scale is (width, height).
    assert settings.preprocess == {"longest_side": 512, "shortest_side": None, "fixed_size": (384, 512)}
    assert settings.selection == {
        "score_threshold": 0.0,
        "detections": 20,
        "nms_iou": 0.3,
        "class_agnostic_nms": True,
        "soft_nms": None,
        "candidates_per_level": 900,
    }


def test_soft_nms_by_hand() -> None:
    """The second box has IoU 1/3 with the first and the third box none; the fourth is of another class."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [40, 40, 50, 50], [0, 0, 10, 10]])
    scores, groups = torch.tensor([0.9, 0.8, 0.6, 0.5]), torch.tensor([0, 0, 0, 1])

    def taken(method: Any, iou: float = 0.3, min_score: float = 0.01, most: int = 9) -> list[tuple[int, float]]:
        keep, values = soft_nms_within(
            boxes, scores, groups, iou=iou, method=method, sigma=0.5, min_score=min_score, most=most
        )
        return [(place, round(value, 4)) for place, value in zip(keep.tolist(), values.tolist(), strict=True)]

    assert taken("linear") == [(0, 0.9), (2, 0.6), (1, 0.5333), (3, 0.5)]  # 0.8 * 2/3
    assert taken("linear", iou=0.5) == [(0, 0.9), (1, 0.8), (2, 0.6), (3, 0.5)]
    assert taken("gaussian") == [(0, 0.9), (1, 0.6406), (2, 0.6), (3, 0.5)]  # 0.8 * exp(-(1/9) / 0.5)
    assert taken("linear", min_score=0.55) == [(0, 0.9), (2, 0.6)]
    assert taken("linear", most=2) == [(0, 0.9), (2, 0.6)]
    none = torch.zeros(0)
    assert soft_nms_within(
        none.view(0, 4), none, none.long(), iou=0.5, method="linear", sigma=0.5, min_score=0.1, most=5
    )[0].shape == (0,)
