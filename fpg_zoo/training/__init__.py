"""Training: targets and losses of the published schedule."""

from fpg_zoo.training.criterion import Criterion

__all__ = ["Criterion"]
