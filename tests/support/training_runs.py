"""Small training runs: a data set of a few images with blocks in them, and `fpg-zoo train` on it in processes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import environment
from PIL import Image
from tiny_models import tiny_model

from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.modeling.build import build_detector
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.training.recipes import recipe_named
from fpg_zoo.training.run_checkpoints import newest_state
from fpg_zoo.training.trainer import TrainSettings

NAME = "retinanet_nano_fpg"
CLASSES = ("dark", "light")
SIDE = 64


def make_data(folder: Path, pictures: int = 6, split: str = "train") -> Path:
    """A folder in COCO's format: each image has one dark and one light block on gray."""
    random = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, pictures + 1):
        pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
        for label, (value, left) in enumerate(((20, 2), (235, 34))):
            x, y = left + int(random.integers(0, 6)), int(random.integers(2, 30))
            width, height = int(random.integers(14, 22)), int(random.integers(14, 30))
            pixels[y : y + height, x : x + width] = value
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "segmentation": [corners],
                    "iscrowd": 0,
                }
            )
        name = f"{image_id:03}.png"
        Image.fromarray(pixels).save(folder / split / name)
        images.append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 128 pixels for the data's classes."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    small_model().save_pretrained(path)
    return path


def start(data: Path, run: Path, checkpoint: Path, *options: str) -> subprocess.Popen[str]:
    """`fpg-zoo train` of the checkpoint's model, on one thread."""
    command = [sys.executable, "-m", "fpg_zoo.cli", "train", "--model", "retinanet_nano_fpg"]
    command += ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(run), "--device", "cpu", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def steps_logged(run: Path) -> int:
    """How many steps the run's log tells of."""
    file = run / "log.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def small_model(name: str = NAME) -> Detector:
    config = dataclasses.replace(tiny_model(name).config, class_names=CLASSES)
    torch.manual_seed(0)
    return build_detector(config, name)


def weights_of(run: Path) -> dict[str, bytes]:
    state = newest_state(run)
    assert state is not None
    return {path.name: path.read_bytes() for path in state.iterdir() if path.suffix == ".safetensors"}


def settings(**changes: object) -> TrainSettings:
    return dataclasses.replace(
        TrainSettings(recipe=recipe_named("scratch", epochs=2), batch_size=2, average=True),
        **changes,  # type: ignore[arg-type]
    )


def dataset_of(data: Path) -> CocoDataset:
    return CocoDataset.from_folder(data, "train")
