"""A backbone and a neck of somebody else's package, through everything that a detector goes through."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fpg_zoo
from fpg_zoo.config import DetectorConfig, ResNetConfig, RetinaNetConfig, TwoStageConfig
from fpg_zoo.config.catalog import ARCHITECTURES, Architecture
from fpg_zoo.config.training import Schedule
from fpg_zoo.errors import CheckpointError, ConfigError
from fpg_zoo.modeling.build import build_detector, build_on_meta
from fpg_zoo.modeling.detectors import RetinaNet
from fpg_zoo.modeling.parts import Backbone, Neck
from fpg_zoo.models.loading import architecture_of
from fpg_zoo.training import Criterion
from fpg_zoo.training.optimizer import build_optimizer
from fpg_zoo.weights.hub.card import model_card

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """Four strided convolutions after a stem."""

    channels: tuple[int, ...] = (8, 8, 16, 16)
    strides: tuple[int, ...] = (4, 8, 16, 32)
    label: str = "plain stack"


class Plain(Backbone):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.channels = config.channels
        self.stem = nn.Conv2d(3, 8, 4, stride=2, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            for inputs, outputs in zip((8, *config.channels[:-1]), config.channels, strict=True)
        )

    def stages(self) -> list[list[nn.Module]]:
        return [[self.stem], *([conv] for conv in self.convs)]

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images).relu()]
        for conv in self.convs:
            maps.append(conv(maps[-1]).relu())
        return maps[1:]


@dataclass(frozen=True, kw_only=True)
class FlatNeckConfig:
    """A 1x1 convolution for each stage; levels beyond are pooled."""

    start_level: int = 0
    out_channels: int = 16
    levels: int = 5
    halves_exactly: bool = False


class FlatNeck(Neck):
    def __init__(self, config: FlatNeckConfig, channels: Sequence[int]) -> None:
        super().__init__()
        self.config, self.out_channels = config, config.out_channels
        self.laterals = nn.ModuleList(
            nn.Conv2d(stage, config.out_channels, 1) for stage in channels[config.start_level :]
        )

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.laterals, stages[self.config.start_level :], strict=True)]
        while len(maps) < self.config.levels:
            maps.append(nn.functional.max_pool2d(maps[-1], 1, stride=2))
        return maps


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    from fpg_zoo.config import serialization
    from fpg_zoo.modeling import build

    fpg_zoo.register_backbone(PlainConfig, Plain)
    fpg_zoo.register_neck(FlatNeckConfig, FlatNeck)
    yield
    for config in (PlainConfig, FlatNeckConfig):  # for the other tests of this process
        del serialization._TYPES[config.__name__], serialization._NAMES[config]
        for parts in serialization._PARTS.values():
            if config in parts:
                parts.remove(config)
        build._BACKBONES.pop(config, None)
        build._NECKS.pop(config, None)


def _config(name: str) -> DetectorConfig:
    config = fpg_zoo.model_info(name).config
    start = 1 if isinstance(config, RetinaNetConfig) else 0
    small = dataclasses.replace(config.preprocess, longest_side=128)
    return dataclasses.replace(
        config, backbone=PlainConfig(), neck=FlatNeckConfig(start_level=start), preprocess=small, class_names=("a", "b")
    )


def _targets() -> list[dict[str, Tensor]]:
    masks = torch.zeros(1, 128, 128, dtype=torch.bool)
    masks[0, 20:90, 10:70] = True
    return [{"boxes": torch.tensor([[10.0, 20, 70, 90]]), "labels": torch.tensor([1]), "masks": masks}]


@pytest.mark.parametrize("name", ["mask_rcnn_nano_fpg", "retinanet_nano_fpg"])
def test_they_go_the_whole_way(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_detector(_config(name))
    images = torch.randn(2, 3, 128, 128)

    criterion = Criterion(model, frozen_stages=1)
    optimizer = build_optimizer(model, Schedule(epochs=1, lr=0.1))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    loss = torch.stack(list(criterion(images, [(128, 128)] * 2, _targets() * 2).values())).sum()
    loss.backward()
    optimizer.step()
    changed = {key.split(".")[1] for key, tensor in model.state_dict().items() if not torch.equal(before[key], tensor)}
    assert {"laterals", "convs"} <= changed
    assert "stem" not in changed
    assert torch.equal(before["backbone.convs.0.weight"], model.backbone.state_dict()["convs.0.weight"])

    model.eval()
    if isinstance(model, RetinaNet):
        nn.init.zeros_(model.head.classes.bias)  # a step from the prior finds nothing yet
    model.save_pretrained(tmp_path / "saved")
    again = fpg_zoo.create_model(f"local-dir:{tmp_path / 'saved'}")
    assert again.config == model.config
    photo = np.random.default_rng(0).integers(0, 256, (100, 128, 3), dtype=np.uint8)
    (expected,), (found,) = fpg_zoo.Predictor(model)(photo), fpg_zoo.Predictor(again)(photo)
    assert torch.equal(found.boxes, expected.boxes)
    assert len(found) > 0
    (fast,) = fpg_zoo.Predictor(fpg_zoo.optimize(model))(photo)
    torch.testing.assert_close(fast.scores, expected.scores, atol=1e-4, rtol=1e-3)
    assert "plain stack" in model_card(model, "me/mine")
    with pytest.raises(CheckpointError, match="only published architectures"):
        fpg_zoo.reference_state_dict(model)


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_a_row_without_names_of_the_reference_stops_no_other(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Architecture(name="own", method="RetinaNet", neck="Flat", build_config=lambda: _config("retinanet_nano_fpg"))
    rows = {"own": own} | ARCHITECTURES if first else ARCHITECTURES | {"own": own}
    monkeypatch.setattr("fpg_zoo.models.loading.ARCHITECTURES", rows)
    for name in ("retinanet_r50_fpn", "mask_rcnn_nano_fpg"):
        model = build_on_meta(fpg_zoo.model_info(name).config, name)
        assert architecture_of(fpg_zoo.reference_state_dict(model)) == name
        assert architecture_of(model.state_dict()) == name
    assert architecture_of(build_on_meta(_config("retinanet_nano_fpg"), "own").state_dict()) == "own"


def test_the_same_is_registered_once() -> None:
    with pytest.raises(ConfigError, match="PlainConfig is registered already, for Plain"):
        fpg_zoo.register_backbone(PlainConfig, Plain)
    with pytest.raises(ConfigError, match="FlatNeckConfig is registered already, for FlatNeck"):
        fpg_zoo.register_neck(FlatNeckConfig, FlatNeck)
    other = dataclass(frozen=True)(type("ResNetConfig", (), {}))
    with pytest.raises(ConfigError, match="there is a config class of the name ResNetConfig"):
        fpg_zoo.register_backbone(other, Plain)
    with pytest.raises(ConfigError, match="Loose is no frozen dataclass"):
        fpg_zoo.register_neck(type("Loose", (), {}), FlatNeck)


def test_what_is_not_registered_is_refused_by_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class UnknownConfig(ResNetConfig):
        pass

    config = fpg_zoo.model_info("retinanet_nano_fpg").config
    with pytest.raises(ConfigError, match=r"UnknownConfig is no config of a backbone: .*fpg_zoo.register_backbone"):
        build_detector(dataclasses.replace(config, backbone=UnknownConfig()))
    neck = dataclasses.make_dataclass("OtherConfig", [], bases=(FlatNeckConfig,), frozen=True, kw_only=True)(
        start_level=1
    )
    with pytest.raises(ConfigError, match=r"OtherConfig is no config of a neck: .*fpg_zoo.register_neck"):
        build_detector(dataclasses.replace(config, neck=neck))
    with pytest.raises(ConfigError, match="ResNetConfig is no config of a detector: use one of TwoStageConfig"):
        build_detector(ResNetConfig())  # type: ignore[arg-type]


def test_strides_are_the_backbones_own() -> None:
    config = _config("retinanet_nano_fpg")
    assert not isinstance(config, TwoStageConfig)
    other = PlainConfig(strides=(2, 4, 8, 16))
    with pytest.raises(ConfigError, match=r"5 levels from backbone stage 1 have \(4, 8, 16, 32, 64\)"):
        dataclasses.replace(config, backbone=other)
