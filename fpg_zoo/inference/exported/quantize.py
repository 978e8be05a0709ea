"""Convolutions in 8 bits, by the quantizers of ONNX Runtime and of OpenVINO (NNCF).

Ranges of activations come from running the graph on images. The first convolution and the last ones stay in floating
point: pixels and scores lose most by 256 steps.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fpg_zoo.inference.exported.sessions import import_runtime

# The layers that heads end in, by their names in `fpg_zoo.modeling.heads`.
LAST_LAYERS = ("classes", "deltas", "objectness")
Inputs = Sequence[Tensor]


def quantize_onnx(source: Path, target: Path, calibration: Sequence[Inputs]) -> None:
    """A file of ONNX with convolutions in 8 bits, as pairs of QuantizeLinear and DequantizeLinear.

    Args:
        source: of float32.
        target: to write.
        calibration: inputs of the graph.
    """
    onnx = import_runtime("onnx")
    quantization = import_runtime("onnxruntime.quantization")
    model = onnx.load(str(source))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    names = [value.name for value in model.graph.input]
    kept = [node.name for place, node in enumerate(convolutions) if place == 0 or _is_last(node.input[1])]
    feeds: Iterator[dict[str, Any]] = iter(
        [{name: value.cpu().numpy() for name, value in zip(names, inputs, strict=True)} for inputs in calibration]
    )

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    quantization.quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=kept,
    )


def quantize_openvino(model: Any, calibration: Sequence[Inputs]) -> Any:
    """An OpenVINO model with convolutions and fully connected layers in 8 bits.

    Args:
        model: of float32.
        calibration: inputs of the graph.
    """
    nncf = import_runtime("nncf")
    nncf.set_log_level(logging.ERROR)
    weighted = [op for op in model.get_ordered_ops() if op.get_type_name() in ("Convolution", "MatMul")]
    convolutions = [op for op in weighted if op.get_type_name() == "Convolution"]
    kept = [op.get_friendly_name() for op in weighted if op is convolutions[0] or _is_last(_weights_of(op))]
    dataset = nncf.Dataset([[value.cpu().numpy() for value in inputs] for inputs in calibration])
    with contextlib.redirect_stdout(sys.stderr):  # its bars
        return nncf.quantize(model, dataset, subset_size=len(calibration), ignored_scope=nncf.IgnoredScope(names=kept))


def _weights_of(op: Any) -> str:
    name: str = op.input_value(1).get_node().get_friendly_name()
    return name


def _is_last(weights: str) -> bool:
    """By the name of a layer's weights, `model.head.classes.weight`."""
    return any(part in LAST_LAYERS for part in weights.split("."))
