"""A form written as a file of each format."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpg_zoo.errors import ExportError
from fpg_zoo.inference.exported import roi_align, suppression
from fpg_zoo.inference.exported.description import KEY, Description
from fpg_zoo.inference.exported.form import ExportedForm, Operators
from fpg_zoo.inference.exported.formats import Format
from fpg_zoo.inference.exported.onnx_operators import OPSET, translations
from fpg_zoo.inference.exported.quantize import Inputs, quantize_onnx, quantize_openvino
from fpg_zoo.inference.exported.quiet import quiet
from fpg_zoo.inference.exported.same_padding import constant_same_padding
from fpg_zoo.inference.exported.sessions import import_runtime

OPERATORS: dict[Format, Operators] = {
    "onnx": Operators(suppression.by_operator, roi_align.by_operator),
    "openvino": Operators(suppression.by_operator, roi_align.by_operator),
    "pt2": Operators(suppression.by_tensors, roi_align.by_tensors),
    "torchscript": Operators(suppression.by_kernel, roi_align.by_operator),
}
# What each format takes to be written, and to be run at its end.
PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "pt2": (),
    "torchscript": (),
}
# A program of torch.export holds for maps of one cell or for larger ones, not for both.
LEAST_SIDES = {"pt2": 2}  # in multiples of the divisor
_MOST = 64  # images in a pass, and multiples of the divisor along a side, where they are not fixed


@dataclass(frozen=True)
class Graph:
    """What is written.

    Attributes:
        form: with the operators of the format, in `OPERATORS`.
        inputs: examples, of the sizes that the file is to be fixed to.
        description: what the file says of itself.
        calibration: inputs that the ranges of 8 bits come from; none for another precision.
    """

    form: ExportedForm
    inputs: tuple[Tensor, ...]
    description: Description
    calibration: Sequence[Inputs] = ()


def write(graph: Graph, kind: Format, path: Path) -> None:
    """Write a file, of OpenVINO two.

    Args:
        graph: with the operators of `OPERATORS[kind]`.
        kind: the format.
        path: of the file.

    Raises:
        ExportError: torch's exporter cannot write a part of the model, or a package is missing.
    """
    writers: dict[Format, Callable[[Graph, Path], None]] = {
        "onnx": _write_onnx,
        "openvino": _write_openvino,
        "pt2": _write_pt2,
        "torchscript": _write_torchscript,
    }
    with quiet(), constant_same_padding():
        writers[kind](graph, path)


def dynamic_shapes(description: Description) -> tuple[dict[int, Any], ...] | None:
    """What `torch.export` takes; None where all is fixed."""
    batch: dict[int, Any] = {}
    if description.batch is None:
        batch = {0: torch.export.Dim("batch", min=1, max=_MOST)}
    if description.takes_pixels:
        return ({**batch, 2: torch.export.Dim("height", min=1), 3: torch.export.Dim("width", min=1)},)
    if description.size is not None:
        return (batch, batch) if batch else None
    divisor = description.config.preprocess.pad_divisor
    least = description.min_side // divisor
    rows, columns = (torch.export.Dim(name, min=least, max=_MOST) for name in ("rows", "columns"))
    return ({**batch, 2: divisor * rows, 3: divisor * columns}, batch)


def _exported(graph: Graph) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(graph.form, graph.inputs, dynamic_shapes=dynamic_shapes(graph.description))
    except Exception as error:  # of torch's tracers, which have no common base
        raise ExportError(
            f"{graph.description.name}: {_culprit(graph.form, graph.inputs)} cannot be exported by torch "
            f"{torch.__version__} ({_first_line(error)}); another part, or a newer torch, may do"
        ) from error


def _culprit(form: ExportedForm, inputs: tuple[Tensor, ...]) -> str:
    """The part that cannot be traced by itself."""
    model = form.model
    height, width = form.canvas or inputs[0].shape[-2:]
    given: Any = torch.zeros(1, 3, height, width, dtype=model.dtype, device=model.device)
    with torch.no_grad():
        for name, part in (("backbone", model.backbone), ("neck", model.neck)):
            try:
                torch.export.export(part, (given,))
            except Exception:
                return f"its {name}, {type(part).__name__},"
            given = list(part(given))
    return "what follows its neck"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _write_pt2(graph: Graph, path: Path) -> None:
    torch.export.save(_exported(graph), path, extra_files={KEY: graph.description.to_json()})


def _write_torchscript(graph: Graph, path: Path) -> None:
    description = graph.description
    try:
        traced = torch.jit.trace(graph.form, graph.inputs, check_trace=False)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ExportError(f"{description.name}: cannot be traced ({_first_line(error)})") from error
    torch.jit.save(traced, str(path), _extra_files={KEY: description.to_json()})


def _write_onnx(graph: Graph, path: Path) -> None:
    description = graph.description
    onnx = import_runtime("onnx")
    import_runtime("onnxscript")
    names = ["images"] if description.takes_pixels else ["images", "sizes"]
    exported = _exported(graph)
    try:
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=translations(),
            input_names=names,
            output_names=list(description.outputs),
            verbose=False,
        )
    except Exception as error:
        raise ExportError(
            f"{description.name}: torch {torch.__version__} cannot write it as ONNX ({_first_line(error)}); "
            "a newer one may"
        ) from error
    assert program is not None
    model = program.model_proto
    if graph.calibration:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            plain, quantized = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
            onnx.save(model, str(plain))
            quantize_onnx(plain, quantized, graph.calibration)
            model = onnx.load(str(quantized))
    _name_sizes(model, description)
    for key, value in ((KEY, description.to_json()), ("names", ",".join(description.config.class_names))):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def _name_sizes(model: Any, description: Description) -> None:
    """The names that the sizes of inputs and outputs have for people, in place of torch's expressions."""
    named = {0: "batch", 2: "height", 3: "width"}
    for value in model.graph.input:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_param"):
                dim.dim_param = named.get(place, dim.dim_param)


def _write_openvino(graph: Graph, path: Path) -> None:
    description = graph.description
    ov = import_runtime("openvino")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / "model.onnx"
        _write_onnx(dataclasses.replace(graph, calibration=()), file)  # NNCF has its own way to 8 bits
        model = ov.convert_model(file)
    if graph.calibration:
        model = quantize_openvino(model, graph.calibration)
    for place, name in enumerate(description.outputs):
        model.outputs[place].get_tensor().set_names({name})
    model.set_rt_info(description.to_json(), KEY)
    ov.save_model(model, path, compress_to_fp16=description.dtype == "fp16")
