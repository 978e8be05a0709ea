"""What must be quick does not import torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "statement",
    [
        "import fpg_zoo",
        "import fpg_zoo.config",
        "import fpg_zoo.config.catalog",
        "import fpg_zoo.models.factory",
        "import fpg_zoo.weights.manifest",
        "import fpg_zoo.cli",
        "import fpg_zoo; fpg_zoo.list_models(pretrained=True)",
        "import fpg_zoo; fpg_zoo.model_info('mask_rcnn_r50_fpg').config",
        "import fpg_zoo; fpg_zoo.model_info('mask_rcnn_r50_fpg').cost(640)",
        "import fpg_zoo.cli; sys.stdout = sys.stderr; "
        "fpg_zoo.cli.main(['info', 'mask_rcnn_r50_fpg', '--json']); sys.stdout = sys.__stdout__",
    ],
)
def test_what_must_be_quick_does_not_import_torch(statement: str) -> None:
    code = f"import sys; {statement}; print(sorted({{'torch', 'torchvision'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
