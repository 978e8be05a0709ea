"""Evaluations for tests: a Mask R-CNN that finds ten things in an instant, photographs whose truth it half meets."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from command import environment
from pycocotools import mask as mask_api
from tiny_models import tiny_model

from fpg_zoo.modeling.build import build_detector
from fpg_zoo.modeling.detectors import Detector

NAME = "mask_rcnn_nano_fpg"


def frugal_model() -> Detector:
    """Masks are most of the time, each being of a whole photograph; ten an image will do."""
    model = tiny_model(NAME)
    config = model.config
    config = dataclasses.replace(config, box=dataclasses.replace(config.box, detections=10))  # type: ignore[union-attr]
    frugal = build_detector(config, NAME).eval()
    frugal.load_state_dict(model.state_dict())
    return frugal


def renamed(model: Detector, names: tuple[str, ...]) -> Detector:
    """A model for these classes, of the first rows of each layer that depends on their number."""
    config = dataclasses.replace(model.config, class_names=names)
    fewer = build_detector(config, model.name).eval()
    tensors = model.state_dict()
    fewer.load_state_dict(
        {key: tensors[key][: len(one)] if one.ndim else one for key, one in fewer.state_dict().items()}
    )
    return fewer


def make_photographs(source: Path, target: Path, rows: list[dict[str, Any]]) -> Path:
    """The photographs of `source` with ground truth made of every other detection, a little to the right."""
    content = json.loads((source / "annotations" / "instances_val2017.json").read_text())
    content["annotations"] = [
        {
            "id": number,
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": [row["bbox"][0] + number % 5, *row["bbox"][1:]],
            "area": row["bbox"][2] * row["bbox"][3],
            "iscrowd": int(number % 20 == 0),
            "segmentation": row["segmentation"],
        }
        for number, row in enumerate(rows[::2], 1)
        if min(row["bbox"][2:]) >= 1 and mask_api.area(row["segmentation"])
    ]
    (target / "annotations").mkdir(parents=True)
    (target / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    shutil.copytree(source / "val2017", target / "val2017")  # no link: a report shows nothing from elsewhere
    return target


def command(*arguments: Any, processes: int = 1) -> list[str]:
    """`fpg-zoo eval` on the CPU, in several processes if need be."""
    several = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    begin = [sys.executable, *(several if processes > 1 else []), "-m", "fpg_zoo.cli", "eval"]
    return [*begin, "--device", "cpu", "--workers", "0", *map(str, arguments)]


def start(*arguments: Any, processes: int = 1) -> subprocess.Popen[str]:
    """The command in a process of its own, or under torchrun."""
    return subprocess.Popen(
        command(*arguments, processes=processes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill it and its children at once, as they stand; torchrun's are in sessions of their own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
