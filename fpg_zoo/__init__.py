"""The published Feature Pyramid Grids detectors (arXiv 2004.03580) on today's torch.

`create_model(name, pretrained=True)` gives a detector; `Predictor(model)` takes it to images. Importing this package
does not import torch; what needs it does so when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fpg_zoo.version import __version__

if TYPE_CHECKING:
    from fpg_zoo.errors import FPGZooError
    from fpg_zoo.inference.export import export
    from fpg_zoo.inference.optimized.detectors import optimize
    from fpg_zoo.inference.predictor import Predictor
    from fpg_zoo.modeling.build import register_backbone, register_neck
    from fpg_zoo.models.factory import ModelInfo, create_model, list_models, model_info
    from fpg_zoo.models.features import create_neck, features
    from fpg_zoo.models.loading import load_reference_state_dict, reference_state_dict
    from fpg_zoo.run_training import train
    from fpg_zoo.structures import Detections
    from fpg_zoo.weights.hub.push import push_to_hub

__all__ = [
    "Detections",
    "FPGZooError",
    "ModelInfo",
    "Predictor",
    "__version__",
    "create_model",
    "create_neck",
    "export",
    "features",
    "list_models",
    "load_reference_state_dict",
    "model_info",
    "optimize",
    "push_to_hub",
    "reference_state_dict",
    "register_backbone",
    "register_neck",
    "train",
]

_HOMES = {
    "Detections": "structures",
    "FPGZooError": "errors",
    "ModelInfo": "models.factory",
    "Predictor": "inference.predictor",
    "create_model": "models.factory",
    "create_neck": "models.features",
    "export": "inference.export",
    "features": "models.features",
    "list_models": "models.factory",
    "load_reference_state_dict": "models.loading",
    "model_info": "models.factory",
    "optimize": "inference.optimized.detectors",
    "push_to_hub": "weights.hub.push",
    "reference_state_dict": "models.loading",
    "register_backbone": "modeling.build",
    "register_neck": "modeling.build",
    "train": "run_training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fpg_zoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fpg_zoo.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
