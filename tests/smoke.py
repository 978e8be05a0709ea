"""Run by CI on the installed wheel, away from the checkout: the manifest is found and a model detects."""

from pathlib import Path

import torch
from PIL import Image

import fpg_zoo
from fpg_zoo.weights.manifest import load_manifest, manifest_path

package = Path(fpg_zoo.__file__).parent
assert "site-packages" in package.parts, package
assert manifest_path().parent == package, manifest_path()
assert len(load_manifest().checkpoints) == 13

torch.manual_seed(0)
model = fpg_zoo.create_model("mask_rcnn_nano_fpg")
found = fpg_zoo.Predictor(model)(Image.new("RGB", (100, 80), (90, 120, 150)))[0]
assert found.size == (80, 100), found.size
print(f"smoke test passed with fpg_zoo {fpg_zoo.__version__}, torch {torch.__version__}")
