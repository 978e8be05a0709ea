"""What a training run keeps on the disk: states to go on from, each whole or not there, and the best model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpg_zoo.errors import CheckpointError
from fpg_zoo.files import TEMPORARY, explained
from fpg_zoo.model_files import WEIGHTS_FILE, WeightsFile, write_safetensors
from fpg_zoo.modeling.detectors import Detector

_OPTIMIZER_FILE, _AVERAGE_FILE, _PROGRESS_FILE = "optimizer.safetensors", "average.safetensors", "progress.json"
_STATE = re.compile(r"state-(\d{8})")
_FIGURES_FILE = "figures.json"
BEST, LOG_FILE = "best", "log.jsonl"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: the optimiser's steps so far.
        settings: what the run was begun with, which a run that goes on must repeat.
    """

    step: int
    settings: dict[str, Any]


def save_state(
    run: Path,
    model: Detector,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor] | None,
    progress: Progress,
) -> Path:
    """Write a state, and remove those before it.

    Args:
        run: the run's folder.
        model: its weights and description go into `model.safetensors` and `config.json`, as of `save_pretrained`.
        optimizer: of the model's parameters.
        average: the averaged weights, by name, if there are any.
        progress: what else is needed to go on.

    Returns:
        The state's folder.

    Raises:
        StorageError: it cannot be written; the states before are kept then.
    """
    target = run / f"state-{progress.step:08}"
    with _folder_aside(run) as folder:
        model.save_pretrained(folder)
        _write(_kept(model, optimizer), folder / _OPTIMIZER_FILE)
        if average is not None:
            _write(average, folder / _AVERAGE_FILE)
        with explained(run):
            _write_text(folder / _PROGRESS_FILE, asdict(progress))
            folder.rename(target)
    _remove_before(target)
    return target


def newest_state(run: Path) -> Path | None:
    """The folder of the last state that was saved whole; None if there is none."""
    states = _states(run)
    return states[-1] if states else None


def read_progress(state: Path) -> Progress:
    """How far a saved run had come.

    Raises:
        CheckpointError: the record cannot be read.
    """
    try:
        progress = Progress(**json.loads((state / _PROGRESS_FILE).read_text(encoding="utf-8")))
        if type(progress.step) is not int or not isinstance(progress.settings, dict):
            raise ValueError("not as it was written")
        return progress
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{state}: no state to go on from ({error}); begin a new run") from None


def restore(state: Path, model: Detector, optimizer: torch.optim.Optimizer) -> dict[str, Tensor] | None:
    """Load a saved state into a model and its optimiser, and remove the states before it, which a kill may have left.

    Returns:
        The averaged weights by name; None if none were saved.

    Raises:
        CheckpointError: it is of another model, or cannot be read.
    """
    weights = WeightsFile(state / WEIGHTS_FILE).tensors()
    wanted = model.state_dict()
    if {name: tensor.shape for name, tensor in weights.items()} != {name: one.shape for name, one in wanted.items()}:
        raise CheckpointError(f"{state}: of another model than {model.name} for {len(model.class_names)} classes")
    model.load_state_dict(weights)
    parameters = dict(model.named_parameters())
    for label, tensor in WeightsFile(state / _OPTIMIZER_FILE).tensors().items():
        kind, _, name = label.partition("/")
        if name not in parameters or (tensor.ndim and tensor.shape != parameters[name].shape):
            raise CheckpointError(f"{state / _OPTIMIZER_FILE}: {label!r} is of no parameter; begin a new run")
        # AdamW's count of steps stays on the CPU, as it makes it.
        device = parameters[name].device if tensor.ndim else "cpu"
        optimizer.state[parameters[name]][kind] = tensor.to(device, copy=True)
    average = state / _AVERAGE_FILE
    _remove_before(state)
    return WeightsFile(average).tensors() if average.is_file() else None


def begun(run: Path) -> bool:
    """Whether there is anything of a run in the folder."""
    return newest_state(run) is not None or (run / BEST).exists() or (run / LOG_FILE).exists()


def best_figure(run: Path) -> float | None:
    """The figure of the best model so far; None if there is none.

    Raises:
        CheckpointError: its record cannot be read.
    """
    file = run / BEST / _FIGURES_FILE
    if not file.is_file():
        return None
    try:
        return float(next(iter(json.loads(file.read_text(encoding="utf-8")).values())))
    except (OSError, ValueError, TypeError, AttributeError, StopIteration) as error:
        raise CheckpointError(f"{file}: unreadable ({error}); move {run / BEST} away to go on") from None


def save_best(run: Path, model: Detector, figures: Mapping[str, float | None]) -> None:
    """Write the best model so far to `best/`, with its figures in `figures.json`, the one it is the best by first.

    Raises:
        StorageError: it cannot be written.
    """
    with _folder_aside(run) as folder:
        model.save_pretrained(folder)
        with explained(run):
            _write_text(folder / _FIGURES_FILE, figures)
            if (run / BEST).exists():
                shutil.rmtree(run / BEST)
            folder.rename(run / BEST)


def _write_text(path: Path, content: Mapping[str, Any]) -> None:
    """As JSON, on the disk when this returns: what goes before is removed then."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(dict(content), indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.touch()
    write_safetensors(tensors, path, {"format": "pt"})


def _kept(model: Detector, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser keeps of each parameter, as `KIND/PARAMETER`: momenta, moments, counts of steps."""
    return {
        f"{kind}/{name}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def _states(run: Path) -> list[Path]:
    folders = run.iterdir() if run.is_dir() else ()
    return sorted(folder for folder in folders if _STATE.fullmatch(folder.name) and folder.is_dir())


def _remove_before(state: Path) -> None:
    for older in _states(state.parent):
        if older.name < state.name:
            shutil.rmtree(older, ignore_errors=True)


@contextlib.contextmanager
def _folder_aside(run: Path) -> Iterator[Path]:
    """A new folder, removed at the end unless it was renamed; its files are on the disk before that."""
    with explained(run):
        run.mkdir(parents=True, exist_ok=True)
        for left in run.glob(f"{TEMPORARY}*"):  # of a process that was killed; a run has one at a time
            shutil.rmtree(left, ignore_errors=True)
        folder = run / f"{TEMPORARY}{uuid.uuid4().hex}"
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
