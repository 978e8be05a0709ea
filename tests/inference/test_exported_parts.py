"""The parts of an exported graph against what they stand for, on given values."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import nms

import fpg_zoo
from fpg_zoo.config import PreprocessConfig
from fpg_zoo.errors import ExportError
from fpg_zoo.inference.exported import pt2_files, roi_align, suppression
from fpg_zoo.inference.exported.description import Description, read_description
from fpg_zoo.inference.exported.preprocess import to_canvas
from fpg_zoo.inference.exported.same_padding import constant_same_padding
from fpg_zoo.modeling.heads.roi_align import aligned
from fpg_zoo.modeling.postprocess import paste_mask, paste_masks
from fpg_zoo.modeling.preprocess import padded_size, preprocess

pytestmark = pytest.mark.usefixtures("one_thread")
WAYS = [suppression.by_operator, suppression.by_kernel, suppression.by_tensors]


def boxes_like(rows: int, count: int, side: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * count)
    corner = torch.rand(rows, count, 2, generator=generator) * side
    return torch.cat((corner, corner + 5 + torch.rand(rows, count, 2, generator=generator) * 40), -1)


def test_the_padding_of_tensorflow_is_timms() -> None:
    """By hand: rows come to ceil(x / stride) of them, and where fewer are needed there is none."""
    padding = pytest.importorskip("timm.layers.padding")
    timms = padding.get_same_padding
    with constant_same_padding():
        of_exports = padding.get_same_padding
        assert of_exports is not timms
        assert [of_exports(x, 3, 2, 1) for x in (64, 63, 1)] == [1, 2, 2]
        assert [of_exports(x, 5, 2, 1) for x in (64, 63)] == [3, 4]
        assert [of_exports(x, 1, 2, 1) for x in (64, 63)] == [0, 0]
        assert [of_exports(x, 3, 1, 2) for x in (64, 63)] == [4, 4]
    assert padding.get_same_padding is timms


@pytest.mark.slow
def test_a_backbone_padded_as_tensorflow_does_takes_any_size(tmp_path: Path) -> None:
    """Its padding in floating point once kept the exporter busy without end."""
    pytest.importorskip("timm")
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "base": "retinanet_fpn",
                "backbone": "timm:tf_mobilenetv3_small_minimal_100",
                "preprocess": {"longest_side": 128},
                "neck": {"out_channels": 16},
                "head": {"width": 16, "score_threshold": 0.0},
            }
        )
    )
    torch.manual_seed(0)
    model = fpg_zoo.create_model(config=config, num_classes=3).eval()
    torch.nn.init.normal_(model.head.classes.weight, std=0.5)  # no two scores are equal
    done = fpg_zoo.export(model, tmp_path / "model.pt2", dynamic=["batch", "size"])
    assert done.agreement.at_once
    assert done.agreement.expected == 600
    assert done.agreement.matched >= 594


@pytest.mark.parametrize("suppress", WAYS)
@pytest.mark.parametrize("most", [5, 60])
def test_suppression_is_torchvisions(suppress: suppression.Suppression, most: int) -> None:
    boxes = boxes_like(3, 60, 80.0)
    scores = torch.rand(3, 60, generator=torch.Generator().manual_seed(1))
    scores[0, ::4] = -1
    scores[2] = -1  # a row without anything
    kept = suppress(boxes, scores, 0.5, most)
    assert kept.dtype == torch.bool
    for row in range(3):
        there = (scores[row] >= 0).nonzero().squeeze(1)
        expected = there[nms(boxes[row, there], scores[row, there], 0.5)[:most]]
        assert kept[row].nonzero().squeeze(1).tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("suppress", WAYS)
def test_suppression_by_hand(suppress: suppression.Suppression) -> None:
    # Two that share 80 of 120 pixels, an IoU of 2/3, and one apart; a chain whose ends do not touch.
    boxes = torch.tensor([[[0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60], [4, 0, 14, 10.0]]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    assert suppress(boxes, scores, 0.6, 4).tolist() == [[True, False, True, True]]
    assert suppress(boxes, scores, 0.7, 4).tolist() == [[True, True, True, True]]
    assert suppress(boxes, scores, 0.6, 1).tolist() == [[True, False, False, False]]


def test_masks_are_pasted_as_one_by_one() -> None:
    maps = torch.rand(2, 5, 28, 28, generator=torch.Generator().manual_seed(0))
    boxes = boxes_like(2, 5, 60.0)
    boxes[0, 0] = 0  # of no area
    boxes[1, 1] = torch.tensor([-10.0, -5.0, 300.0, 200.0])
    masks = paste_masks(maps, boxes, (70, 90))
    for image in range(2):
        for place in range(5):
            expected = paste_mask(maps[image, place], boxes[image, place].tolist(), (70, 90))
            assert torch.equal(masks[image, place], expected)


@pytest.mark.parametrize(
    "config",
    [
        PreprocessConfig(longest_side=96, pad_divisor=32),
        PreprocessConfig(longest_side=90, shortest_side=50, pad_divisor=32, channel_order="BGR"),
        PreprocessConfig(fixed_size=(64, 80), pad_divisor=32),
    ],
)
@pytest.mark.parametrize("size", [(48, 96), (61, 37), (1, 1), (7, 300), (333, 250), (96, 96)])
def test_pixels_become_the_networks_input(config: PreprocessConfig, size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size[0]))
    expected, sizes = preprocess([image], config)
    canvas = padded_size(96, 96, 32)
    images, found = to_canvas(image[None], canvas, config)
    assert found.tolist() == [list(sizes[0])]
    height, width = expected.shape[-2:]
    assert torch.equal(images[:, :, :height, :width], expected)
    assert not images[:, :, height:].any()
    assert not images[:, :, :, width:].any()


def test_roi_align_is_the_models() -> None:
    maps = torch.randn(2, 8, 20, 30, generator=torch.Generator().manual_seed(0))
    boxes = boxes_like(1, 40, 200.0)[0]
    boxes[3] = 0
    boxes[5, 2] += 900  # far out, and long
    rois = torch.cat((torch.arange(40)[:, None] % 2, boxes), 1)
    expected = aligned(maps, rois, 7, 1 / 8)
    assert torch.allclose(roi_align.by_tensors(maps, rois, 7, 1 / 8), expected, atol=1e-5)
    assert roi_align.by_tensors(maps, rois[:0], 7, 1 / 8).shape == (0, 8, 7, 7)


def described(**changes: Any) -> Description:
    info = fpg_zoo.model_info("mask_rcnn_nano_fpg")
    description = Description(
        name=info.name,
        config=info.config,
        dtype="fp32",
        batch=None,
        size=(384, 384),
        min_side=64,
        takes_pixels=False,
        outputs=("num_detections", "boxes"),
        versions={"fpg_zoo": "1"},
    )
    return dataclasses.replace(description, **changes)


def test_a_description_is_read_back() -> None:
    for one in (described(), described(batch=3, size=None, takes_pixels=True)):
        assert read_description(one.to_json(), "a file") == one


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda text: None, "no entry"),
        (lambda text: text[:-5], "describes no detector"),
        (lambda text: json.dumps({**json.loads(text), "format": 99}), "a later version"),
        (lambda text: json.dumps({**json.loads(text), "size": [1]}), "describes no detector"),
        (lambda text: json.dumps({**json.loads(text), "config": {"type": "os.system"}}), "describes no detector"),
        (lambda text: "[" * 100_000, "describes no detector"),
    ],
)
def test_another_description_is_refused(change: Any, cause: str) -> None:
    with pytest.raises(ExportError, match=cause) as caught:
        read_description(change(described().to_json()), "a.onnx")
    assert str(caught.value).startswith("a.onnx: ")


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("pt2") / "good.pt2"
    torch.export.save(torch.export.export(Doubled(), (torch.ones(2),)), path)
    return path


def rewritten(source: Path, target: Path, change: Any) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return target


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"torch.ops.aten.mul.Tensor", b"torch.os.system"),
        (b"torch.ops.aten.mul.Tensor", b"torch.hub.load"),
        (b"torch.ops.aten.mul.Tensor", b"_operator.methodcaller"),
        (b"torch.ops.aten.mul.Tensor", b"torch.ops.aten.mul.Tensor.__globals__"),
        (b'"inputs": [', b'"expr_str": "__import__(\'os\').system(\'true\')", "inputs": ['),
        (b'"inputs": [', b'"expr_str": "().__class__", "inputs": ['),
    ],
)
def test_a_program_that_is_no_arithmetic_is_not_opened(
    before: bytes, after: bytes, program: Path, tmp_path: Path
) -> None:
    assert pt2_files.load(program, {}) is not None
    hit = []

    def change(name: str, content: bytes) -> bytes:
        hit.append(name.endswith(".json") and before in content)
        return content.replace(before, after) if hit[-1] else content

    hostile = rewritten(program, tmp_path / "hostile.pt2", change)
    assert any(hit)
    with pytest.raises(ExportError, match="is not opened"):
        pt2_files.load(hostile, {})


def test_nothing_is_unpickled_but_tensors(program: Path, tmp_path: Path) -> None:
    trap = tmp_path / "ran"

    def change(name: str, content: bytes) -> bytes:
        return pickle.dumps(Trap(trap)) if name.endswith(".pt") else content

    hostile = rewritten(program, tmp_path / "hostile.pt2", change)
    with zipfile.ZipFile(hostile) as archive:
        assert any(name.endswith(".pt") for name in archive.namelist())
    with pytest.raises(pickle.UnpicklingError):
        pt2_files.load(hostile, {})
    assert not trap.exists()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pt2"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ExportError, match=r"no file of torch\.export"):
        pt2_files.load(file, {})
    shutil.copyfile(__file__, tmp_path / "b.onnx")
    for name in ("a.pt2", "b.onnx", "missing.onnx"):
        with pytest.raises(ExportError, match=name):
            fpg_zoo.Predictor(tmp_path / name)
