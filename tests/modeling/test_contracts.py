"""What every architecture of the catalog keeps, on real forward passes."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import fpg_zoo
from fpg_zoo.config.catalog import ARCHITECTURES
from fpg_zoo.config.serialization import from_dict, to_dict
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.postprocess import paste_mask

NAMES = fpg_zoo.list_models()
NANO = [name for name in NAMES if "_nano_" in name]
SIDE = 128  # of the square input: a multiple of every model's pad divisor
SIZE = (100, 120)  # (height, width) of the image in it


pytestmark = pytest.mark.usefixtures("one_thread")


def _build(name):
    """The model with class scores spread out: as initialized, all would stay below the score threshold."""
    torch.manual_seed(0)
    model = fpg_zoo.create_model(name)
    with torch.no_grad():
        if name.startswith("retinanet"):
            model.head.classes.weight.normal_(std=2 / model.head.classes.weight[0].numel() ** 0.5)
            model.head.classes.bias.fill_(-2.0)
        else:
            model.box_head.classes.weight.normal_(std=2 / model.box_head.classes.in_features**0.5)
    return model


def _images(count=1):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return _build(request.param)


@pytest.fixture(scope="module", params=NANO)
def nano(request):
    return _build(request.param)


def test_the_catalogue_holds_ten_published_architectures_and_a_twin_of_each_family():
    assert len(NAMES) == 13
    assert NANO == ["faster_rcnn_nano_fpg", "mask_rcnn_nano_fpg", "retinanet_nano_fpg"]


# --- every architecture ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_created_model_is_in_eval_mode_and_knows_its_name(model):
    assert not any(module.training for module in model.modules())
    assert model.name in NAMES
    assert model.device == torch.device("cpu")
    assert (len(model.class_names), model.class_names[0], model.class_names[-1]) == (80, "person", "toothbrush")


@torch.no_grad()
@pytest.mark.slow
def test_the_pyramid_has_five_maps_of_the_models_width_at_its_strides(model):
    # behavior.md: two-stage from C2, strides 4..64; RetinaNet from C3, 8..128. Widths by name.
    pyramid = model.neck(model.backbone(_images(2)))
    strides = (8, 16, 32, 64, 128) if model.name.startswith("retinanet") else (4, 8, 16, 32, 64)
    width = 48 if "_nano_" in model.name else 128 if model.name.endswith("_chn128") else 256
    assert [tuple(level.shape) for level in pyramid] == [(2, width, SIDE // s, SIDE // s) for s in strides]
    assert all(level.isfinite().all() for level in pyramid)
    assert model.config.neck.out_channels == width


@pytest.mark.slow
def test_detect_gives_detections_of_their_contract_and_scales_them_on_request(model):
    (found,) = model.detect(_images(), [SIZE])
    _check_detections(found, model, SIZE)
    # Half as high, twice as wide.
    (scaled,) = model.detect(_images(), [SIZE], output_sizes=[(50, 240)])
    _check_detections(scaled, model, (50, 240))
    torch.testing.assert_close(scaled.boxes, found.boxes * torch.tensor([2, 0.5, 2, 0.5]))
    assert torch.equal(scaled.scores, found.scores)
    assert torch.equal(scaled.labels, found.labels)


def _check_detections(found, model, size):
    height, width = size
    count = len(found)
    assert 0 < count <= 100, "a test without detections would show nothing"
    assert found.size == size
    assert found.class_names == model.class_names
    assert (found.boxes.shape, found.boxes.dtype) == ((count, 4), torch.float32)
    assert (found.scores.shape, found.scores.dtype) == ((count,), torch.float32)
    assert (found.labels.shape, found.labels.dtype) == ((count,), torch.int64)
    assert not found.boxes.requires_grad
    x1, y1, x2, y2 = found.boxes.unbind(1)
    assert ((x1 >= 0) & (x1 <= x2) & (x2 <= width)).all()
    assert ((y1 >= 0) & (y1 <= y2) & (y2 <= height)).all()
    assert ((found.scores > 0.05) & (found.scores <= 1)).all()
    assert (found.scores.diff() <= 0).all()
    assert ((found.labels >= 0) & (found.labels < 80)).all()
    if not model.name.startswith("mask"):
        assert found.masks is None
        return
    assert (found.masks.shape, found.masks.dtype) == ((count, height, width), torch.bool)
    assert found.masks.any()
    # No mask has a pixel whose center lies outside of its box.
    across, down = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    outside_x = (across < x1[:, None]) | (across > x2[:, None])
    outside_y = (down < y1[:, None]) | (down > y2[:, None])
    assert not (found.masks & (outside_x[:, None, :] | outside_y[:, :, None])).any()


BAD_CALLS = {
    "no batch": ((3, SIDE, SIDE), [SIZE], r"images has shape \(3, 128, 128\): it takes \(N, 3, H, W\)"),
    "grey": ((1, 1, SIDE, SIDE), [SIZE], r"images has shape \(1, 1, 128, 128\)"),
    "channels last": ((1, SIDE, SIDE, 3), [SIZE], r"images has shape \(1, 128, 128, 3\)"),
    "no pixels": ((1, 3, 0, SIDE), [SIZE], r"images are 0x128"),
    "no sizes": ((1, 3, SIDE, SIDE), [], r"0 sizes for 1 images"),
    "two sizes": ((1, 3, SIDE, SIDE), [SIZE, SIZE], r"2 sizes for 1 images"),
    "one size": ((2, 3, SIDE, SIDE), [SIZE], r"1 sizes for 2 images"),
    "too high": ((1, 3, SIDE, SIDE), [(129, 120)], r"size \(129, 120\) does not lie within .* 128x128"),
    "too wide": ((1, 3, SIDE, SIDE), [(100, 129)], r"size \(100, 129\) does not lie within"),
    "no height": ((1, 3, SIDE, SIDE), [(0, 120)], r"size \(0, 120\) does not lie within"),
    "negative": ((1, 3, SIDE, SIDE), [(100, -1)], r"size \(100, -1\) does not lie within"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_detect_refuses_images_and_sizes_that_do_not_fit(model, case):
    shape, sizes, complaint = BAD_CALLS[case]
    with pytest.raises(ValueError, match=complaint):
        model.detect(torch.zeros(shape), sizes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_detect_refuses_integers(model, dtype):
    with pytest.raises(ValueError, match=f"images is {dtype}: normalise it first"):
        model.detect(torch.zeros(1, 3, SIDE, SIDE, dtype=dtype), [SIZE])


def test_detect_refuses_unpadded_images(model):
    # behavior.md's table: 128 for RetinaNet but with FPN, 64 for all others. The nano twins follow their families.
    divisor = 128 if model.name.startswith("retinanet") and model.name != "retinanet_r50_fpn" else 64
    assert model.config.preprocess.pad_divisor == divisor
    for height, width in ((100, 128), (128, 100), (divisor // 2, divisor)):
        with pytest.raises(ValueError, match=f"images are {height}x{width}: pad .* to a multiple of {divisor}"):
            model.detect(torch.zeros(1, 3, height, width), [(20, 20)])


@pytest.mark.parametrize("output_sizes", [[], [SIZE, SIZE], [(0, 5)], [(5, -1)]])
def test_detect_refuses_output_sizes_that_do_not_fit(model, output_sizes):
    with pytest.raises(ValueError, match="output_sizes=") as caught:
        model.detect(_images(), [SIZE], output_sizes=output_sizes)
    assert str(output_sizes) in str(caught.value)


def test_detect_refuses_a_model_in_train_mode(model):
    model.train()
    try:
        with pytest.raises(ValueError, match=r"the model is in train mode: call model\.eval\(\) first"):
            model.detect(_images(), [SIZE])
    finally:
        model.eval()


@pytest.mark.parametrize("score", [-0.01, 1.5, float("nan")])
def test_detect_refuses_what_is_no_score(model, score):
    with pytest.raises(ValueError, match=rf"score={score}: a score lies in 0\.\.1"):
        model.detect(_images(), [SIZE], score=score)


# --- the tiny twins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 5, -1])
@pytest.mark.slow
def test_detect_leaves_out_what_is_below_the_score_and_pastes_no_mask_of_it(nano, rank, monkeypatch):
    (everything,) = nano.detect(_images(), [SIZE])
    score = float(everything.scores[rank])
    pasted = []

    def counting(*arguments):
        pasted.append(arguments)
        return paste_mask(*arguments)

    monkeypatch.setattr("fpg_zoo.modeling.postprocess.paste_mask", counting)
    (found,) = nano.detect(_images(), [SIZE], score=score)
    wanted = everything.above(score)
    assert 0 < len(wanted) <= len(everything)
    assert (len(wanted) < len(everything)) == (rank != -1)
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    if wanted.masks is None:
        assert found.masks is None
        assert pasted == []
    else:
        assert torch.equal(found.masks, wanted.masks)
        assert len(pasted) == len(wanted)


def test_a_score_that_nothing_reaches_leaves_empty_detections(nano):
    (found,) = nano.detect(_images(), [SIZE], score=1.0)
    assert found.boxes.shape == (0, 4)
    assert found.masks is None or found.masks.shape == (0, *SIZE)


def test_the_mask_head_is_left_alone_where_there_is_nothing_to_mask(monkeypatch):
    torch.manual_seed(0)
    model = fpg_zoo.create_model("mask_rcnn_nano_fpg")  # as initialized, all scores are under the threshold

    def refused(*_):
        raise AssertionError("convolutions of an empty batch")

    monkeypatch.setattr(model.mask_head, "forward", refused)
    with torch.no_grad():
        instances = model(_images(2), [SIZE, SIZE])
    # 28: twice the 14 that RoIs are pooled to.
    assert [tuple(found.mask_maps.shape) for found in instances] == [(0, 28, 28)] * 2
    assert [found.mask_maps.dtype for found in instances] == [torch.float32] * 2
    assert [found.masks.shape for found in model.detect(_images(2), [SIZE, SIZE])] == [(0, *SIZE)] * 2


@torch.no_grad()
def test_an_image_without_instances_beside_one_with_them_has_no_maps():
    model = _build("mask_rcnn_nano_fpg")
    images = _images(2)
    images[1] = float("nan")  # no score of it is over any threshold
    some, none = model(images, [SIZE, SIZE])
    assert len(some.mask_maps) == len(some) > 0
    assert none.mask_maps.shape == (0, *some.mask_maps.shape[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_device_and_dtype_are_those_of_the_parameters(dtype):
    model = fpg_zoo.create_model("retinanet_nano_fpg").to(dtype)
    assert (model.device, model.dtype) == (torch.device("cpu"), dtype)
    assert model.to("meta").device == torch.device("meta")


def test_a_batch_gives_what_its_images_give_alone(nano):
    images, sizes, wanted = _images(2), [SIZE, (128, 90)], [(50, 60), (256, 180)]
    together = nano.detect(images, sizes, wanted)
    assert len(together) == 2
    for i, found in enumerate(together):
        (alone,) = nano.detect(images[i : i + 1], sizes[i : i + 1], wanted[i : i + 1])
        assert found.size == wanted[i]
        assert len(found) == len(alone) > 0
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.boxes, alone.boxes, atol=1e-2, rtol=0)
        assert torch.equal(found.labels, alone.labels)
        if found.masks is not None:
            assert (found.masks != alone.masks).float().mean() < 1e-3


def test_what_lies_beyond_an_images_size_bears_no_detection(nano):
    (found,) = nano.detect(_images(), [(40, 30)])
    assert (found.boxes <= torch.tensor([30.0, 40, 30, 40])).all()
    assert found.size == (40, 30)


@pytest.mark.parametrize("name", NANO)
def test_scores_under_the_threshold_are_no_detections(name):
    # As initialized, RetinaNet's scores are about 0.01 (its prior) and Faster R-CNN's about 1 / 81 = 0.012, all under
    # the published threshold of 0.05.
    torch.manual_seed(0)
    (found,) = fpg_zoo.create_model(name).detect(_images(), [SIZE])
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert (found.masks is not None) == name.startswith("mask")


def test_an_empty_batch_gives_no_detections(nano):
    assert nano.detect(torch.zeros(0, 3, SIDE, SIDE), []) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_another_floating_point_type_than_the_models_is_refused(nano, dtype):
    with pytest.raises(ValueError, match=rf"images is {dtype} on cpu and the model torch\.float32 on cpu: move one"):
        nano.detect(_images().to(dtype), [SIZE])


@torch.no_grad()
def test_a_model_of_less_precision_casts_pixels_itself(nano):
    model = copy.deepcopy(nano).to(torch.bfloat16)
    (expected,), (found,) = model.detect(_images().bfloat16(), [SIZE]), model.detect(_images(), [SIZE])
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)
    assert len(found) > 0


def test_images_on_another_device_than_the_model_are_refused(nano):
    with pytest.raises(ValueError, match=r"images is torch\.float32 on meta and the model torch\.float32 on cpu"):
        nano.detect(_images().to("meta"), [SIZE])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_no_numbers_are_refused(nano, value):
    images = _images()
    images[0, 1, 127, 5] = value
    with pytest.raises(ValueError, match="images holds NaN or infinite values"):
        nano.detect(images, [SIZE])


@torch.no_grad()
def test_activations_that_are_no_numbers_are_no_instances(nano):
    # All scores are NaN, which is over no threshold, and no proposal has an area.
    (found,) = nano(torch.full((1, 3, SIDE, SIDE), float("nan")), [SIZE])
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.mask_maps is None or len(found.mask_maps) == 0


def test_a_twin_has_fewer_than_three_million_parameters(nano):
    count = sum(parameter.numel() for parameter in nano.parameters())
    assert count < 3_000_000
    assert fpg_zoo.model_info(nano.name).parameters == count


def test_the_gradient_reaches_every_parameter_from_the_raw_outputs(nano):
    pyramid = nano.neck(nano.backbone(_images()))
    if nano.name.startswith("retinanet"):
        logits, deltas = nano.head(pyramid)
        outputs = [*logits, *deltas]
    else:
        objectness, deltas = nano.rpn(pyramid)
        # One RoI for each of the four levels: sqrt(w * h) under 112, 224, 448, and over.
        regions = torch.tensor([[0.0, 0, 0, side, side] for side in (60, 128, 300, 500)])
        outputs = [*objectness, *deltas, *nano.box_head(pyramid, regions)]
        if nano.mask_head is not None:
            outputs.append(nano.mask_head(pyramid, regions))
    nano.zero_grad()
    sum(output.square().sum() for output in outputs).backward()
    without = [name for name, p in nano.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    nano.zero_grad()


# --- configs as data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_config_comes_back_from_json_equal(name):
    config = ARCHITECTURES[name].build_config()
    written = json.dumps(to_dict(config))
    assert from_dict(json.loads(written)) == config
    assert hash(from_dict(json.loads(written))) == hash(config)


def test_no_two_architectures_have_the_same_config():
    assert len({json.dumps(to_dict(ARCHITECTURES[name].build_config())) for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"type": "YOLOConfig"}, r"type='YOLOConfig': this version takes .*FPGConfig"),
        ({"start": 1}, r"type=None: this version takes"),
        # A list cannot be looked up among the names.
        ({"type": ["FPGConfig"]}, r"type=\['FPGConfig'\]: this version takes"),
        ({"type": "FPNConfig", "start": 1, "depth": 3}, r"'depth' is no field of FPNConfig, which has start, width,"),
        ({"type": "FPNConfig", "width": 256}, r"start is missing: it takes a whole number"),
        (
            {"type": "FPGConfig", "start": 0, "grid": {"type": "FPGGrid"}},
            r"grid\.directions is missing: it takes a list",
        ),
        (
            {"type": "FPGGrid", "directions": ["up"], "skipped": [[]], "levels": 1},
            r"levels=1: a grid needs at least 2 levels",
        ),
    ],
)
def test_data_that_is_no_config_is_refused(data, complaint):
    with pytest.raises(ConfigError, match=complaint):
        from_dict(data)
