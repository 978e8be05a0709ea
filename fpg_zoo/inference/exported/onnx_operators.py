"""How operators of the graph are written in ONNX, by its standard operators alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fpg_zoo.inference.exported.sessions import import_runtime

OPSET = 20
_BOOL, _LEAST_SCORE = 9, -0.5  # ONNX's number of the type; what has no score has -1


def translations() -> dict[Any, Callable[..., Any]]:
    """What `torch.onnx.export` takes as `custom_translation_table`."""
    op = getattr(import_runtime("onnxscript"), f"opset{OPSET}")

    def kept(boxes: Any, scores: Any, iou: float, most: int) -> Any:
        """`suppression.by_operator`: NonMaxSuppression of each row, and a one at each place that it chose."""
        chosen = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[_LEAST_SCORE]),
        )
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)  # rows and boxes, without the class
        none = op.Expand(op.Constant(value_ints=[0]), op.Shape(scores))
        ones = op.Expand(op.Constant(value_ints=[1]), op.Shape(places, start=0, end=1))
        return op.Cast(op.ScatterND(none, places, ones), to=_BOOL)

    return {torch.ops.fpg_zoo.kept.default: kept}
