"""Exported files: what they detect, in every runtime, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import environment, run
from conftest import ROOT
from PIL import Image
from tiny_models import tiny_model
from torchvision.ops import box_iou

import fpg_zoo
from fpg_zoo import Detections, Predictor
from fpg_zoo.config.heads import SoftNMSConfig
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.errors import ExportError
from fpg_zoo.evaluation.detect import detect_all
from fpg_zoo.inference import export as exporting
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.exported.form import ExportedForm
from fpg_zoo.inference.exported.write import OPERATORS
from fpg_zoo.modeling.build import build_detector
from fpg_zoo.modeling.detectors import Detector

pytestmark = pytest.mark.usefixtures("one_thread")


WIDE = 4


def scenes() -> list[np.ndarray]:
    """Scenes of three sizes, and images without objects: gray, very wide, and of a pixel."""
    drawn = [ShapesDataset("val", 3, size=size)[2].image for size in ((240, 320), (320, 200), (384, 384))]
    images = [image.permute(1, 2, 0).numpy() for image in drawn]
    empty = [np.full(size, 128, dtype=np.uint8) for size in ((240, 320, 3), (20, 400, 3), (1, 1, 3))]
    return images + empty


def assert_the_same(expected: Detections, found: Detections) -> None:
    """At least 99 of 100 matched with an IoU over 0.99, scores within 1e-3 and masks over 0.98."""
    assert found.size == expected.size
    assert abs(len(found) - len(expected)) <= 0.01 * len(expected)
    if not len(expected):
        return
    overlaps = box_iou(expected.boxes, found.boxes)
    near = (expected.scores[:, None] - found.scores[None]).abs() <= 1e-3
    overlaps = torch.where(near & (expected.labels[:, None] == found.labels[None]), overlaps, 0.0)
    best, place = overlaps.max(1)
    assert int((best > 0.99).sum()) >= 0.99 * len(expected)
    if expected.masks is not None:
        assert found.masks is not None
        masks = found.masks[place]
        union = (expected.masks | masks).flatten(1).sum(1).clamp(min=1)
        shared = (expected.masks & masks).flatten(1).sum(1)
        filled = expected.masks.flatten(1).any(1)
        assert int(((shared / union > 0.98) | ~filled).sum()) >= 0.99 * len(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "suffix"),
    [("mask_rcnn_nano_fpg", ".onnx"), ("faster_rcnn_nano_fpg", ".pt2"), ("retinanet_nano_fpg", ".xml")],
)
def test_it_detects_what_the_model_detects(name: str, suffix: str, tmp_path: Path) -> None:
    model = fpg_zoo.create_model(name, pretrained=True)
    exported = fpg_zoo.export(model, tmp_path / f"model{suffix}", dynamic=["batch", "size"])
    assert exported.agreement.matched == exported.agreement.expected > 5
    assert sorted(file.suffix for file in tmp_path.iterdir()) == ([".bin", ".xml"] if suffix == ".xml" else [suffix])
    expected = Predictor(model)(scenes(), batch_size=1)
    predictor = Predictor(exported.path)
    assert all(map(len, expected[:3]))
    for batch_size in (1, 3):
        found = predictor(scenes(), batch_size)
        assert len(found) == len(expected)
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            if suffix != ".pt2" or place != WIDE:  # it is 64 pixels high, which such a file pads to 128
                assert_the_same(one, other)
    assert len(list(predictor.stream(scenes(), 2, score=0.5))) == len(expected)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "count"), [(tiny_model(), 100), (fpg_zoo.create_model("mask_rcnn_nano_fpg"), 0)])
def test_all_hundred_or_none(model: Detector, count: int, tmp_path: Path) -> None:
    side = model.config.preprocess.longest_side
    scene = ShapesDataset("val", 1, size=(side, side))[0].image.permute(1, 2, 0).numpy()
    (expected,) = Predictor(model)(scene)
    (found,) = Predictor(fpg_zoo.export(model, tmp_path / "model.torchscript", check=[scene]).path)(scene)
    assert (len(expected), len(found)) == (count, count)
    assert found.masks is not None
    assert found.masks.shape == (count, side, side)
    assert_the_same(expected, found)


def printed_by(example: str, model: Path, image: np.ndarray, file: Path) -> list[str]:
    """What a script of `examples/export` prints, without this package."""
    Image.fromarray(image).save(file)
    command = [sys.executable, str(ROOT / "examples" / "export" / example), str(model), str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=file.parent, env=environment(PYTHONPATH=""))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_tritons_config_is_of_such_a_file() -> None:
    text = (ROOT / "examples/export/triton/model_repository/fpg/config.pbtxt").read_text()
    form = ExportedForm(tiny_model(), OPERATORS["onnx"], canvas=(384, 384))
    assert tuple(re.findall(r'name: "(\w+)", data_type', text)) == ("images", *form.output_names)


@pytest.mark.slow
def test_images_as_they_are_and_whole_masks(tmp_path: Path) -> None:
    model = fpg_zoo.create_model("mask_rcnn_nano_fpg", pretrained=True)
    path = tmp_path / "model.onnx"
    exported = fpg_zoo.export(model, path, include=["preprocess", "masks"])
    assert exported.description.takes_pixels
    image = scenes()[0]
    (found,) = Predictor(path)(image)
    assert len(found)
    # By the runtime alone, as a program without this package would.
    outputs = dict(
        zip(
            exported.description.outputs,
            ExportedDetector(path)._session.run([torch.from_numpy(image).permute(2, 0, 1)[None]]),
            strict=True,
        )
    )
    number = int(outputs["num_detections"][0])
    assert number == len(found)
    assert outputs["masks"].shape[2:] == image.shape[:2]
    assert torch.equal(outputs["boxes"][0, :number], found.boxes)
    assert found.masks is not None
    assert torch.equal(outputs["masks"][0, :number].bool(), found.masks)
    assert (outputs["scores"][0, number:] == -1).all()
    lines = printed_by("onnx_runtime.py", path, image, tmp_path / "scene.png")
    assert [line.split()[0] for line in lines] == found.names
    assert [float(line.split()[1]) for line in lines] == pytest.approx(found.scores.tolist(), abs=1e-3)
    (expected,) = Predictor(model)(image)  # which is padded less
    assert len(found) == pytest.approx(len(expected), abs=2)
    scene = ShapesDataset("val", 3)
    rows = detect_all(ExportedDetector(path), scene, scene.category_ids, batch_size=2)
    by_hand = [
        row
        for index in range(3)
        for row in Predictor(path)(scene[index].image)[0].to_coco(scene.image_info(index).image_id, scene.category_ids)
    ]
    assert len(rows) > 3
    assert rows == by_hand
    with pytest.raises(ExportError, match="takes images as they are"):
        ExportedDetector(path).detect(torch.zeros(1, 3, 384, 384), [(384, 384)])


@pytest.mark.slow
def test_the_command_writes_a_file_that_the_others_take(tmp_path: Path) -> None:
    file, image = tmp_path / "model.torchscript", tmp_path / "scene.png"
    Image.fromarray(scenes()[2]).save(image)
    done = run(
        "export", "--model", "retinanet_nano_fpg", "--output", file, "--check", image, "--size", "384x384", "--json"
    )
    assert done.code == 0, done.err
    output = json.loads(done.out)
    assert output["agreement"]["images"] == 1
    assert output["description"]["size"] == [384, 384]
    rows = []
    for model in (str(file), "retinanet_nano_fpg"):
        done = run("predict", image, "--model", model, "--json", tmp_path / "rows.json")
        assert done.code == 0, done.err
        rows.append(json.loads((tmp_path / "rows.json").read_text()))
    assert rows[0]
    for one, other in zip(*rows, strict=True):
        assert one["category_id"] == other["category_id"]
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.01)
    figures = []
    for model in (str(file), "retinanet_nano_fpg"):
        arguments = ("--data", "shapes", "--limit", "20", "--workers", "0", "--json", tmp_path / "figures.json")
        assert run("eval", "--model", model, *arguments).code == 0
        figures.append(json.loads((tmp_path / "figures.json").read_text())["box"]["figures"]["AP"])
    assert figures[0] == pytest.approx(figures[1], abs=0.01)  # one is padded to 384 pixels, which moves a few
    refused = run("eval", "--model", file, "--data", "shapes", "--limit", "2", "--dtype", "bf16")
    assert (refused.code, "has its precision" in refused.err) == (2, True)
    refused = run("predict", image, "--model", file, "--checkpoint", image)
    assert (refused.code, "leave out checkpoint" in refused.err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".torchscript"])
def test_torch_alone_runs_it(suffix: str, tmp_path: Path) -> None:
    model = fpg_zoo.create_model("retinanet_nano_fpg", pretrained=True)
    path = fpg_zoo.export(model, tmp_path / f"model{suffix}").path
    opened = (
        "torch.export.load(path).module()" if suffix == ".pt2" else "__import__('torchvision') and torch.jit.load(path)"
    )
    script = (
        f"import sys, torch; path = {str(path)!r}; module = {opened}\n"
        "outputs = module(torch.zeros(1, 3, 384, 384), torch.tensor([[384, 384]]))\n"
        "assert 'fpg_zoo' not in sys.modules\n"
        f"assert ('torchvision' in sys.modules) == {suffix != '.pt2'}\n"
        "print(*(tuple(one.shape) for one in outputs))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment()
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "(1,) (1, 100, 4) (1, 100) (1, 100)"


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "dtype"), [(".pt2", "bf16"), (".xml", "bf16"), (".xml", "int8")])
def test_in_less_precision_it_finds_the_same_objects(suffix: str, dtype: Any, tmp_path: Path) -> None:
    if dtype == "int8":
        pytest.importorskip("nncf")
    model = fpg_zoo.create_model("retinanet_nano_fpg", pretrained=True)
    exported = fpg_zoo.export(model, tmp_path / f"model{suffix}", dtype=dtype, calibration=scenes()[:3])
    assert exported.description.dtype == dtype
    images = scenes()[:3]
    for one, other in zip(
        Predictor(model)(images, score=0.5), Predictor(exported.path)(images, score=0.5), strict=True
    ):
        assert len(one)
        assert sorted(one.names) == sorted(other.names)


def with_soft_nms() -> Detector:
    config: Any = fpg_zoo.model_info("retinanet_nano_fpg").config
    head = dataclasses.replace(config.head, soft_nms=SoftNMSConfig(method="linear"))
    return build_detector(dataclasses.replace(config, head=head)).eval()


@pytest.mark.parametrize(
    ("model", "name", "settings", "cause"),
    [
        (tiny_model, "m.bin", {}, "does not say the format"),
        (tiny_model, "m.onnx", {"format": "pt2"}, "does not say the format"),
        (tiny_model, "m.onnx", {"format": "tflite"}, "one of onnx, pt2"),
        (tiny_model, "m.onnx", {"dtype": "fp8"}, "one of fp32"),
        (tiny_model, "m.onnx", {"dtype": "bf16"}, "no bfloat16"),
        (tiny_model, "m.pt2", {"dynamic": ["batch", "sizes"]}, "'sizes' is not one of batch, size"),
        (tiny_model, "m.pt2", {"include": ["nms"]}, "'nms' is not one of preprocess, masks"),
        (tiny_model, "m.pt2", {"batch": 0}, "at least 1"),
        (tiny_model, "m.pt2", {"size": (100, 64)}, "multiples of 64"),
        (tiny_model, "m.pt2", {"size": (64, 64)}, "none fits"),
        (tiny_model, "m.pt2", {"size": (64, 64), "dynamic": ["size"]}, "leave one of them out"),
        (tiny_model, "m.torchscript", {"dynamic": ["batch"]}, "fixed number of images"),
        (lambda: copy.deepcopy(tiny_model()).train(), "m.pt2", {}, "train mode"),
        (lambda: fpg_zoo.optimize(tiny_model()), "m.pt2", {}, "optimized form"),
        (with_soft_nms, "m.pt2", {}, "soft_nms=linear"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(
    model: Any, name: str, settings: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=cause):
        fpg_zoo.export(model(), tmp_path / name, **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_where_file_and_model_do_not_agree_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    target = tmp_path / "model.torchscript"
    target.write_text("what was there")
    compare = exporting.compare
    monkeypatch.setattr(exporting, "compare", lambda *all: dataclasses.replace(compare(*all), agrees=False))
    with pytest.raises(ExportError, match="does not agree with the model"):
        fpg_zoo.export(model, target)
    assert [file.name for file in tmp_path.iterdir()] == ["model.torchscript"]
    assert target.read_text() == "what was there"


@pytest.mark.slow
def test_a_part_that_cannot_be_traced_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    forward = type(model.neck).forward

    def counting(self: Any, stages: Any) -> Any:
        if stages[0].sum() > 0:  # a way that depends on the values
            return forward(self, stages)
        return forward(self, [stage + 1 for stage in stages])

    monkeypatch.setattr(type(model.neck), "forward", counting)
    with pytest.raises(ExportError, match=f"its neck, {type(model.neck).__name__}, cannot be exported by torch"):
        fpg_zoo.export(model, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "suffix", "extra"), [("onnxscript", ".onnx", "onnx"), ("openvino", ".xml", "openvino")]
)
def test_a_runtime_that_is_not_there_is_named(
    missing: str, suffix: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    done = run("export", "--model", "retinanet_nano_fpg", "--output", tmp_path / f"model{suffix}")
    assert (done.code, f"{missing} is not installed: pip install 'fpg-zoo[{extra}]'" in done.err) == (2, True)


@pytest.mark.slow
def test_an_image_larger_than_the_file_is_told(tmp_path: Path) -> None:
    model = tiny_model()
    path = fpg_zoo.export(model, tmp_path / "model.torchscript", size=(64, 128)).path
    with pytest.raises(ExportError, match="64x128 pixels, and this one is 128x128"):
        ExportedDetector(path).detect(torch.zeros(1, 3, 128, 128), [(128, 128)])
