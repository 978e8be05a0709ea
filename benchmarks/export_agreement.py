"""Whether exported files find what their models find: `python benchmarks/export_agreement.py '*'`.

Each model is exported in each format with any batch and any size, and compared with its file on drawn scenes of three
sizes, one by one and in a batch of three. Where a model has no published weights here, it has those of the tests'
golden figures, by which each scene has a hundred detections. A row is written as each file is done.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness.models import is_own, model_with, whose
from harness.options import named, parsed, write_rows

import fpg_zoo
from fpg_zoo.errors import ExportError
from fpg_zoo.evaluation.benchmark import RANDOM
from fpg_zoo.modeling.detectors import Detector

TEST_SUPPORT = Path(__file__).resolve().parents[1] / "tests" / "support"
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
UNITS = {
    "bytes": "bytes of the file or files",
    "images": "scenes, one by one and at once",
    "expected": "detections of the model",
    "found": "detections of the file",
    "matched": "of those expected: IoU > 0.99, scores within 0.001, IoU of masks > 0.98",
    "worst_score": "largest difference of scores",
    "worst_box": "largest difference of a coordinate, pixels",
    "worst_mask_iou": "least IoU of masks",
}
_NOT_TOLD = ("model_seconds", "file_seconds", "agrees")  # for one machine at work


def model_of(name: str) -> tuple[Detector, str]:
    """A model and whose weights it has."""
    weights = whose(name)
    if weights != RANDOM or is_own(name):
        return model_with(name, weights).eval(), weights
    model = fpg_zoo.create_model(name).eval()
    sys.path.append(str(TEST_SUPPORT))
    fpg_zoo.load_reference_state_dict(model, importlib.import_module("golden_weights").golden_state_dict(model))
    return model, "golden"


def row_of(name: str, kind: str) -> dict[str, Any]:
    """Export and compare; the reason alone where they do not agree."""
    model, weights = model_of(name)
    row: dict[str, Any] = {"model": name, "weights": weights, "format": kind}
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = fpg_zoo.export(model, Path(folder) / f"model{SUFFIXES[kind]}", dynamic=("batch", "size"))
        except ExportError as error:
            return {**row, "refused": str(error)}
    figures = {key: value for key, value in dataclasses.asdict(done.agreement).items() if value is not None}
    return {**row, "bytes": done.bytes, **{key: figures[key] for key in figures if key not in _NOT_TOLD}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="+", metavar="PATTERN", help="of models' names, or config files")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: torch's choice)")
    parser.add_argument("--formats", nargs="+", default=list(SUFFIXES), choices=SUFFIXES, help="(default: all)")
    parser.set_defaults(device="cpu")
    options = parsed(parser)
    torch.set_grad_enabled(False)
    for kind in options.formats:
        for name in named(options.patterns):
            row = row_of(name, kind)
            outcome = row.get("refused") or f"{row['matched']} of {row['expected']} matched, {row['found']} found"
            print(f"{kind:9} {name:28} {outcome}", flush=True)
            write_rows("export_agreement", [row], "cpu", units=UNITS, identified_by=("model", "format"))


if __name__ == "__main__":
    main()
