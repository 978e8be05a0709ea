"""The formats that a detector is exported to, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Format = Literal["onnx", "pt2", "openvino", "torchscript"]
Dtype = Literal["fp32", "fp16", "bf16", "int8"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2", "openvino", "torchscript")
DTYPES: tuple[Dtype, ...] = ("fp32", "fp16", "bf16", "int8")
DYNAMIC = ("batch", "size")
INCLUDE = ("preprocess", "masks")
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "pt2", ".xml": "openvino", ".torchscript": "torchscript"}


def format_of(path: str | Path) -> Format | None:
    """The format that a path's suffix stands for; None if none does."""
    return SUFFIXES.get(Path(path).suffix.lower())
