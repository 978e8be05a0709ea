"""Detectors of one's own as files: all of a config, or what differs from a named one; and from the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from command import run
from training_runs import make_data

import fpg_zoo
from fpg_zoo.config import FPGConfig, FPGGrid, FPNConfig, ResNetConfig, RetinaNetConfig
from fpg_zoo.config.serialization import to_dict
from fpg_zoo.errors import ConfigError
from fpg_zoo.models.config_file import read_config_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def written(folder: Path, text: str, name: str = "own.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_only_what_differs_is_changed(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        name = "mine"
        base = "retinanet_r50_fpg_chn128"
        class_names = ["a", "b"]
        [neck]
        out_channels = 64
        [neck.grid]
        directions = ["up", "down"]
        skipped = [[], [4]]
        [head]
        depth = 2
        [preprocess]
        longest_side = 512
        """,
    )
    name, config = read_config_file(file)
    base = fpg_zoo.model_info("retinanet_r50_fpg_chn128").config
    assert isinstance(base, RetinaNetConfig)
    grid = FPGGrid(directions=("up", "down"), skipped=((), (4,)))
    assert name == "mine"
    assert config == dataclasses.replace(
        base,
        class_names=("a", "b"),
        neck=FPGConfig(start_level=1, out_channels=64, grid=grid, extra_levels="conv"),
        head=dataclasses.replace(base.head, depth=2),
        preprocess=dataclasses.replace(base.preprocess, longest_side=512),
    )


def test_a_part_of_another_type_begins_with_its_defaults(tmp_path: Path) -> None:
    text = {"base": "faster_rcnn_fpg", "backbone": "resnet18", "neck": {"type": "FPNConfig", "start_level": 0}}
    _, config = read_config_file(written(tmp_path, json.dumps(text), "own.json"))
    assert config.neck == FPNConfig(start_level=0)
    assert isinstance(config.backbone, ResNetConfig)
    assert config.backbone.block == "basic"
    # A table for the backbone changes the base's own.
    _, config = read_config_file(written(tmp_path, 'base = "retinanet_nano_fpg"\n[backbone]\nwidth = 32\n'))
    assert config.backbone.channels == (32, 64, 128, 256)


@pytest.mark.parametrize("name", ["mask_rcnn_r50_fpg", "retinanet_r50_nasfpn", "faster_rcnn_nano_fpg"])
def test_a_whole_config_is_the_same_again(name: str, tmp_path: Path) -> None:
    config = fpg_zoo.model_info(name).config
    assert read_config_file(written(tmp_path, json.dumps(to_dict(config)), "whole.json")) == ("whole", config)
    assert read_config_file(written(tmp_path, f'base = "{name}"\n')) == ("own", config)
    if name == "faster_rcnn_nano_fpg":
        fpg_zoo.create_model(name, class_names=("a", "b")).save_pretrained(tmp_path / "saved")
        saved = read_config_file(tmp_path / "saved" / "config.json")
        assert saved == (name, dataclasses.replace(config, class_names=("a", "b")))


FILES = sorted(file for file in EXAMPLES.glob("*/*") if file.suffix in (".toml", ".json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_example_describes_a_detector(file: Path) -> None:
    if "timm:" in file.read_text():
        pytest.importorskip("timm")
    assert fpg_zoo.model_info(config=file).name == file.stem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither base nor type: give base = 'NAME'"),
        ("base = 3", "base=3: it takes the name"),
        ('base = "retinanet_r50_fgp"', "no model 'retinanet_r50_fgp' in the zoo: did you mean .*retinanet_r50_fpg"),
        ('base = "retinanet_fpg"', "is a family: give it a backbone"),
        ('base = "retinanet_r50_fpg"\nbackbone = "resnet18"', "has a backbone, ResNet-50"),
        ('base = "retinanet_nano_fpg.shapes"', "leave the tag out"),
        ('base = "local-dir:/tmp"', "no model 'local-dir:/tmp'"),
        ('base = "retinanet_r50_fpg"\nname = "a b"', "name='a b': give the detector a name of letters"),
        ('base = "retinanet_r50_fpg"\nnek = 3', "'nek' is no field of RetinaNetConfig, which has backbone, neck, "),
        ('base = "retinanet_r50_fpg"\nneck = 3', "neck=3: it takes an object of type FPNConfig or "),
        ('base = "retinanet_r50_fpg"\n[neck]\nwidht = 3', "neck.'widht' is no field of FPGConfig"),
        ('base = "retinanet_r50_fpg"\n[neck]\nout_channels = 0', "neck: .*=0: it takes"),
        ('base = "retinanet_r50_fpg"\n[neck]\nout_channels = "3"', "neck.*='3': it takes a whole number"),
        ('base = "retinanet_r50_fpg"\n[neck]\ntype = "FPN"', "neck.type='FPN': this version takes FPNConfig or "),
        ('base = "retinanet_r50_fpg"\n[neck]\nstart_level = 0', r"anchors have strides \(8, 16"),
        ('base = "retinanet_r50_fpg"\n[preprocess]\npad_divisor = 32', "preprocess.pad_divisor=32"),
        ('base = "retinanet_r50_fpg"\n[head]\nnms_iou = 2.0', "head: nms_iou=2.0"),
        ('type = "RetinaNetConfig"', "backbone is missing: it takes"),
        ('type = "FPNConfig"\nstart = 0', "it takes the config of a whole detector"),
        ("base = ", r"own\.toml: no TOML \("),
        ("\ud800", r"own\.toml: no TOML \("),
    ],
)
def test_a_wrong_file_is_told_by_file_field_and_value(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=message) as caught:
        fpg_zoo.create_model(config=file)
    assert str(caught.value).startswith(str(file))
    code, out, err = run("info", "--config", file)
    assert (code, out, err) == (2, "", f"fpg-zoo: {caught.value}\n")


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    for file, message in (
        (tmp_path / "nothing.toml", "cannot be read"),
        (tmp_path, "ends in .toml or .json"),
        (written(tmp_path, "[]", "list.json"), "is no table of fields"),
        (written(tmp_path, "[" * 100_000, "deep.json"), "not JSON that can be read"),
        (written(tmp_path, "x: 1", "x.yaml"), "ends in .toml or .json"),
    ):
        with pytest.raises(ConfigError, match=message):
            fpg_zoo.create_model(config=file)
    with pytest.raises(ConfigError, match="a config of your own has none"):
        fpg_zoo.create_model(config=written(tmp_path, 'base = "retinanet_nano_fpg"'), pretrained=True)
    whole = written(tmp_path, json.dumps(to_dict(fpg_zoo.model_info("retinanet_nano_fpg").config)), "whole.json")
    with pytest.raises(ConfigError, match="with its backbone; name no other"):
        fpg_zoo.create_model(config=whole, backbone="resnet18")


@pytest.mark.slow
def test_every_command_takes_it(tmp_path: Path) -> None:
    """Info, train, eval, predict and convert; and train goes on from what was saved."""
    text = 'base = "retinanet_nano_fpg"\nclass_names = ["dark", "light"]\n[neck]\nout_channels = 16\n'
    config = written(tmp_path, text + "[preprocess]\nlongest_side = 128\n")
    data = make_data(tmp_path / "data", pictures=4)
    make_data(data, pictures=2, split="val")
    info = json.loads(run("info", "--config", config, "--json").out)
    assert (info["name"], info["config"]["neck"]["width"], info["checkpoints"]) == ("own", 16, [])

    common = ("--data", data, "--recipe", "scratch", "--epochs", "1", "--batch-size", "2", "--workers", "0")
    done = run("train", "--config", config, *common, "--output", tmp_path / "run", "--device", "cpu")
    assert done.code == 0, done.err
    best = tmp_path / "run" / "best"
    done = run("train", "--model", f"local-dir:{best}", *common, "--output", tmp_path / "again", "--device", "cpu")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "again" / "best" / "config.json").read_text())["architecture"] == "own"

    plain = tmp_path / "plain.pth"
    torch.save(fpg_zoo.create_model(f"local-dir:{best}").state_dict(), plain)
    given = ("--config", config, "--checkpoint", plain)
    done = run("eval", *given, "--data", data, "--split", "val", "--workers", "0", "--device", "cpu")
    assert (done.code, "AP50" in done.out) == (0, True), done.err
    done = run("predict", data / "val", *given, "--json", tmp_path / "found.json")
    assert done.code == 0, done.err
    done = run("convert", plain, tmp_path / "converted", "--config", config)
    assert done.code == 0, done.err
    assert fpg_zoo.create_model(f"local-dir:{tmp_path / 'converted'}").config.neck.out_channels == 16
    done = run("eval", "--config", config, "--data", data)
    assert (done.code, "has no published weights; give its own by --checkpoint" in done.err) == (2, True)
