"""The trained small models that come with the package: there, whole, small, and as good as the table says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from command import run
from conftest import ROOT
from safetensors.torch import load_file

import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.errors import CheckpointError, DigestError
from fpg_zoo.models.loading import fetch
from fpg_zoo.weights import manifest as manifest_module
from fpg_zoo.weights.hub.card import model_card
from fpg_zoo.weights.hub.push import published_as
from fpg_zoo.weights.manifest import Published, load_manifest

NANO = ("faster_rcnn_nano_fpg", "mask_rcnn_nano_fpg", "retinanet_nano_fpg")
pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _entry(name: str) -> Published:
    return load_manifest().find(name, "shapes")


def test_three_come_with_the_package() -> None:
    packaged = [entry.name for entry in load_manifest().checkpoints if entry.packaged]
    assert sorted(packaged) == [f"{one}.shapes" for one in NANO]


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("faster_rcnn_nano_fpg", "mask_rcnn_nano_fpg"),  # of which it is a part
        ("mask_rcnn_nano_fpg", "mask_rcnn_nano_fpg"),
        ("retinanet_nano_fpg", "retinanet_nano_fpg"),
    ],
)
def test_one_is_small_and_says_how_it_was_made(name: str, trained: str) -> None:
    entry = _entry(name)
    assert entry.packaged is not None
    assert entry.packaged.stat().st_size < 6_000_000
    assert {tensor.dtype for tensor in load_file(entry.packaged).values()} == {torch.float16, torch.int64}
    assert entry.command is not None
    assert f"train --model {trained} --data shapes" in entry.command
    assert entry.log_url is not None
    last = json.loads((ROOT / entry.log_url).read_text(encoding="utf-8").splitlines()[-1])
    # Measured in the run in single precision, in the table in half: equal to a hundredth of the range.
    assert last["box_AP"] * 100 == pytest.approx(entry.box_ap, abs=1)


@pytest.mark.parametrize("name", NANO)
@pytest.mark.slow
def test_one_is_created_offline_and_finds_what_was_drawn(name: str) -> None:
    model = fpg_zoo.create_model(name, pretrained=True)
    assert model.dtype == torch.float32
    assert model.class_names == ShapesDataset.class_names
    scenes = ShapesDataset("val", num_images=10)
    pictures = [scenes[index].image for index in range(10)]
    found = sum(len(one.above(0.5)) for one in fpg_zoo.Predictor(model)(pictures))
    drawn = sum(len(scenes.image_info(index).objects) for index in range(10))
    assert drawn / 2 < found < drawn * 2


def test_an_altered_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = _entry(NANO[0])
    copy = _installed_elsewhere(entry, tmp_path, monkeypatch)
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    config = fpg_zoo.model_info(NANO[0]).config
    with pytest.raises(DigestError, match=r"comes with fpg-zoo, and was altered .*install it again"):
        fetch(entry, config)
    copy.unlink()
    with pytest.raises(CheckpointError, match="comes with fpg-zoo, and is not there; install it again"):
        fetch(entry, config)


def _installed_elsewhere(entry: Published, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if the package were in `folder`."""
    assert entry.packaged is not None
    (folder / "packaged").mkdir()
    copied = Path(shutil.copy(entry.packaged, folder / "packaged"))
    monkeypatch.setattr(manifest_module, "__file__", str(folder / "manifest.py"))
    return copied


def test_the_command_tells_of_them() -> None:
    code, out, err = run("download", NANO[1])
    assert (code, err) == (0, "")
    path = Path(out.strip().partition(": ")[2])
    assert path == _entry(NANO[1]).packaged
    code, out, _ = run("verify", str(path))
    assert (code, out) == (0, f"good     {path}  comes with fpg-zoo\n")
    code, out, _ = run("info", NANO[1])
    assert code == 0
    for fact in ("fpg_zoo.data.shapes val", _entry(NANO[1]).sha256, "train --model mask_rcnn_nano_fpg"):
        assert fact in out


def test_a_push_knows_them_again() -> None:
    model = fpg_zoo.create_model(NANO[2], pretrained=True)
    entry = published_as(model)
    assert entry == _entry(NANO[2])
    card = model_card(model, "owner/repo", published=entry)
    assert "AP in percent on fpg_zoo.data.shapes val" in card
    assert "which comes with fpg_zoo" in card
    assert "COCO val2017" not in card
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert published_as(model) is None


def test_what_is_fetched_is_not_packaged() -> None:
    assert dataclasses.replace(_entry(NANO[0]), url="https://example.org/a.pth").packaged is None
