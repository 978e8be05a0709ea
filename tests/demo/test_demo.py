"""What the demo computes, writes and refuses; without its page."""

from __future__ import annotations

import base64
import functools
import json
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import run
from drawn_scenes import write_scene
from PIL import Image, ImageFilter

import fpg_zoo
from fpg_zoo.demo import markup
from fpg_zoo.demo.finding import Filters, Found, Models
from fpg_zoo.demo.serve import default_models
from fpg_zoo.errors import ImageError
from fpg_zoo.inference.open_model import open_model
from fpg_zoo.inference.predictor import Predictor
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.structures import Detections

pytestmark = pytest.mark.usefixtures("one_thread")

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="needs Gradio: pip install 'fpg-zoo[demo]'")


@functools.cache
def nano_model() -> Detector:
    return fpg_zoo.create_model("mask_rcnn_nano_fpg", pretrained=True)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "a scene.png")


@pytest.fixture(scope="module")
def found(scene: Path) -> Found:
    return Models({"nano": nano_model}).find(scene, "nano")


@pytest.fixture(scope="module")
def expected(scene: Path) -> Detections:
    (detections,) = Predictor(nano_model())(str(scene), score=0.05)
    assert len(detections) > 20
    return detections


def _changed(picture: Image.Image, other: Image.Image) -> np.ndarray:
    """(H, W) bool: where any color differs by more than enlarging explains."""
    pixels, others = (np.asarray(one, dtype=np.int64) for one in (picture, other))
    return np.abs(pixels - others).max(axis=2) > 40


def test_what_is_shown_is_what_the_predictor_detects(found: Found, expected: Detections) -> None:
    middle = float(expected.scores[len(expected) // 2])
    label = int(expected.labels[0])
    for filters, kept in (
        (Filters(score=0.05), torch.ones(len(expected), dtype=torch.bool)),
        (Filters(score=middle), expected.scores >= middle),
        (Filters(score=0.05, labels=frozenset({label})), expected.labels == label),
        (Filters(score=1.0), torch.zeros(len(expected), dtype=torch.bool)),
    ):
        shown = found.shown(filters)
        assert torch.equal(shown.detections.boxes, expected[kept].boxes)
        assert torch.equal(shown.detections.labels, expected[kept].labels)
        assert shown.rows == expected[kept].to_coco("a scene.png")
    assert [label for _, label in found.classes] == sorted(
        set(expected.labels.tolist()), key=lambda place: expected.class_names[place]
    )
    assert list(found.seconds) == ["reading", "preprocessing", "network"]
    assert all(value > 0 for value in found.seconds.values())


def test_boxes_and_masks_are_drawn_where_they_are_and_left_out_where_asked(found: Found, expected: Detections) -> None:
    score = float(expected.scores[2])  # the best three
    plain = found.shown(Filters(score, boxes=False, masks=False)).picture
    assert plain.size == (960, 720)  # 320 x 240, three times
    masks = found.shown(Filters(score, boxes=False)).picture
    union = expected.masks[expected.scores >= score].any(dim=0).numpy()  # type: ignore[index]
    near = Image.fromarray(np.kron(union, np.full((3, 3), 255, dtype=np.uint8)))
    inside, around = (np.asarray(near.filter(each(13))) > 0 for each in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    changed = _changed(masks, plain)
    assert changed[inside].mean() > 0.5
    assert not changed[~around].any()
    boxes = _changed(found.shown(Filters(score, masks=False)).picture, plain)
    x1, y1, _, y2 = (round(float(side) * 3) for side in expected.boxes[0])
    assert boxes[y1 : y2 + 1, x1 : x1 + 4].any(axis=1).mean() > 0.8  # the best one's left side


def test_filters_run_no_network_and_keep_no_masks(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = nano_model(), []
    detect = model.detect
    monkeypatch.setattr(model, "detect", lambda *given, **named: calls.append(1) or detect(*given, **named))
    found = Models({"nano": lambda: model}).find(scene, "nano")
    for score in (0.1, 0.5, 0.9):
        found.shown(Filters(score))
    assert calls == [1]
    assert found.detections.masks is None


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    Image.new("RGB", (3200, 100)).save(file)
    found = Models({"nano": nano_model}).find(file, "nano")
    assert (found.original_size, found.detections.size) == ((100, 3200), (50, 1600))
    assert "1600x50 pixels, reduced from 3200x100" in markup.summary(found, found.shown(Filters()))


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda file: file.write_text("no picture"), "bad.png: not an image in a format that is read"),
        (
            lambda file: Image.new("1", (8001, 8000)).save(file),
            "bad.png: 8001x8000 pixels, and the page takes at most 64",
        ),
    ],
)
def test_what_is_no_picture_is_told_without_its_place(tmp_path: Path, make: Callable[[Path], None], cause: str) -> None:
    make(tmp_path / "bad.png")
    with pytest.raises(ImageError) as refused:
        Models({"nano": nano_model}).find(tmp_path / "bad.png", "nano")
    assert str(refused.value).startswith(cause)
    assert str(tmp_path) not in str(refused.value)


def test_the_last_three_models_are_kept() -> None:
    opened: list[str] = []

    def opener(name: str) -> object:
        opened.append(name)
        return object()

    models = Models({name: functools.partial(opener, name) for name in "abcd"})
    for name in "abcadab":
        models.open(name)
    assert opened == ["a", "b", "c", "d", "b"]


def test_texts_are_texts_in_the_table_and_its_link(found: Found) -> None:
    name = "<img src=x onerror=alert(1)>\n&"
    detections = Detections(
        torch.tensor([[1.4, 2.6, 30, 40]]), torch.tensor([0.876]), torch.tensor([0]), None, (name,), (50, 60)
    )
    rows = detections.to_coco("x")
    own = Found("<b>.png", Image.new("RGB", (60, 50)), (50, 60), "<i>", detections, rows, False, {"network": 0.0123})
    shown = own.shown(Filters())
    text = markup.table(own, shown) + markup.summary(own, shown) + markup.problem("<u>")
    assert "<td>0.88</td><td>1</td><td>3</td><td>30</td><td>40</td>" in text
    assert r"&lt;img src=x onerror=alert(1)&gt;\n&amp;</td>" in text
    assert "<dt>network</dt><dd>12 ms</dd>" in text
    assert not {"<img", "<b>.", "<i>", "<u>"} & {text[place : place + 4].rstrip(">") for place in range(len(text))}
    link = text.split("base64,")[1].split('"')[0]
    assert json.loads(base64.b64decode(link)) == rows


def test_the_packaged_models_come_first_and_one_with_masks_begins() -> None:
    names = list(default_models())
    assert names[0] == "mask_rcnn_nano_fpg"
    assert set(names[1:3]) == {"faster_rcnn_nano_fpg", "retinanet_nano_fpg"}
    assert len(names) == 13


# The command


def test_a_checkpoint_of_ones_own_is_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nano_model().save_pretrained(tmp_path / "own.safetensors")
    offered: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr("fpg_zoo.demo.serve.serve", lambda models, **_: offered.update(models))
    ended = run("demo", "--checkpoint", tmp_path / "own.safetensors", "--host", "0.0.0.0")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == "fpg-zoo: --host 0.0.0.0: whoever reaches this machine can use the page\n"
    assert list(offered) == ["own.safetensors"]
    model = open_model(**offered["own.safetensors"])
    assert repr(model) == repr(nano_model())


def test_without_gradio_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    ended = run("demo")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "fpg-zoo: the demo needs the package gradio: pip install 'fpg-zoo[demo]'\n"


@needs_gradio
def test_a_port_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run("demo", "--port", port)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"fpg-zoo: cannot listen at 127.0.0.1, port {port}: Address already in use; give another --port, or the --host "
        "of an address of this machine\n"
    )


@needs_gradio
@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("mask_rcnn_none",), "no model 'mask_rcnn_none' in the zoo"),
        (("--checkpoint", "x.pth", "mask_rcnn_nano_fpg", "retinanet_nano_fpg"), "--checkpoint and 2 models"),
        (("--config", "x.toml"), "--config: a detector of your own has no published weights"),
        (("--backbone", "resnet18"), "--backbone: a detector of your own has no published weights"),
        (("--checkpoint", "none.pth"), "none.pth: "),
        (("none.onnx",), "none.onnx"),
        (("--port", 0), "--port 0: a port lies in 1..65535"),
        (("--device", "quantum"), "quantum"),
        (("--examples", "none"), "none: no such folder of examples"),
        (("--examples", "."), ".: no images in this folder"),
    ],
)
def test_bad_options_are_refused_before_anything_is_served(
    options: tuple[str, ...], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("demo", *options)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert cause in line
