"""The optimizer's parameter groups, and the learning rate as a function of how far training has come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fpg_zoo.config.validation import check_one_of
from fpg_zoo.errors import ConfigError

_ADAMW_BETAS = (0.9, 0.99)  # a second moment over 100 steps follows a run of a few thousand


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """An optimizer, and its learning rate: a linear warm-up, then steps down or half a cosine.

    Attributes:
        epochs: how long to train.
        optimizer: `sgd`, stochastic gradient descent with momentum, or `adamw` (Loshchilov and Hutter,
            arXiv 1711.05101).
        decay: `steps`, a tenth of the rate after each of `milestones`, or `cosine`, from all of it to nothing at the
            end (arXiv 1608.03983).
        milestones: the epochs, whole or not, after which the rate is a tenth of what it was.
        learning_rate: for batches of `base_batch_size` images. That of `sgd` scales in proportion to the batch (Goyal
            et al., arXiv 1706.02677), that of `adamw` with its square root (Malladi et al., arXiv 2205.10287).
        base_batch_size: images.
        warmup_iterations: steps over which the rate grows evenly from `warmup_factor` of it to all of it.
        warmup_factor: 0..1.
        momentum: of the gradients, for `sgd`.
        weight_decay: of all parameters but those of norms.
        max_grad_norm: the norm that gradients are scaled down to if they exceed it; None for no limit.
    """

    epochs: int
    optimizer: Literal["sgd", "adamw"] = "sgd"
    decay: Literal["steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = ()
    learning_rate: float
    base_batch_size: int = 64
    warmup_iterations: int = 1000
    warmup_factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        check_one_of(("sgd", "adamw"), optimizer=self.optimizer)
        check_one_of(("steps", "cosine"), decay=self.decay)
        if self.epochs < 1 or not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(
                f"epochs={self.epochs}, learning_rate={self.learning_rate}: at least one epoch and a rate above 0"
            )
        if not 0 < self.warmup_factor <= 1 or self.warmup_iterations < 0:
            raise ConfigError(
                f"warmup_factor={self.warmup_factor}, warmup_iterations={self.warmup_iterations}: a factor above 0 and "
                "up to 1, and no fewer than 0 iterations"
            )

    def rate(self, epoch: float, step: int, batch: int) -> float:
        """The learning rate.

        Args:
            epoch: epochs done, 0 in the beginning.
            step: the steps of the optimizer taken before, over all epochs.
            batch: images of a step, over all processes and accumulated parts.
        """
        growth = batch / self.base_batch_size
        rate = self.learning_rate * (growth if self.optimizer == "sgd" else math.sqrt(growth))
        if self.decay == "cosine":
            rate *= (1 + math.cos(math.pi * min(epoch / self.epochs, 1.0))) / 2
        rate *= 0.1 ** sum(epoch >= down for down in self.milestones)
        if step < self.warmup_iterations:
            rate *= self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_iterations
        return rate


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
        return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=_ADAMW_BETAS)
    return torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=schedule.momentum)
