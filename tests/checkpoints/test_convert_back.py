"""Our files written back in the reference's format: its names, shapes and duplicates, and its class names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from command import run
from conftest import GOLDEN, golden_model
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo.modeling.build import build_detector

SCHEMAS = json.loads((GOLDEN / "schemas.json").read_text())


@pytest.mark.parametrize("name", ["faster_rcnn_r50_fpg", "retinanet_r50_fpg_chn128"])
@pytest.mark.slow
def test_what_is_written_back_is_the_published_schema(name: str, tmp_path: Path) -> None:
    golden_model(name).save_pretrained(tmp_path / "ours")
    code, told, err = run("convert", tmp_path / "ours", tmp_path / "back.pth", "--to", "reference")
    assert (code, err) == (0, "")
    assert (
        told
        == f"{tmp_path / 'back.pth'}: {name}, 80 classes, {len(SCHEMAS[name])} tensors under the reference's names\n"
    )
    written = torch.load(tmp_path / "back.pth", weights_only=True)
    found = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in written["state_dict"].items()
    ]
    assert sorted(found) == sorted(SCHEMAS[name])


def test_copies_of_a_shared_convolution_are_there_once_per_level(tmp_path: Path) -> None:
    tiny_model("retinanet_nano_fpg").save_pretrained(tmp_path / "ours.safetensors")
    assert run("convert", tmp_path / "ours.safetensors", tmp_path / "back.pth", "--to", "reference")[0] == 0
    written = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    levels = [written[f"bbox_head.cls_convs.{level}.0.conv.weight"] for level in range(5)]
    assert all(torch.equal(levels[0], level) for level in levels)
    norms = [written[f"bbox_head.cls_convs.{level}.0.bn.running_mean"] for level in range(5)]
    assert not torch.equal(norms[0], norms[1])


@pytest.mark.slow
def test_there_and_back_is_the_same_model_class_names_included(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="not loaded, initialised at random"):
        model = fpg_zoo.create_model(checkpoint=_saved(tmp_path), class_names=["cell", "platelet"])
    model.save_pretrained(tmp_path / "two.safetensors")
    assert run("convert", tmp_path / "two.safetensors", tmp_path / "two.pth", "--to", "reference")[0] == 0
    meta = torch.load(tmp_path / "two.pth", weights_only=True)["meta"]
    assert meta["CLASSES"] == ("cell", "platelet")  # where 2.x looks
    assert meta["dataset_meta"] == {"classes": ("cell", "platelet")}  # and 3.x
    back = fpg_zoo.create_model(checkpoint=tmp_path / "two.pth")
    assert (back.name, back.class_names) == (model.name, model.class_names)
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in model.state_dict().items())


def _saved(folder: Path) -> Path:
    path = folder / "nano.safetensors"
    tiny_model().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("out", "options", "cause"),
    [
        ("back.safetensors", ("--to", "reference"), "the reference's format is a file ending in .pth"),
        ("back", ("--to", "reference"), "the reference's format is a file ending in .pth"),
        ("folder.pth", ("--to", "reference"), "there is a folder of this name"),
        ("file/back.pth", ("--to", "reference"), "cannot write in"),
        ("back.pth", (), "give --to reference"),
    ],
)
def test_a_target_that_does_not_serve_is_refused_in_one_line(
    out: str, options: tuple[str, ...], cause: str, tmp_path: Path
) -> None:
    source = _saved(tmp_path)
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    code, told, err = run("convert", source, tmp_path / out, *options)
    assert (code, told) == (2, "")
    assert cause in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_grid_of_ones_own_has_no_names_in_the_reference(tmp_path: Path) -> None:
    config = fpg_zoo.model_info("faster_rcnn_nano_fpg").config
    grid = dataclasses.replace(config.neck.grid, directions=("up", "down"), skipped=((), ()))
    build_detector(
        dataclasses.replace(config, neck=dataclasses.replace(config.neck, grid=grid)), "custom"
    ).save_pretrained(tmp_path / "own")
    code, told, err = run("convert", tmp_path / "own", tmp_path / "own.pth", "--to", "reference")
    assert (code, told) == (2, "")
    assert err.count("\n") == 1
    assert "only published architectures have reference names" in err
    assert not (tmp_path / "own.pth").exists()
