"""What detects, by its name: a model of the zoo, or an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fpg_zoo.errors import ConfigError
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.inference.exported.formats import format_of
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.models.factory import create_model
from fpg_zoo.text import printable

AnyDetector = Detector | ExportedDetector


def open_model(name: str | None = None, *, device: torch.device | str = "cpu", **arguments: Any) -> AnyDetector:
    """A detector that is ready to detect.

    Args:
        name: as of `create_model`; or the path of an exported file, by its suffix.
        device: where to put it.
        arguments: the others of `create_model`. An exported file takes none that names weights or an architecture.

    Raises:
        ConfigError: an exported file comes with `checkpoint`, `backbone` or `config`.
        FPGZooError: as of `create_model` and `ExportedDetector`.
    """
    if name is None or format_of(name) is None:
        return create_model(name, device=device, **arguments)
    extra = [key for key in ("checkpoint", "backbone", "config") if arguments.get(key) is not None]
    if extra:
        raise ConfigError(f"{printable(name)} is an exported file, which has its own weights: leave out {extra[0]}")
    return ExportedDetector(Path(name).expanduser(), device)
