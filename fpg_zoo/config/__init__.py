"""What a detector is made of, as data: frozen dataclasses without torch; `serialization` writes and reads them as JSON.

A detector config holds everything that decides the tensors of a model and the arithmetic of its detections.
Each config is consumed once, by the module of the same name in `fpg_zoo.modeling`. All raise ConfigError when they are
made of values that describe no detector.
"""

from fpg_zoo.config.backbones import BACKBONE_STAGES, BackboneConfig, ResNetConfig, TimmConfig
from fpg_zoo.config.detectors import DetectorConfig, PreprocessConfig, RetinaNetConfig, TwoStageConfig
from fpg_zoo.config.heads import AnchorConfig, BoxHeadConfig, MaskHeadConfig, RetinaHeadConfig, RPNConfig, SoftNMSConfig
from fpg_zoo.config.necks import (
    Direction,
    FPGConfig,
    FPGGrid,
    FPNConfig,
    Mapped,
    NASFPNConfig,
    NeckConfig,
    triangle_grid,
)

__all__ = [
    "BACKBONE_STAGES",
    "AnchorConfig",
    "BackboneConfig",
    "BoxHeadConfig",
    "DetectorConfig",
    "Direction",
    "FPGConfig",
    "FPGGrid",
    "FPNConfig",
    "Mapped",
    "MaskHeadConfig",
    "NASFPNConfig",
    "NeckConfig",
    "PreprocessConfig",
    "RPNConfig",
    "ResNetConfig",
    "RetinaHeadConfig",
    "RetinaNetConfig",
    "SoftNMSConfig",
    "TimmConfig",
    "TwoStageConfig",
    "triangle_grid",
]
