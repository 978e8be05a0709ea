"""The examples of docs/extending.md run, one after the other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from serving import publish
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo.weights import manifest

CHECKS = """
import warnings
assert len(detections) == 1
detector.eval().save_pretrained("saved")
again = fpg_zoo.create_model("local-dir:saved")
assert again.config == detector.config and isinstance(again.head, OneTower)
with warnings.catch_warnings(record=True) as caught:
    other = fpg_zoo.create_model("local-dir:saved", num_classes=7)
assert "initialised at random: head.classes.weight, head.classes.bias" in str(caught[0].message)
assert other.head.classes.out_channels == 9 * 7
assert torch.equal(other.head.deltas.weight, detector.head.deltas.weight)
assert len(fpg_zoo.optimize(again)(torch.zeros(1, 3, 128, 128), [(128, 128)])) == 1
assert {"log.jsonl", "state-00000002"} <= {path.name for path in Path("run").iterdir()}
"""


def _blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path) -> None:
    blocks = _blocks("python")
    assert len(blocks) == 5
    script = tmp_path / "example.py"  # dataclasses look for the source of their module
    script.write_text("from __future__ import annotations\n" + "\n".join([*blocks, CHECKS]), encoding="utf-8")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert [line for line in ended.stderr.splitlines() if not line.startswith("step ")] == []  # of how far it is


def test_a_row_of_the_manifest_is_all_that_a_checkpoint_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = _blocks("json")
    model = tiny_model("retinanet_nano_fpg")
    file = publish(fpg_zoo.reference_state_dict(model), tmp_path, "retinanet_nano_fpg")
    row = json.loads(block) | {"url": file.as_uri(), "sha256": file.stem[-8:]}
    content = json.loads(manifest.manifest_path().read_text(encoding="utf-8"))
    content["checkpoints"].append(row)
    (tmp_path / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(manifest, "manifest_path", lambda: tmp_path / "manifest.json")
    monkeypatch.setenv("FPG_ZOO_CACHE", str(tmp_path / "cache"))
    manifest.load_manifest.cache_clear()
    try:
        loaded = fpg_zoo.create_model("retinanet_nano_fpg.mine_2026", pretrained=True)
    finally:
        manifest.load_manifest.cache_clear()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
