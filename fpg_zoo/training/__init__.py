"""Training: targets and losses of the published schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpg_zoo.training.criterion import Criterion

__all__ = ["Criterion"]


def __getattr__(name: str) -> Any:
    # Recipes are read without torch.
    if name != "Criterion":
        raise AttributeError(f"module 'fpg_zoo.training' has no attribute {name!r}")
    from fpg_zoo.training.criterion import Criterion

    return Criterion
