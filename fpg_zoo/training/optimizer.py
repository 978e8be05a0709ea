"""The optimizer and its parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from fpg_zoo.config.training import Schedule
from fpg_zoo.modeling.detectors import Detector

_ADAMW_BETAS = (0.9, 0.99)  # a second moment over 100 steps follows a run of a few thousand


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def build_optimizer(model: Detector, schedule: Schedule) -> torch.optim.Optimizer:
    """Of the parameters that take a gradient; those of norms are without decay.

    Each group has an `lr_scale`, that the schedule's rate is multiplied by.

    Raises:
        ConfigError: the rate is to differ by stage, and the backbone does not know where its own end.
    """
    norms = {
        parameter
        for module in model.modules()
        if isinstance(module, _NORMS)
        for parameter in module.parameters(recurse=False)
    }
    scales = _lr_scales(model, schedule.layer_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((scales.get(parameter, 1.0), parameter in norms), []).append(parameter)
    ordered = [
        {"params": parameters, "weight_decay": 0.0 if norm else schedule.weight_decay, "lr_scale": scale}
        for (scale, norm), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(ordered, lr=schedule.lr, betas=_ADAMW_BETAS)
    return torch.optim.SGD(ordered, lr=schedule.lr, momentum=schedule.momentum)


def _lr_scales(model: Detector, decay: float) -> dict[nn.Parameter, float]:
    """The share of the rate that the backbone's parameters learn at."""
    if decay == 1:
        return {}
    stages = model.backbone.stages()
    return {
        parameter: decay ** (len(stages) - place)
        for place, parts in enumerate(stages)
        for part in parts
        for parameter in part.parameters()
    }
