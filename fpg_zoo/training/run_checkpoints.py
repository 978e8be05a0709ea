"""What a training run keeps on the disk: states to go on from, each whole or not there, and the best model."""

from __future__ import annotations

import contextlib
import json
import math
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
from torch.amp import GradScaler

from fpg_zoo.checkpoints.safetensors_files import WEIGHTS_FILE, WeightsFile, write_safetensors
from fpg_zoo.errors import CheckpointError, ConfigError, StorageError
from fpg_zoo.files import TEMPORARY, read_regular, storage_errors
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.run_log import LOG_FILE
from fpg_zoo.text import printable

_OPTIMIZER_FILE, _AVERAGE_FILE, _PROGRESS_FILE = "optimizer.safetensors", "average.safetensors", "progress.json"
_STATE = re.compile(r"state-(\d{8})")
_METRICS_FILE = "figures.json"
BEST = "best"
_MAX_RECORD_BYTES = 16 << 20  # of `progress.json`, which has the name of each class
_REMEDY = "put back a copy of the state, or begin a new run in another folder"
_OF_LENGTH = ("recipe.schedule.epochs", "recipe.schedule.steps_down")
_MAX_SHOWN = 4  # settings that differ


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: the optimizer's steps so far.
        settings: what the run was started with, which a run that goes on must repeat.
        scaler: the state of the loss's scaling, in a run in float16.
    """

    step: int
    settings: dict[str, Any]
    scaler: dict[str, float] | None = None


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
    target = run / _state_name(progress.step)
    with _temporary_folder(run) as folder:
        model.save_pretrained(folder)
        write_safetensors(_kept(model, optimizer), folder / _OPTIMIZER_FILE, {"format": "pt"})
        if average is not None:
            write_safetensors(average, folder / _AVERAGE_FILE, {"format": "pt"})
        with storage_errors(run):
            _write_text(
                folder / _PROGRESS_FILE, {key: value for key, value in asdict(progress).items() if value is not None}
            )
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
        CheckpointError: the record cannot be read, or is not as it was written.
    """
    file = state / _PROGRESS_FILE
    try:
        content = json.loads(read_regular(file, max_bytes=_MAX_RECORD_BYTES))
        step, settings, scaler = content["step"], content["settings"], content.get("scaler")
        if type(step) is not int or state.name != _state_name(step):
            raise ValueError("its step is not that of the folder's name")
        if not isinstance(settings, dict) or content.keys() - {"step", "settings", "scaler"}:
            raise ValueError("not as it was written")
        if scaler is not None and (
            not isinstance(scaler, dict) or scaler.keys() != GradScaler("cpu").state_dict().keys()
        ):
            raise ValueError("its scaling is not as it was written")
        return Progress(step, settings, scaler)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        cause = (isinstance(error, OSError) and error.strerror) or printable(error)
        raise CheckpointError(f"{file}: no state to go on from ({cause}); {_REMEDY}") from None


def check_settings(
    state: Path, saved: Mapping[str, Any], current: Mapping[str, Any], *, extended: bool = False
) -> None:
    """Refuse to go on with other settings than a run was started with.

    Args:
        state: the saved state's folder.
        saved, current: the settings.
        extended: the run has ended, and goes on for more epochs.

    Raises:
        ConfigError: with what differs.
    """
    before, now = _flat(saved), _flat(json.loads(json.dumps(current)))
    differences = [
        f"{printable(name)} was {printable(before.get(name))}, is {printable(now.get(name))}"
        for name in before | now
        if before.get(name) != now.get(name) and not (extended and name in _OF_LENGTH)
    ]
    if differences:
        raise ConfigError(
            f"{state}: begun with other settings ({'; '.join(differences[:_MAX_SHOWN])}): repeat those, or begin a new "
            "run"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def restore(
    state: Path, model: Detector, optimizer: torch.optim.Optimizer, *, averaged: bool
) -> dict[str, Tensor] | None:
    """Load a saved state into a model and its optimizer, and remove the states before it, which a kill may have left.

    Args:
        state: its folder.
        model: its parameters that are trained take gradients.
        optimizer: of those.
        averaged: the run also keeps an average of the weights.

    Returns:
        The averaged weights by name; None if there are none.

    Raises:
        CheckpointError: it is of another model, is not whole, or cannot be read.
    """
    expected = _forms(model.state_dict())
    weights = _tensors(state / WEIGHTS_FILE)
    if _forms(weights) != expected:
        raise CheckpointError(f"{state}: of another model than {model.name} for {len(model.class_names)} classes")
    average = _tensors(state / _AVERAGE_FILE) if averaged else None
    if average is not None and _forms(average) != expected:
        raise CheckpointError(f"{state / _AVERAGE_FILE}: not the weights of this model; {_REMEDY}")
    kept = _tensors(state / _OPTIMIZER_FILE)
    _check_optimizer(state / _OPTIMIZER_FILE, kept, model)
    model.load_state_dict(weights)
    parameters = dict(model.named_parameters())
    for label, tensor in kept.items():
        kind, _, name = label.partition("/")
        # AdamW's count of steps stays on the CPU, as it makes it.
        device = parameters[name].device if tensor.ndim else "cpu"
        optimizer.state[parameters[name]][kind] = tensor.to(device, copy=True)
    _remove_before(state)
    return average


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return WeightsFile(file).tensors()
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_REMEDY}") from None


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _check_optimizer(file: Path, kept: Mapping[str, Tensor], model: Detector) -> None:
    """See that something of each kind is kept of every parameter that is trained, and of no other."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for label, tensor in kept.items():
        name = label.partition("/")[2]
        if name not in trained or (tensor.ndim and tensor.shape != trained[name].shape):
            raise CheckpointError(f"{file}: {printable(label)!r} is of no parameter; {_REMEDY}")
    states = {label.partition("/")[0] for label in kept}
    if not states:
        raise CheckpointError(f"{file}: holds nothing; {_REMEDY}")
    for label in (f"{state}/{name}" for state in sorted(states) for name in trained):
        if label not in kept:
            raise CheckpointError(f"{file}: {label!r} is missing; {_REMEDY}")


def has_run(run: Path) -> bool:
    """Whether there is anything of a run in the folder."""
    return newest_state(run) is not None or (run / BEST).exists() or (run / LOG_FILE).exists()


def best_metric(run: Path) -> float | None:
    """The metric of the best model so far; None if there is none.

    Raises:
        CheckpointError: its record is missing or cannot be read.
    """
    if not (run / BEST).exists():
        return None
    file = run / BEST / _METRICS_FILE
    try:
        figure = next(iter(json.loads(read_regular(file, max_bytes=_MAX_RECORD_BYTES)).values()))
        if type(figure) not in (int, float) or not math.isfinite(figure):
            raise ValueError("its first metric is no number")
        return float(figure)
    except (OSError, ValueError, AttributeError, StopIteration, RecursionError, OverflowError) as error:
        cause = (isinstance(error, OSError) and error.strerror) or printable(error) or "no figures"
        raise CheckpointError(f"{file}: unreadable ({cause}); move {run / BEST} away to go on") from None


def save_best(run: Path, model: Detector, metrics: Mapping[str, float | None]) -> None:
    """Write the best model so far to `best/`, with its metrics in `metrics.json`, the one it is the best by first.

    Raises:
        StorageError: it cannot be written.
    """
    with _temporary_folder(run) as folder:
        model.save_pretrained(folder)
        with storage_errors(run):
            _write_text(folder / _METRICS_FILE, metrics)
            if (run / BEST).exists():
                shutil.rmtree(run / BEST)
            folder.rename(run / BEST)


def _write_text(path: Path, content: Mapping[str, Any]) -> None:
    """As JSON, on the disk when this returns: what goes before is removed then."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(dict(content), indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _kept(model: Detector, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer keeps of each parameter, as `KIND/PARAMETER`: momenta, moments, counts of steps."""
    return {
        f"{kind}/{name}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def _state_name(step: int) -> str:
    return f"state-{step:08}"


def _states(run: Path) -> list[Path]:
    folders = run.iterdir() if run.is_dir() else ()
    return sorted(folder for folder in folders if _STATE.fullmatch(folder.name) and folder.is_dir())


def _remove_before(state: Path) -> None:
    for older in _states(state.parent):
        if older.name < state.name:
            shutil.rmtree(older, ignore_errors=True)


@contextlib.contextmanager
def _temporary_folder(run: Path) -> Iterator[Path]:
    """A new folder, removed at the end unless it was renamed; its files are on the disk before that."""
    with storage_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        for left in run.glob(f"{TEMPORARY}*"):  # of a process that was killed; a run has one at a time
            shutil.rmtree(left, ignore_errors=True)
        folder = run / f"{TEMPORARY}{uuid.uuid4().hex}"
        folder.mkdir()
    try:
        yield folder
    except StorageError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        with storage_errors(run):  # in place of a folder that will be gone
            raise error.__cause__ from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
