"""Where the time from a file to its detections goes: a clock around each part, whose sum is compared with the whole."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import nn

from fpg_zoo.evaluation.timing import synchronize
from fpg_zoo.inference import predictor
from fpg_zoo.inference.exported import detector as exported
from fpg_zoo.inference.open_model import AnyDetector
from fpg_zoo.modeling import detectors

# A detector's parts by attribute, and what they are called here. Of these, each detector has some.
_PARTS = {
    "backbone": "backbone",
    "neck": "neck",
    "rpn": "RPN",
    "head": "dense head",
    "select_proposals": "proposals",
    "select_boxes": "selection",
    "select": "selection",
    "box_head": "box head",
    "mask_head": "mask head",
    "_run": "network",  # of an exported file, whose parts are not told apart
}
_AROUND = (  # before and after the detector
    (predictor, "read_image", "reading"),
    (predictor, "to_pixels", "reading"),
    (predictor, "preprocess", "preprocessing"),
    (detectors, "to_detections", "pasting"),
    (exported, "to_detections", "pasting"),
)


@contextlib.contextmanager
def clocked(model: AnyDetector) -> Iterator[dict[str, float]]:
    """While this is open, the seconds of each stage of a `Predictor` of this model add up in what it gives.

    No stage runs within another. The device is synchronized at both ends of each, which takes time where it is no CPU.
    """
    seconds: dict[str, float] = defaultdict(float)

    def clock(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            start = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize()
            seconds[stage] += time.perf_counter() - start
            return result

        return run

    with contextlib.ExitStack() as stack:
        for owner, name, stage in _AROUND:
            stack.enter_context(mock.patch.object(owner, name, clock(stage, getattr(owner, name))))
        for name, stage in _PARTS.items():
            part = getattr(model, name, None)
            if isinstance(part, nn.Module):
                stack.enter_context(mock.patch.object(part, "forward", clock(stage, part.forward)))
            elif part is not None:
                stack.enter_context(mock.patch.object(model, name, clock(stage, part)))
        yield seconds
