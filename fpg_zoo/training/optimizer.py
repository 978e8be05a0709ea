"""The optimizer and its parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from fpg_zoo.config.training import Schedule

_ADAMW_BETAS = (0.9, 0.99)  # a second moment over 100 steps follows a run of a few thousand


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def build_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Of the parameters that take a gradient; those of norms are a group of their own, without decay."""
    norms = {
        parameter
        for module in model.modules()
        if isinstance(module, _NORMS)
        for parameter in module.parameters(recurse=False)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one not in norms], "weight_decay": schedule.weight_decay},
        {"params": [one for one in trained if one in norms], "weight_decay": 0.0},
    ]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.lr, betas=_ADAMW_BETAS)
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)
