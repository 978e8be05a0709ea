"""Exported files opened by their runtimes. Each runtime is imported when a file of its format is opened."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpg_zoo.errors import ExportError
from fpg_zoo.files import open_regular
from fpg_zoo.inference.exported import pt2_files
from fpg_zoo.inference.exported.description import KEY, Description, read_description
from fpg_zoo.inference.exported.formats import SUFFIXES, format_of
from fpg_zoo.inference.exported.quiet import quiet
from fpg_zoo.text import printable

# What a graph computes: inputs in order to outputs in order, on the CPU or the session's device.
Run = Callable[[Sequence[Tensor]], list[Tensor]]


class Session(NamedTuple):
    """An open file: what it says of itself, where it computes, and how it is run."""

    description: Description
    device: torch.device
    run: Run


_EXTRAS = {
    "onnxruntime": "onnx",
    "onnxruntime.quantization": "onnx",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "nncf": "openvino",
}


def import_runtime(name: str) -> ModuleType:
    """A package that a format needs.

    Raises:
        ExportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ExportError(f"{error.name} is not installed: pip install 'fpg-zoo[{_EXTRAS[name]}]'") from error


def open_session(path: Path, device: torch.device) -> Session:
    """Open an exported file.

    Args:
        path: ending in one of `SUFFIXES`.
        device: to compute on. OpenVINO computes on the CPU.

    Raises:
        ExportError: it is no exported file, is damaged, its runtime is not installed or has no such device.
    """
    kind = format_of(path)
    if kind is None:
        raise ExportError(
            f"{printable(path)}: an exported file ends in {', '.join(SUFFIXES)}; of a model of the zoo's, give what "
            "fpg_zoo.create_model(name) returns"
        )
    opened = {"onnx": _onnx, "pt2": _pt2, "openvino": _openvino, "torchscript": _torchscript}
    try:
        with open_regular(path):
            pass
        with quiet():
            return opened[kind](path, device)
    except OSError as error:
        raise ExportError(f"{printable(path)}: {error.strerror or error}") from error
    except ExportError:
        raise
    except Exception as error:  # of the runtimes, which have no common base
        raise ExportError(f"{printable(path)}: cannot be opened ({printable(error)}); export it again") from error


def _onnx(path: Path, device: torch.device) -> Session:
    ort = import_runtime("onnxruntime")
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise ExportError("ONNX Runtime has no CUDA here: pip install onnxruntime-gpu, or use the device cpu")
        providers.insert(0, "CUDAExecutionProvider")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=providers)
    description = read_description(session.get_modelmeta().custom_metadata_map.get(KEY), printable(path))
    names = [one.name for one in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(list(description.outputs), feeds)]

    return Session(description, torch.device("cpu"), run)


def _pt2(path: Path, device: torch.device) -> Session:
    extra = {KEY: ""}
    program = pt2_files.load(path, extra)
    description = read_description(extra[KEY], printable(path))
    module = program.module()
    first = next(iter(program.state_dict.values()), None)
    where = torch.device("cpu") if first is None else first.device
    if where.type != device.type:
        raise ExportError(
            f"{printable(path)}: written for the device {where.type}; use that, or export it for {device}"
        )

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(module(*inputs))

    return Session(description, where, run)


def _torchscript(path: Path, device: torch.device) -> Session:
    extra = {KEY: ""}
    module = torch.jit.load(str(path), map_location=device, _extra_files=extra)  # type: ignore[no-untyped-call]
    text: Any = extra[KEY]
    description = read_description(text.decode() if isinstance(text, bytes) else text, printable(path))

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(module(*inputs))

    return Session(description, device, run)


def _openvino(path: Path, device: torch.device) -> Session:
    if not path.with_suffix(".bin").is_file():
        raise ExportError(f"{printable(path.with_suffix('.bin'))}: is not there; it belongs to {printable(path.name)}")
    ov = import_runtime("openvino")
    core = ov.Core()
    model = core.read_model(path)
    text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
    description = read_description(text, printable(path))
    # Asked for by name: on processors with AMX it would compute in bfloat16 of itself.
    hint = "bf16" if description.dtype == "bf16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", settings)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        results = compiled([value.numpy() for value in inputs])
        return [torch.from_numpy(np.array(results[place])) for place in range(len(description.outputs))]

    return Session(description, torch.device("cpu"), run)
