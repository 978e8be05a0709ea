"""Run by CI on the installed wheel, away from the checkout: the manifest is found and a model detects."""

import os
from pathlib import Path

import torch
from PIL import Image

import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.weights.manifest import load_manifest, manifest_path

package = Path(fpg_zoo.__file__).parent
assert "site-packages" in package.parts, package
assert manifest_path().parent == package, manifest_path()
assert len(load_manifest().checkpoints) == 16

os.environ["HF_HUB_OFFLINE"] = "1"
for name in ("faster_rcnn_nano_fpg", "mask_rcnn_nano_fpg", "retinanet_nano_fpg"):
    model = fpg_zoo.create_model(name, pretrained=True)
    scene = ShapesDataset("val", num_images=1)[0]
    found = fpg_zoo.Predictor(model)(Image.fromarray(scene.image.permute(1, 2, 0).numpy()))[0].above(0.3)
    assert found.size == scene.info.size, found.size
    assert len(found) >= len(scene.info.objects) / 2, (name, found.names)
print(f"smoke test passed with fpg_zoo {fpg_zoo.__version__}, torch {torch.__version__}")
