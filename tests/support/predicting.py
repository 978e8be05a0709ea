"""What the tests of `fpg-zoo predict` share: images, a checkpoint, a folder of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Ended, run
from PIL import Image
from tiny_models import tiny_model

WIDTH, HEIGHT = 64, 48
NO_COCO_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # of 1..90, those that COCO's detection task leaves out
SCORE = "0.2"
RECORD = ".predict.progress.jsonl"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "nano.safetensors"
    tiny_model().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def add(*paths: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """Images of noise, each of its own."""
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(path.encode())).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def predict(checkpoint: Path, *arguments: Any) -> Ended:
    return run("predict", "--checkpoint", checkpoint, "--score", SCORE, *arguments)


def written(folder: str = "predictions") -> list[str]:
    """Names of the files in a folder, each of which must be a whole image; but for the record of an unfinished run."""
    paths = [path for path in Path(folder).iterdir() if path.name != RECORD]
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.format == "JPEG"
    return sorted(path.name for path in paths)


def rows_of(path: str) -> list[dict[str, Any]]:
    return json.loads(Path(path).read_text(encoding="utf-8"))
