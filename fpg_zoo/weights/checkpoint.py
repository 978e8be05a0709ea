"""Reading checkpoint files of the reference's family, and only ever as data."""

from __future__ import annotations

import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpg_zoo.errors import CheckpointError, UnsafeCheckpointError

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")  # how torch's message names what the pickle asked for


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors under the reference's names, and the rest of what it says about itself."""

    state_dict: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes it was trained on, if it tells: `CLASSES`, or `dataset_meta` of newer files."""
        names = self.meta.get("CLASSES")
        dataset = self.meta.get("dataset_meta")
        if names is None and isinstance(dataset, dict):
            names = dataset.get("CLASSES", dataset.get("classes"))
        if isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names):
            return tuple(names)
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file written by torch.save, zip or legacy serialisation, on the CPU, with the safe unpickler alone.

    Args:
        path: a dict with the tensors under `state_dict` (and `meta` beside it), or a plain dict of tensors.

    Raises:
        UnsafeCheckpointError: its pickle asks for classes or functions that the safe unpickler does not admit.
        CheckpointError: it cannot be opened, is no torch file, is damaged, or holds no tensors.
    """
    if os.path.isdir(path):
        raise CheckpointError(f"{path}: a folder, not a checkpoint file; local-dir:{path} reads a model's folder")
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = _foreign_globals(path, error)
        if foreign:
            raise UnsafeCheckpointError(
                f"{path}: refused, its pickle asks for {', '.join(foreign)}; reading it could run code. Save it again "
                "with the tensors alone: torch.save({'state_dict': model.state_dict()}, path)"
            ) from None
        # Not torch's own message, which advises to read the file unsafely.
        raise CheckpointError(
            f"{path}: no checkpoint that torch.save wrote, or a damaged one; fetch it again"
        ) from None
    except MemoryError:
        raise CheckpointError(f"{path}: not enough memory to read it") from None
    except Exception as error:  # damaged files make the safe unpickler raise nearly anything
        raise CheckpointError(f"{path}: no readable torch file, or a damaged one ({_first_line(error)})") from None
    return _parse(path, content)


def _parse(path: Path, content: object) -> Checkpoint:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint's dict of tensors")
    state_dict = content.get("state_dict", content)
    meta = content.get("meta") if "state_dict" in content else None
    if not isinstance(state_dict, dict) or not state_dict:
        raise CheckpointError(f"{path}: no tensors under state_dict")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(value).__name__}, a checkpoint holds named tensors")
        if value.is_nested or value.is_meta or value.is_quantized or value.layout != torch.strided:
            raise CheckpointError(f"{path}: {name} is no plain tensor ({value.layout}, {value.device}, {value.dtype})")
    return Checkpoint(dict(state_dict), meta if isinstance(meta, dict) else {})


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _foreign_globals(path: Path, error: pickle.UnpicklingError) -> list[str]:
    """The names that the safe unpickler refused: all of them in a zip file, the first in a legacy one."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a legacy file, or a damaged one
        return _REFUSED.findall(str(error))[:1]
