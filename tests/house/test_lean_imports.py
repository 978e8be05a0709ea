"""What runs without pycocotools and tqdm, and what says that it needs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import environment
from conftest import ROOT

# As if they were not installed, for `find_spec`, too, by which torch looks for tqdm.
BLOCKED = """
import sys

sys.modules.update(pycocotools=None, tqdm=None)
"""

WORK = """
from pathlib import Path
import numpy as np
import torch
import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.distributed import Processes
from fpg_zoo.training.recipes import recipe_named
from fpg_zoo.training.trainer import TrainSettings, train

torch.set_num_threads(1)
dataset = ShapesDataset("train", 2, masks=True)
model = fpg_zoo.create_model("mask_rcnn_nano_fpg", pretrained=True)
images = [dataset[index].image.permute(1, 2, 0).numpy() for index in range(2)]
rows = [row for found in fpg_zoo.Predictor(model)(images) for row in found.to_coco(1)]
assert rows and all(row["segmentation"]["counts"] for row in rows)
model = fpg_zoo.create_model("mask_rcnn_nano_fpg", class_names=dataset.class_names)
settings = TrainSettings(recipe=recipe_named("scratch", epochs=1), batch_size=2)
train(model, dataset, Path(sys.argv[1], "run"), settings, processes=Processes())
print("done")
"""

EVALUATION = """
try:
    from fpg_zoo.evaluation import coco_scores
except ValueError as error:
    print(type(error).__name__, error)
from fpg_zoo.data.masks import Polygons, rasterize
import numpy as np
try:
    rasterize(Polygons((np.zeros((3, 2)),)), (4, 4))
except ValueError as error:
    print(type(error).__name__, error)
"""
BENCHMARK = """
sys.path.insert(0, sys.argv[2])
import gpu
print("done")
"""
MESSAGE = "ConfigError polygons and evaluation need the package pycocotools: pip install pycocotools"


def output_of(code: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-c", BLOCKED + code, str(folder), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(), timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_a_detection_and_a_training_step_need_neither_pycocotools_nor_tqdm(tmp_path: Path) -> None:
    assert output_of(WORK, tmp_path).splitlines()[-1] == "done"


@pytest.mark.slow
def test_benchmarks_on_a_gpu_need_neither(tmp_path: Path) -> None:
    assert output_of(BENCHMARK, tmp_path, str(ROOT / "benchmarks")) == "done\n"


@pytest.mark.slow
def test_what_needs_pycocotools_says_so(tmp_path: Path) -> None:
    assert output_of(EVALUATION, tmp_path).splitlines() == [MESSAGE, MESSAGE]
