"""What a detector costs: of known networks, of layers counted by hand, and of the catalog's rows."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fpg_zoo
from fpg_zoo.config.catalog import ARCHITECTURES, COSTS
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.costs import count_costs, count_layers


def test_a_convolution_and_a_linear_layer_counted_by_hand() -> None:
    with torch.device("meta"):
        convolution, linear = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 10)

    def run() -> Tensor:
        maps = convolution(torch.empty(1, 8, 20, 30, device="meta"))  # (1, 16, 20, 30)
        maps.relu_()
        output: Tensor = linear(maps.mean((2, 3)))
        return output

    counts = count_layers(run)
    assert counts.flops == 2 * (3 * 3 * 8) * 16 * 20 * 30 + 2 * 16 * 10
    assert counts.activations == 16 * 20 * 30 + 10
    assert counts.peak == 4 * (8 + 16) * 20 * 30  # the convolution's input and output


def test_resnet_50_costs_what_is_known_of_it() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet50().eval()
    counts = count_layers(lambda: model(torch.empty(1, 3, 224, 224, device="meta")))
    # 4.09 G multiplications with additions (torchvision), 11.1 M activations (timm, and arXiv 2003.13678).
    assert round(counts.flops / 2e9, 2) == 4.09
    assert round(counts.activations / 1e6, 1) == 11.1


def test_the_parts_that_can_be_counted_by_hand() -> None:
    # The box head of 1,000 proposals: 48 x 7 x 7 to 256, to 256, to 81 classes and 320 deltas. The mask head of 100
    # detections: two 3x3 convolutions of 48 channels on 14 x 14, doubled by a 2x2 one, 80 maps of 28 x 28.
    box = 2 * 1000 * (48 * 49 * 256 + 256 * 256 + 256 * (81 + 320))
    mask = 2 * 100 * (2 * 9 * 48 * 48 * 14 * 14 + 4 * 48 * 48 * 14 * 14 + 48 * 80 * 28 * 28)
    mask_values = 100 * (2 * 48 * 14 * 14 + 48 * 28 * 28 + 80 * 28 * 28)
    config = fpg_zoo.model_info("faster_rcnn_nano_fpg").config
    small, large = (count_costs(config, (side, 384)) for side in (192, 384))
    # All but the box head goes by the number of pixels.
    assert large.flops - small.flops == small.flops - box
    assert large.activations - small.activations == small.activations - 1000 * (256 + 256 + 81 + 320)
    masks = count_costs(fpg_zoo.model_info("mask_rcnn_nano_fpg").config)
    assert masks.flops - large.flops == mask
    assert masks.activations - large.activations == mask_values


def test_the_image_is_padded_and_its_size_checked() -> None:
    info = fpg_zoo.model_info("retinanet_nano_fpg")  # padded to multiples of 128
    assert info.cost((200, 256)) == info.cost((256, 129)) != info.cost()
    assert info.cost(384) == info.cost((384, 384)) == info.cost() == COSTS["retinanet_nano_fpg"]
    assert info.cost(256).parameters == info.parameters
    with pytest.raises(ConfigError, match="image_size=0: it takes a whole number of at least 1"):
        info.cost((0, 640))


NAMES = [name if "nano" in name else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


@pytest.mark.parametrize("name", NAMES)
def test_the_catalogue_has_what_is_counted(name: str) -> None:
    assert COSTS[name] == count_costs(ARCHITECTURES[name].build_config())
    assert COSTS[name].parameters == sum(parameter.numel() for parameter in fpg_zoo.create_model(name).parameters())
