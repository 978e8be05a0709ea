"""The main job, whole: a served checkpoint in the published format to the golden detections, in processes of their own.

The package is copied to where an installer would put it, with a manifest that lists the served file, so that nothing of
the code under test is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT, golden_model
from serving import Mirror, publish, serve
from torchvision.ops import box_iou

import fpg_zoo

NAME = "mask_rcnn_r50_fpg_chn128"
DETECTIONS_MATCHED = 99  # of 100; see test_golden.py for the tolerances

SCRIPT = """
import sys, numpy, torch, golden_weights, fpg_zoo
model = fpg_zoo.create_model(sys.argv[1], pretrained=True)
found = model.detect(golden_weights.image((2, 3, 256, 384)), [(250, 375)] * 2)[0]
areas = found.masks.flatten(1).sum(1)
numpy.savez(sys.argv[2], boxes=found.boxes, scores=found.scores, labels=found.labels, areas=areas)
print(fpg_zoo.__file__)
"""


@dataclass
class Installation:
    """A copy of the package with a manifest of its own, and what runs in it."""

    site: Path
    work: Path
    checkpoint: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {key: value for key, value in os.environ.items() if key not in ("FPG_ZOO_MIRROR", "HF_HUB_OFFLINE")}
        variables |= {"PYTHONPATH": f"{self.site}{os.pathsep}{ROOT / 'tests' / 'support'}", **environment}
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.work, env=variables, capture_output=True, text=True, timeout=300
        )


@pytest.fixture(scope="module")
def mirror() -> Iterator[Mirror]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def installation(mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("installation")
    checkpoint = publish(fpg_zoo.reference_state_dict(golden_model(NAME)), folder, NAME)
    shutil.copytree(ROOT / "fpg_zoo", folder / "site" / "fpg_zoo", ignore=shutil.ignore_patterns("__pycache__"))
    manifest = json.loads((ROOT / "weights_manifest.json").read_text())
    row = next(row for row in manifest["checkpoints"] if row["architecture"] == NAME)
    row |= {"url": mirror.add(checkpoint), "sha256": checkpoint.stem[-8:]}
    (folder / "site" / "fpg_zoo" / "weights_manifest.json").write_text(json.dumps(manifest))
    work = folder / "elsewhere"
    work.mkdir()
    return Installation(folder / "site", work, checkpoint)


def check_golden(file: Path) -> None:
    with np.load(GOLDEN / f"{NAME}.npz") as expected, np.load(file) as found:
        same = box_iou(torch.from_numpy(expected["det0.boxes"]), torch.from_numpy(found["boxes"])).numpy() > 0.999
        same &= expected["det0.labels"][:, None] == found["labels"][None]
        same &= np.abs(expected["det0.scores"][:, None] - found["scores"][None]) < 1e-4
        assert same.any(axis=1).sum() >= DETECTIONS_MATCHED
        areas = found["areas"][same.argmax(axis=1)]
        wanted = expected["det0.mask_areas"]
        assert (np.abs(areas - wanted) <= 0.005 * np.maximum(wanted, 1)).sum() >= DETECTIONS_MATCHED


@pytest.mark.slow
def test_a_served_checkpoint_gives_the_golden_detections_then_offline_from_the_cache(
    installation: Installation, mirror: Mirror, tmp_path: Path
) -> None:
    cache = tmp_path / "weights"
    first = installation.run(
        "-c", SCRIPT, NAME, str(tmp_path / "a.npz"), FPG_ZOO_CACHE=str(cache), FPG_ZOO_MIRROR=mirror.url
    )
    assert first.returncode == 0, first.stderr
    assert str(installation.site) in first.stdout
    assert first.stderr == ""  # no progress bar where nobody watches
    check_golden(tmp_path / "a.npz")
    digits = installation.checkpoint.stem[-8:]
    assert sorted(file.name for file in cache.iterdir() if file.suffix != ".lock") == [
        f"{NAME}.coco_2022-{digits}.pin.json",
        f"{NAME}.coco_2022-{digits}.safetensors",
    ]
    asked = len(mirror.requests)
    again = installation.run("-c", SCRIPT, NAME, str(tmp_path / "b.npz"), FPG_ZOO_CACHE=str(cache), HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    check_golden(tmp_path / "b.npz")
    assert len(mirror.requests) == asked == 1


@pytest.mark.slow
def test_a_flipped_byte_is_refused_with_both_digests_and_leaves_nothing(
    installation: Installation, mirror: Mirror, tmp_path: Path
) -> None:
    path = next(iter(mirror.files))
    good = mirror.files[path]
    altered = bytearray(good)
    altered[len(altered) // 2] ^= 1
    mirror.files[path] = bytes(altered)
    try:
        refused = installation.run(
            "-m", "fpg_zoo.cli", "download", NAME, FPG_ZOO_CACHE=str(tmp_path / "weights"), FPG_ZOO_MIRROR=mirror.url
        )
    finally:
        mirror.files[path] = good
    found = hashlib.sha256(altered).hexdigest()
    assert refused.returncode == 2
    assert f"expected SHA-256 {installation.checkpoint.stem[-8:]}" in refused.stderr
    assert f"found {found}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert [file.name for file in (tmp_path / "weights").iterdir() if file.suffix != ".lock"] == []


@pytest.mark.slow
def test_downloading_all_goes_on_after_a_failure_and_counts(
    installation: Installation, mirror: Mirror, tmp_path: Path
) -> None:
    # The mirror has one of the 13.
    done = installation.run(
        "-m", "fpg_zoo.cli", "download", "--all", FPG_ZOO_CACHE=str(tmp_path / "weights"), FPG_ZOO_MIRROR=mirror.url
    )
    assert done.returncode == 1
    told = done.stdout.splitlines()
    assert told[0].startswith(f"{NAME}.coco_2022: {tmp_path}")
    assert told[1:] == ["1 of 13 are in the cache"]
    refused = done.stderr.splitlines()
    assert len(refused) == 12
    assert all(line.startswith("fpg-zoo: ") and "answered 404" in line for line in refused)
