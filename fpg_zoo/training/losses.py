"""The sums that the losses are made of. Everything is in float32, whatever the network computes in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def binary_cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """Sum over elements; `positive` holds bools, or 0s and 1s, of the logits' shape."""
    return F.binary_cross_entropy_with_logits(logits.float(), positive.float(), reduction="sum")


def absolute_error(deltas: Tensor, wanted: Tensor) -> Tensor:
    """Sum of |deltas - wanted|."""
    return F.l1_loss(deltas.float(), wanted, reduction="sum")


def focal(logits: Tensor, positive: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al., arXiv 1708.02002), summed over elements.

    Args:
        logits: any shape.
        positive: bool, of that shape.
        alpha: weight of the positive elements; the negative ones have 1 - alpha.
        gamma: how much less an element counts that is told well.
    """
    logits = logits.float()
    probability = logits.sigmoid()
    target = positive.to(logits)
    miss = (1 - probability) * target + probability * (1 - target)
    weight = (alpha * target + (1 - alpha) * (1 - target)) * miss.pow(gamma)
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum()


def class_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over rows of (R, C) logits with (R,) int64 labels."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def nothing_of(*outputs: Tensor) -> Tensor:
    """A zero that depends on the outputs, so that their parameters have gradients (of zero) on every process."""
    return torch.stack([output.float().sum() * 0 for output in outputs]).sum()
