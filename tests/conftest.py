"""Shared fixtures: where real data is, and models filled with the golden weights."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

# Side by side, each of pytest-xdist's processes and what it starts take their share of the cores, and no more.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

import golden_weights  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import fpg_zoo  # noqa: E402
from fpg_zoo.modeling.detectors import Detector  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
# Facts of the published table, by hand: behavior, not code under test, decides this list.
PUBLISHED = (
    "faster_rcnn_r50_fpg",
    "faster_rcnn_r50_fpg_chn128",
    "faster_rcnn_r50_fpn",
    "mask_rcnn_r50_fpg",
    "mask_rcnn_r50_fpg_chn128",
    "mask_rcnn_r50_fpn",
    "retinanet_r50_fpg",
    "retinanet_r50_fpg_chn128",
    "retinanet_r50_fpn",
    "retinanet_r50_nasfpn",
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's cache, mirror or offline setting."""
    monkeypatch.setenv("FPG_ZOO_CACHE", str(tmp_path / "cache"))
    for name in ("FPG_ZOO_MIRROR", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Maps this small are slower on several threads, by a factor of ten where other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data, from FPG_ZOO_DATA."""
    given = os.environ.get("FPG_ZOO_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real photographs and checkpoints: set FPG_ZOO_DATA to their folder (not at {folder})")
    return folder


@functools.lru_cache(maxsize=1)
def golden_model(name: str) -> Detector:
    """A model with the golden weights; the last one is kept, as tests ask for the same one in a row."""
    model = fpg_zoo.create_model(name)
    fpg_zoo.load_reference_state_dict(model, golden_weights.golden_state_dict(model))
    return model
