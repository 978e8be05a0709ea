"""What is asked of a logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np


class Logger(Protocol):
    """One place that a run is shown in. Only the main process has any.

    What it does not show, it need not define. The methods are called from one thread, `open` first and `close` last.
    One that stores on this machine raises StorageError where it cannot; one that is remote may raise anything.

    Attributes:
        remote: a run goes on without it when it fails.
        takes_images: whether `log_images` shows anything.
        takes_curves: whether `log_curves` shows anything.
    """

    remote: ClassVar[bool]
    takes_images: ClassVar[bool]
    takes_curves: ClassVar[bool]

    def open(self, step: int) -> None:
        """Begin, or go on with the same run after `step` steps; what was shown of later ones was lost."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Show the run's settings: names, numbers, texts, and mappings and lists of such."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show metrics after a step, or of an evaluation after it."""

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show images by name, each (H, W, 3) uint8 RGB."""

    def log_curves(self, step: int, curves: Mapping[str, np.ndarray]) -> None:
        """Show precision over recall by name, each (R,) float64 0..1 at R equal steps of recall from 0 to 1."""

    def close(self, failed: bool) -> None:
        """Write what is left. `failed` says that an error ends the run."""
