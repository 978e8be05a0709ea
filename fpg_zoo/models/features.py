"""Pyramids for other people's detectors: a neck alone, or backbone and neck as torchvision's detectors take them."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fpg_zoo.config import FPGConfig, FPNConfig, NASFPNConfig, NeckConfig
from fpg_zoo.config.detectors import pyramid_strides
from fpg_zoo.config.families import FAMILIES
from fpg_zoo.errors import ConfigError, UnknownNameError
from fpg_zoo.modeling.build import build_neck
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.parts import Neck
from fpg_zoo.modeling.preprocess import padded_size
from fpg_zoo.models.factory import create_model
from fpg_zoo.text import quoted
from fpg_zoo.weights.manifest import nearest

# By the end of a family's name: fpg, fpg_chn128, fpn, nasfpn.
NECKS: dict[str, NeckConfig] = {
    family.removeprefix(method): row.build_config().neck
    for family, row in FAMILIES.items()
    for method in ("faster_rcnn_", "retinanet_")
    if family.startswith(method)
}


def create_neck(
    name: str | NeckConfig, in_channels: Sequence[int], *, extra_levels: Literal["pool", "conv"] = "pool"
) -> Neck:
    """A pyramid alone, initialized for training, in train mode.

    Args:
        name: `fpg`, `fpg_chn128` or `fpn`, of five levels as published; `nasfpn`, of five levels on three maps; or a
            config, of which the pyramid is as it says.
        in_channels: of each map that it will be given, fine to coarse.
        extra_levels: how levels beyond the maps are made: `pool` subsamples by 2, as in the two-stage detectors, `conv`
            is a 3x3 convolution of stride 2, as in RetinaNet. `nasfpn` pools, and a config says it itself.

    Returns:
        A module that takes a list of maps (N, in_channels[i], H_i, W_i), each half the size of the one before, and
        gives a sequence of maps (N, out_channels, H_l, W_l), fine to coarse. `out_channels` is its attribute. FPG and
        NAS-FPN need sizes that halve without a remainder at every level.

    Raises:
        UnknownNameError: no such neck.
        ConfigError: it does not fit that many maps, or channels that are no positive whole numbers.
    """
    for place, channels in enumerate(in_channels):
        if type(channels) is not int or channels < 1:
            raise ConfigError(f"in_channels[{place}]={quoted(channels)}: it takes a whole number of at least 1")
    if not in_channels:
        raise ConfigError("in_channels=[]: give the channels of each map")
    if not isinstance(name, str):
        return build_neck(name, tuple(in_channels))
    if name not in NECKS:
        raise UnknownNameError(f"no neck {quoted(name)}: {nearest(name, list(NECKS))}")
    if extra_levels not in ("pool", "conv"):
        raise ConfigError(f"extra_levels={quoted(extra_levels)}: it takes 'pool' or 'conv'")
    config = NECKS[name]
    if isinstance(config, NASFPNConfig):
        return build_neck(dataclasses.replace(config, start_level=0), tuple(in_channels))
    assert isinstance(config, (FPGConfig, FPNConfig))
    config = dataclasses.replace(config, start_level=0, extra_levels=extra_levels)
    return build_neck(config, tuple(in_channels))


class Features(nn.Module):
    """Backbone and pyramid of a detector.

    `forward`: images (N, 3, H, W) of any size, normalized by `image_mean` and `image_std`, to an ordered dict of maps
    under `"0"`, `"1"`, ..., fine to coarse, each (N, out_channels, H / strides[l], W / strides[l]), sizes rounded up.

    Attributes:
        backbone, neck: the detector's own modules.
        out_channels: of every map.
        strides: of each map, in pixels of the images.
        image_mean, image_std: per RGB channel on the 0..1 scale, as torchvision's detectors take them.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__()
        config = model.config
        self.backbone, self.neck = model.backbone, model.neck
        self.out_channels: int = model.neck.out_channels
        self.strides = pyramid_strides(config.backbone, config.neck)
        self.image_mean = [value / 255 for value in config.preprocess.mean]
        self.image_std = [value / 255 for value in config.preprocess.std]
        self._divisor = config.preprocess.pad_divisor

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        height, width = images.shape[-2:]
        padded_height, padded_width = padded_size(height, width, self._divisor)
        # Its caller takes strides from the maps' sizes, so they are cut to what they would be without the padding.
        pyramid = self.neck(self.backbone(F.pad(images, (0, padded_width - width, 0, padded_height - height))))
        return OrderedDict(
            (str(level), x[..., : -(-height // stride), : -(-width // stride)])
            for level, (x, stride) in enumerate(zip(pyramid, self.strides, strict=True))
        )


def features(model: str | Detector, **arguments: Any) -> Features:
    """A detector's backbone and pyramid, in place of the `backbone` of torchvision's `FasterRCNN`, `MaskRCNN`,
    `RetinaNet` and the like.

    Args:
        model: a detector, whose modules are taken over; or a name as of `fpg_zoo.create_model`.
        arguments: of `create_model`, beside the name: `backbone`, `pretrained_backbone`, `pretrained`, ...

    Returns:
        The module, in eval mode as the detector is. Its `image_mean` and `image_std` are to be given to torchvision's
        detector.

    Raises:
        ConfigError: arguments beside a detector; and what `create_model` raises.
    """
    if isinstance(model, Detector):
        if arguments:
            raise ConfigError(f"{', '.join(arguments)}: they go with a name, and a detector is given")
        return Features(model)
    return Features(create_model(model, **arguments))
