"""From configs to modules."""

from __future__ import annotations

import torch

from fpg_zoo.config import DetectorConfig, TwoStageConfig
from fpg_zoo.modeling.detectors import Detector, RetinaNet, TwoStageDetector, _float32_by_default


def build_detector(config: DetectorConfig, name: str = "custom") -> TwoStageDetector | RetinaNet:
    """The detector that `config` describes, initialised for training, in train mode; of float32, on the current default
    device."""
    with _float32_by_default():
        if isinstance(config, TwoStageConfig):
            return TwoStageDetector(config, name)
        return RetinaNet(config, name)


def build_on_meta(config: DetectorConfig, name: str) -> Detector:
    """The detector in eval mode without memory or initial values, on the meta device."""
    with torch.device("meta"):
        return build_detector(config, name).eval()
