"""The pyramid alone, and in torchvision's detectors."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import fpg_zoo
from fpg_zoo.config import FPNConfig
from fpg_zoo.errors import ConfigError, FPGZooError

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "torchvision_detectors.py"


@pytest.mark.parametrize(
    ("name", "in_channels", "width"),
    [
        ("fpg_chn128", (24, 40, 112), 128),
        ("fpg", (16, 16, 16, 16, 16), 256),
        ("fpn", (8, 16, 32, 64), 256),
        ("nasfpn", (24, 40, 112), 256),
        (FPNConfig(start_level=1, out_channels=32), (8, 16, 32), 32),
    ],
)
def test_a_neck_alone_has_five_levels(name: str | FPNConfig, in_channels: tuple[int, ...], width: int) -> None:
    neck = fpg_zoo.create_neck(name, in_channels)
    assert neck.out_channels == width
    assert neck.training
    maps = [torch.zeros(2, channels, 64 >> level, 32 >> level) for level, channels in enumerate(in_channels)]
    finest = 64 if isinstance(name, str) else 32
    expected = [(2, width, finest >> level, finest // 2 >> level) for level in range(5)]
    assert [tuple(x.shape) for x in neck(maps)] == expected


def test_levels_beyond_the_maps_are_pooled_or_convolved() -> None:
    pooled, convolved = (fpg_zoo.create_neck("fpg_chn128", [8, 8, 8], extra_levels=how) for how in ("pool", "conv"))
    assert sum(x.numel() for x in convolved.parameters()) - sum(x.numel() for x in pooled.parameters()) == 2 * (
        128 * 128 * 9 + 128
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fgp", [8]), "no neck 'fgp': did you mean"),
        (("fpn", []), r"in_channels=\[\]: give the channels"),
        (("fpn", [8, 0]), r"in_channels\[1\]=0: it takes a whole number"),
        (("fpn", [8, 8.0]), r"in_channels\[1\]=8.0: it takes a whole number"),
        (("fpn", [8] * 6), "5 levels from backbone stage 0 of 6"),
        (("nasfpn", [8] * 4), "made for 3 stages of the backbone, and there are 4"),
    ],
)
def test_a_neck_that_does_not_fit_is_refused(arguments: tuple[str, list[int]], message: str) -> None:
    with pytest.raises(FPGZooError, match=message):
        fpg_zoo.create_neck(*arguments)


def test_features_are_the_detectors_own_whatever_the_size() -> None:
    model = fpg_zoo.create_model("retinanet_nano_fpg", pretrained=True)
    pyramid = fpg_zoo.features(model)
    assert pyramid.backbone is model.backbone
    assert (pyramid.out_channels, pyramid.strides) == (48, (8, 16, 32, 64, 128))
    assert pyramid.image_mean == pytest.approx([0.485, 0.456, 0.406])  # ImageNet's, as torchvision has them
    assert pyramid.image_std == pytest.approx([0.229, 0.224, 0.225])
    images = torch.randn(1, 3, 100, 200)
    with torch.inference_mode():
        maps = pyramid(images)
        whole = model.neck(model.backbone(torch.nn.functional.pad(images, (0, 56, 0, 28))))
    assert list(maps) == ["0", "1", "2", "3", "4"]
    assert [tuple(x.shape[-2:]) for x in maps.values()] == [(13, 25), (7, 13), (4, 7), (2, 4), (1, 2)]
    for x, y in zip(maps.values(), whole, strict=True):
        assert torch.equal(x, y[..., : x.shape[-2], : x.shape[-1]])
    with pytest.raises(ConfigError, match="backbone: they go with a name"):
        fpg_zoo.features(model, backbone="resnet18")


@pytest.mark.slow
def test_torchvisions_detectors_train_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The example, with images of 160 pixels: a step lowers the loss on what it was taken for."""
    example = runpy.run_path(str(EXAMPLE))
    torch.manual_seed(0)
    image = torch.rand(3, 160, 200)
    target = {
        "boxes": torch.tensor([[20.0, 30.0, 120.0, 150.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 160, 200, dtype=torch.uint8),
    }
    for method in ("faster_rcnn", "mask_rcnn", "retinanet"):
        model = example["build"](method)
        model.transform.min_size, model.transform.max_size = (160,), 200
        before = {name: x.clone() for name, x in model.backbone.state_dict().items()}
        loss = example["train_step"](model, [image, image.flip(-1)], [target, target])
        assert 0 < loss < 100
        changed = [name for name, x in model.backbone.state_dict().items() if not torch.equal(before[name], x)]
        assert {name.partition(".")[0] for name in changed} == {"backbone", "neck"}
        assert len(model.eval()([image])) == 1
