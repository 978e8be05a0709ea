"""Detectors that run in an instant and find things: the nano twins with the golden weights, on images of 128 pixels.

At their random initial weights they find nothing, each score being about 1/81, under the threshold of 0.05.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import torch
from golden_weights import golden_state_dict

import fpg_zoo
from fpg_zoo.checkpoints.mmdet_convert import from_reference
from fpg_zoo.config import ResNetConfig, TwoStageConfig
from fpg_zoo.modeling.build import build_detector
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.models.loading import Source, assemble, names_of

LONGEST_SIDE = 128


@functools.cache
def tiny_model(name: str = "mask_rcnn_nano_fpg") -> Detector:
    """A nano model in eval mode; the same object for every test, not to be changed."""
    config = fpg_zoo.model_info(name).config
    config = dataclasses.replace(config, preprocess=dataclasses.replace(config.preprocess, longest_side=LONGEST_SIDE))
    tensors = from_reference(golden_state_dict(fpg_zoo.create_model(name)), names_of(config))
    return assemble(Source(Path(name), config, name, tensors, lambda: tensors), None)[0]


def thin_twin(name: str) -> Detector:
    """A detector of the same parts, of 16 channels each, with random weights, that finds something everywhere."""
    config = fpg_zoo.model_info(name).config
    thin = {
        "backbone": ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=16),
        "neck": dataclasses.replace(config.neck, out_channels=16),
    }
    if isinstance(config, TwoStageConfig):
        mask = None if config.mask is None else dataclasses.replace(config.mask, width=16)
        rpn = dataclasses.replace(config.rpn, width=16, proposals=50)
        box = dataclasses.replace(config.box, width=16, score_threshold=0.0)
        config = dataclasses.replace(config, **thin, rpn=rpn, box=box, mask=mask)
    else:
        head = dataclasses.replace(config.head, width=16, score_threshold=0.0)
        config = dataclasses.replace(config, **thin, head=head)
    torch.manual_seed(0)
    return build_detector(config)
