"""The optimiser's parameter groups, and the learning rate as a function of how far training has come."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from fpg_zoo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Stochastic gradient descent with momentum, a linear warm-up and steps down.

    Attributes:
        epochs: how long to train.
        steps_down: the epochs, whole or not, after which the rate is a tenth of what it was.
        learning_rate: for batches of `reference_batch` images; it scales in proportion to the batch (Goyal et al.,
            arXiv 1706.02677).
        reference_batch: images.
        warmup_iterations: steps over which the rate grows evenly from `warmup_factor` of it to all of it.
        warmup_factor: 0..1.
        momentum: of the gradients.
        weight_decay: of all parameters but those of BatchNorms.
        greatest_gradient: the norm that gradients are scaled down to if they exceed it; None for no limit.
    """

    epochs: int
    steps_down: tuple[float, ...]
    learning_rate: float
    reference_batch: int = 64
    warmup_iterations: int = 1000
    warmup_factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    greatest_gradient: float | None = None

    def __post_init__(self) -> None:
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
            step: the steps of the optimiser taken before, over all epochs.
            batch: images of a step, over all processes and accumulated parts.
        """
        rate = self.learning_rate * batch / self.reference_batch
        rate *= 0.1 ** sum(epoch >= down for down in self.steps_down)
        if step < self.warmup_iterations:
            rate *= self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_iterations
        return rate


def build_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.SGD:
    """SGD over the parameters that take a gradient; those of BatchNorms in a group of their own, without decay."""
    norms = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters(recurse=False)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one not in norms], "weight_decay": schedule.weight_decay},
        {"params": [one for one in trained if one in norms], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=schedule.momentum)
