"""Families on other backbones, through all that a detector goes through; ImageNet's weights; what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import environment, python, run
from safetensors.torch import save_file
from serving import Mirror, serve
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from training_runs import make_data

import fpg_zoo
from fpg_zoo.config import ResNetConfig, TimmConfig
from fpg_zoo.config.training import Schedule
from fpg_zoo.errors import CheckpointError, ConfigError, DigestError, FPGZooError
from fpg_zoo.modeling.build import build_backbone
from fpg_zoo.modeling.detectors import RetinaNet
from fpg_zoo.training import Criterion
from fpg_zoo.training.activation_checkpointing import apply_activation_checkpointing
from fpg_zoo.training.optimizer import build_optimizer
from fpg_zoo.weights import manifest
from fpg_zoo.weights.hub.card import model_card

pytestmark = pytest.mark.usefixtures("one_thread")

# A convolutional one, one of the MobileNet kind, one with attention; timm's smallest of each.
TIMM = ("timm:convnext_atto.d2_in1k", "timm:mobilenetv3_small_100", "timm:pvt_v2_b0")
SMALL = "[preprocess]\nlongest_side = 128\n"


def tensors_of(seed: int, model: nn.Module) -> dict[str, Tensor]:
    """Random values, so that one tensor is never taken for another."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(x.shape, generator=generator) + 0.5 if x.is_floating_point() else x
        for name, x in model.state_dict().items()
    }


def small(family: str, backbone: str, folder: Path) -> Path:
    """A config file of a family on a backbone, for images of 128 pixels."""
    file = folder / "small.toml"
    file.write_text(f'base = "{family}"\nbackbone = "{backbone}"\n{SMALL}')
    return file


def targets() -> list[dict[str, Tensor]]:
    masks = torch.zeros(1, 128, 128, dtype=torch.bool)
    masks[0, 20:90, 10:70] = True
    return [{"boxes": torch.tensor([[10.0, 20, 70, 90]]), "labels": torch.tensor([1]), "masks": masks}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "backbone"),
    [
        pytest.param("retinanet_fpg_chn128", "resnet101", marks=pytest.mark.slow),
        ("retinanet_fpg_chn128", TIMM[0]),
        pytest.param("mask_rcnn_fpn", TIMM[1], marks=pytest.mark.slow),
        pytest.param("faster_rcnn_fpg_chn128", TIMM[2], marks=pytest.mark.slow),
        pytest.param("retinanet_nasfpn", "resnext50_32x4d", marks=pytest.mark.slow),
    ],
)
def test_it_goes_the_whole_way(family: str, backbone: str, tmp_path: Path) -> None:
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    model = fpg_zoo.create_model(config=small(family, backbone, tmp_path), class_names=("a", "b")).train()
    if "fpg" in family:
        apply_activation_checkpointing(model)
    criterion = Criterion(model, frozen_stages=1)
    optimizer = build_optimizer(model, Schedule(epochs=1, lr=0.01))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    losses = criterion(torch.randn(2, 3, 128, 128), [(128, 128)] * 2, targets() * 2)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    after = model.state_dict()
    named = {f"backbone.{name}": parameter for name, parameter in model.backbone.named_parameters()}
    stem, first, *rest = [
        {name for name, one in named.items() if any(one is other for part in parts for other in part.parameters())}
        for parts in model.backbone.stages()
    ]
    assert all(torch.equal(before[key], after[key]) for key in stem | first)
    assert len(stem) > 0
    assert len(first) > 0
    assert all(any(not torch.equal(before[key], after[key]) for key in stage) for stage in rest)
    assert len(stem) + len(first) + sum(map(len, rest)) == len(list(model.backbone.parameters()))

    model = fpg_zoo.create_model(config=small(family, backbone, tmp_path), class_names=("a", "b"))
    if isinstance(model, RetinaNet):
        nn.init.zeros_(model.head.classes.bias)  # an untrained one finds nothing
    model.save_pretrained(tmp_path / "saved")
    again = fpg_zoo.create_model(f"local-dir:{tmp_path / 'saved'}")
    assert again.config == model.config
    photo = np.random.default_rng(0).integers(0, 256, (100, 128, 3), dtype=np.uint8)
    (expected,), (found,) = fpg_zoo.Predictor(model)(photo), fpg_zoo.Predictor(again)(photo)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=1e-4)  # memory lies otherwise
    form = fpg_zoo.optimize(model)
    images = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        for fast, plain in zip(form.neck(form.backbone(images)), model.neck(model.backbone(images)), strict=True):
            assert (fast - plain).abs().max() < 1e-4 * plain.abs().max()
    card = model_card(model, "me/mine").replace("\\", "")
    assert f"on a {model.config.backbone.label} with" in card
    assert ("fpg-zoo[timm]" in card) == backbone.startswith("timm:")
    info = run("info", f"local-dir:{tmp_path / 'saved'}", "--json")
    assert json.loads(info.out)["parameters"] == sum(x.numel() for x in model.parameters())


def test_the_name_is_the_published_one_on_resnet50_alone() -> None:
    assert fpg_zoo.model_info("retinanet_fpg", backbone="resnet50").name == "retinanet_r50_fpg"
    assert fpg_zoo.model_info("mask_rcnn_fpg_chn128", backbone="resnet34").name == "mask_rcnn_resnet34_fpg_chn128"


def test_stages_strides_and_anchors_follow_the_backbone() -> None:
    pytest.importorskip("timm")
    # timm's figures for it: strides 2 to 32, of which a pyramid takes 4 to 32; its own mean and deviation.
    config = fpg_zoo.model_info("retinanet_fpn", backbone="timm:tf_efficientnet_lite0").config
    assert config.backbone.channels == (24, 40, 112, 320)
    assert config.backbone.strides == (4, 8, 16, 32)
    assert config.preprocess.mean == config.preprocess.std == (127.5, 127.5, 127.5)
    # Without a stage of stride 4, a two-stage detector begins at 8, and its anchors keep their 32 to 512 pixels.
    short = TimmConfig(name="convnext_atto", indices=(1, 2, 3), channels=(80, 160, 320), strides=(8, 16, 32))
    config = fpg_zoo.model_info("faster_rcnn_fpg", backbone=short).config
    assert config.rpn.anchors.strides == (8, 16, 32, 64, 128)
    assert config.rpn.anchors.scales == (4.0,)
    assert config.preprocess.pad_divisor == 128
    # With two stages there are three levels beyond them.
    two = TimmConfig(name="convnext_atto", indices=(1, 2), channels=(80, 160), strides=(8, 16))
    model = fpg_zoo.create_model("retinanet_fpg_chn128", backbone=two)
    assert [tuple(x.shape[-2:]) for x in model.neck(model.backbone(torch.zeros(1, 3, 128, 256)))] == [
        (16, 32),
        (8, 16),
        (4, 8),
        (2, 4),
        (1, 2),
    ]


@pytest.mark.slow
def test_a_timm_model_gives_timms_own_maps() -> None:
    timm = pytest.importorskip("timm")
    for name, last in (("convnext_atto", False), ("swin_tiny_patch4_window7_224", True)):
        backbone = fpg_zoo.model_info("retinanet_fpn", backbone=f"timm:{name}").config.backbone
        assert isinstance(backbone, TimmConfig)
        assert backbone.channels_last is last
        ours = build_backbone(backbone).eval()
        any_size = {"strict_img_size": False} if last else {}
        theirs = timm.create_model(name, features_only=True, out_indices=backbone.indices, **any_size)
        theirs.eval().load_state_dict({key.removeprefix("body."): x for key, x in ours.state_dict().items()})
        images = torch.randn(1, 3, 128, 192)
        with torch.inference_mode():
            for x, y in zip(ours(images), theirs(images), strict=True):
                assert torch.equal(x, y.permute(0, 3, 1, 2) if last else y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "retinanet_fpg"}, "is a family: give it a backbone.*it is retinanet_r50_fpg$"),
        ({"name": "retinanet_r50_fpg", "backbone": "resnet18"}, "has a backbone, ResNet-50.*'retinanet_fpg' takes one"),
        ({"name": "retinanet_nano_fpg", "backbone": "resnet18"}, "these take one: faster_rcnn_fpg, "),
        ({"name": "retinanet_fpg", "backbone": "resnet10"}, "no backbone 'resnet10'.*did you mean.*timm:NAME"),
        ({"name": "retinanet_fgp", "backbone": "resnet18"}, "no model 'retinanet_fgp'.*retinanet_fpg"),
        ({"name": "retinanet_fpg.x", "backbone": "resnet18"}, "tags name published weights"),
        ({"name": "retinanet_fpg", "backbone": "resnet18", "pretrained": True}, "no published checkpoint"),
        ({"name": "retinanet_r50_fpg", "pretrained": True, "pretrained_backbone": True}, "give one of them"),
        ({"name": "retinanet_r50_fpg", "pretrained_backbone": True, "backbone_checkpoint": "x"}, "give one of them"),
        ({"name": "retinanet_nano_fpg.shapes", "backbone_checkpoint": "x"}, "leave the tag out"),
        ({"name": "retinanet_r50_fpg", "backbone_checkpoint": ""}, "backbone_checkpoint='': give a file"),
        ({"name": "retinanet_nano_fpg", "pretrained_backbone": True}, "no weights from ImageNet are known"),
        ({"checkpoint": "x", "backbone": "resnet18"}, "goes with the name of a family"),
        ({"name": "retinanet_r50_fpg", "backbone_checkpoint": "/nothing.pth"}, "/nothing.pth: no such file"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FPGZooError, match=message):
        fpg_zoo.create_model(**arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_tny", "gives no feature maps.*did you mean convnext_tiny"),
        ("vit_tiny_patch16_224", r"strides \[16, 16, 16\]: a pyramid takes at least two"),
        ("nest_tiny", "takes no image of 384x256 pixels"),
        # timm would look for these in the network, or in a folder.
        ("", "name='': give timm's name of a model"),
        ("../x", "give timm's name of a model"),
        ("hf-hub:someone/something", "give timm's name of a model"),
        ("local-dir:/tmp", "give timm's name of a model"),
    ],
)
def test_a_timm_model_that_is_no_backbone_is_refused(name: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message):
        fpg_zoo.create_model("retinanet_fpn", backbone=f"timm:{name}")


@pytest.mark.slow
def test_without_timm_one_line_says_so(tmp_path: Path) -> None:
    program = "import sys; sys.modules['timm'] = None; from fpg_zoo.cli import main; sys.exit(main(sys.argv[1:]))"
    for command in (
        ("info", "retinanet_fpn", "--backbone", "timm:convnext_atto"),
        ("train", "--model", "retinanet_fpn", "--backbone", "timm:x", "--data", ".", "--output", str(tmp_path / "r")),
    ):
        done = python("-c", program, *command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "fpg-zoo: the backbone is one of timm, which is not installed: pip install 'fpg-zoo[timm]'\n"
        )
    assert python("-c", program, "list").returncode == 0


# ImageNet's weights


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as running:
        yield running


def published_as(model: nn.Module, name: str, mirror: Mirror, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve a state dict as torchvision publishes it, named by its hash, with a manifest that lists it."""
    draft = folder / "draft.pth"
    torch.save(tensors_of(1, model), draft)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    file = draft.rename(folder / f"{name}-{digest[:8]}.pth")
    content = json.loads(manifest.manifest_path().read_bytes())
    (row,) = [row for row in content["backbones"] if row["architecture"] == name]
    mirror.files[f"/models/{file.name}"] = file.read_bytes()
    row.update(url=f"{content['backbone_host']}/models/{file.name}", sha256=digest[:8])
    (folder / "manifest.json").write_text(json.dumps(content))
    monkeypatch.setattr(manifest, "manifest_path", lambda: folder / "manifest.json")
    manifest.load_manifest.cache_clear()
    monkeypatch.setenv("FPG_ZOO_MIRROR", mirror.url)
    return file


@pytest.fixture(autouse=True)
def _manifest_of_the_zoo() -> Iterator[None]:
    yield
    manifest.load_manifest.cache_clear()


@pytest.mark.slow
def test_torchvisions_file_comes_through_the_store(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = published_as(resnet50(), "resnet50", mirror, tmp_path, monkeypatch)
    model = fpg_zoo.create_model("retinanet_r50_fpn", pretrained_backbone=True)
    expected = {name: x for name, x in tensors_of(1, resnet50()).items() if not name.startswith("fc.")}
    found = model.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    assert run("download", "resnet50").out.startswith("resnet50.imagenet1k_v1: ")
    assert len(mirror.requests) == 1  # cached
    assert run("verify").out.startswith("good ")
    assert "weights" in run("cache", "list").out
    # A file is known by its digest: the cache is emptied, and a flipped byte on the way is found.
    for kept in Path(run("cache", "path").out.strip()).iterdir():
        kept.unlink()
    altered = bytearray(file.read_bytes())
    altered[len(altered) // 2] ^= 1
    mirror.files[f"/models/{file.name}"] = bytes(altered)
    with pytest.raises(DigestError, match="altered on its way"):
        fpg_zoo.create_model("retinanet_r50_fpn", pretrained_backbone=True)


TRAIN = """
import sys
from pathlib import Path
from fpg_zoo.weights import manifest
manifest.manifest_path = lambda: Path(sys.argv[1])
from fpg_zoo.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_the_published_recipe_starts_from_imagenet_under_torchrun(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_as(resnet50(), "resnet50", mirror, tmp_path, monkeypatch)
    data = make_data(tmp_path / "data", pictures=4)
    config = tmp_path / "small.toml"
    config.write_text(f'base = "retinanet_r50_fpn"\n{SMALL}')
    (tmp_path / "train.py").write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += [str(tmp_path / "train.py"), str(tmp_path / "manifest.json"), "train", "--config", str(config)]
    command += ["--data", str(data), "--output", str(tmp_path / "run"), "--recipe", "crop640_50e", "--epochs", "1"]
    command += ["--batch-size", "2", "--workers", "0", "--device", "cpu", "--save-every", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    assert "backbone: ResNet-50, trained on ImageNet" in done.stderr
    assert len(mirror.requests) == 1  # for both processes
    (state,) = (tmp_path / "run").glob("state-*")
    trained = fpg_zoo.create_model(checkpoint=state / "model.safetensors").backbone.state_dict()
    file = tensors_of(1, resnet50())
    frozen = [name for name in trained if name.startswith(("conv1.", "bn1.", "layer1."))]
    assert len(frozen) > 50
    assert all(torch.equal(trained[name], file[name]) for name in frozen)
    assert not torch.equal(trained["layer2.0.conv1.weight"], file["layer2.0.conv1.weight"])


def test_a_start_that_nobody_asked_for_and_cannot_be_had_names_its_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = make_data(tmp_path / "data", pictures=1)
    common = ("train", "--model", "retinanet_fpn", "--backbone", "resnet18", "--data", data, "--output", tmp_path / "r")
    code, _, err = run(*common, "--device", "cpu")
    assert code == 2
    assert "HF_HUB_OFFLINE" in err
    assert "--no-pretrained-backbone --recipe scratch" in err
    code, _, err = run(*common, "--device", "cpu", "--no-pretrained-backbone")
    assert code == 2
    assert "would stay at its random beginning" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "form", ["torchvision", "mmdetection", "mmpretrain", "module", "safetensors", "ours", "folder"]
)
def test_a_backbone_comes_from_anybodys_file(form: str, tmp_path: Path) -> None:
    values = tensors_of(2, resnet18())
    body = {name: x for name, x in values.items() if not name.startswith("fc.")}
    file = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
    if form == "torchvision":
        torch.save(values, file)
    elif form == "mmdetection":  # of a whole detector
        other = {"neck.lateral_convs.0.conv.weight": torch.ones(1)}
        torch.save({"meta": {}, "state_dict": {f"backbone.{name}": x for name, x in body.items()} | other}, file)
    elif form == "mmpretrain":  # BatchNorms of old files do not count batches
        old = {f"backbone.{name}": x for name, x in body.items() if "num_batches" not in name}
        torch.save({"state_dict": old | {"head.fc.weight": torch.ones(2, 2)}}, file)
    elif form == "module":
        torch.save({"state_dict": {f"module.{name}": x for name, x in values.items()}}, file)
    elif form == "safetensors":
        save_file(values, file)
    else:
        whole = fpg_zoo.create_model("faster_rcnn_fpn", backbone="resnet18")
        whole.backbone.load_state_dict(body)
        file = tmp_path / ("saved" if form == "folder" else "ours.safetensors")
        whole.save_pretrained(file)
    model = fpg_zoo.create_model("retinanet_fpn", backbone="resnet18", backbone_checkpoint=file)
    found = model.backbone.state_dict()
    for name, x in body.items():
        assert torch.equal(found[name], x) or (form == "mmpretrain" and "num_batches" in name), name


def test_another_backbones_file_is_refused(tmp_path: Path) -> None:
    torch.save(tensors_of(2, resnet18()), tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError, match=r"x\.pth: not the weights of this backbone, as \d+ of its \d+ tensors are"
    ):
        fpg_zoo.create_model("retinanet_r50_fpn", backbone_checkpoint=tmp_path / "x.pth")
    wide = ResNetConfig(block="basic", depths=(2, 2, 2, 2), width=32)
    with pytest.raises(CheckpointError, match=r"x\.pth: of another backbone: tensors of other shapes: conv1\.weight"):
        fpg_zoo.create_model("retinanet_fpn", backbone=wide, backbone_checkpoint=tmp_path / "x.pth")


@pytest.mark.slow
def test_timms_file_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    values = tensors_of(3, timm.create_model("mobilenetv3_small_100"))
    save_file(values, tmp_path / "model.safetensors")
    model = fpg_zoo.create_model(
        "retinanet_fpn", backbone="timm:mobilenetv3_small_100", backbone_checkpoint=tmp_path / "model.safetensors"
    )
    found = model.backbone.state_dict()
    # This model's maps have timm's own names.
    assert all(torch.equal(x, values[name.removeprefix("body.")]) for name, x in found.items())
    del values["blocks.1.0.conv_pw.weight"]
    save_file(values, tmp_path / "less.safetensors")
    with pytest.raises(
        CheckpointError, match=r"less\.safetensors: not the weights.*lacks blocks\.1\.0\.conv_pw\.weight"
    ):
        fpg_zoo.create_model(
            "retinanet_fpn", backbone="timm:mobilenetv3_small_100", backbone_checkpoint=tmp_path / "less.safetensors"
        )
    state = torch.random.get_rng_state()
    fpg_zoo.model_info("retinanet_fpn", backbone="timm:convnext_atto")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_real_weights_from_imagenet_are_read(data_folder: Path) -> None:
    pytest.importorskip("timm")
    file = data_folder / "backbones" / "tf_efficientnet_lite0.in1k.safetensors"
    if not file.is_file():
        pytest.skip(f"needs timm's file: not at {file}")
    model = fpg_zoo.create_model("retinanet_fpn", backbone="timm:tf_efficientnet_lite0.in1k", backbone_checkpoint=file)
    again = fpg_zoo.create_model(
        "faster_rcnn_fpg_chn128", backbone="timm:tf_efficientnet_lite0.in1k", backbone_checkpoint=file
    )
    from safetensors.torch import load_file

    values = load_file(file)
    found = model.backbone.state_dict()
    assert all(
        torch.equal(x, values[name.removeprefix("body.")]) for name, x in found.items() if "num_batches" not in name
    )
    assert all(torch.equal(x, found[name]) for name, x in again.backbone.state_dict().items())


def test_a_saved_timm_backbone_of_another_timm_is_refused() -> None:
    pytest.importorskip("timm")
    known = fpg_zoo.model_info("retinanet_fpn", backbone="timm:convnext_atto").config.backbone
    assert isinstance(known, TimmConfig)
    with pytest.raises(ConfigError, match=r"was saved with .*install the version of timm that it was saved with"):
        build_backbone(dataclasses.replace(known, channels=(8, 16, 24, 32)))
