"""Files that the version before the house wrote (commit 51ea728): a cache, a model's folder, a hub's repository, a run.

`golden/version_before.tar.xz` holds them: a small RetinaNet of two classes, a run of 6 steps that was broken off after
the fourth, and the packaged detector of zeros, as it was downloaded and converted.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from hub_client import Client, running
from safetensors.torch import load_file
from serving import entry_of
from training_runs import CLASSES, dataset_of, make_data, settings

import fpg_zoo
from fpg_zoo.config import FPGConfig, ResNetConfig, triangle_grid
from fpg_zoo.distributed import Processes
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.models.loading import fetch
from fpg_zoo.training.run_checkpoints import best_metric, newest_state
from fpg_zoo.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(GOLDEN / "version_before.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def check(model: Detector, before: Path) -> None:
    """The small RetinaNet, with the tensors that the file has, as another reader reads them."""
    assert model.class_names == CLASSES
    assert model.config.backbone == ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=4)
    assert model.config.neck == FPGConfig(
        start_level=1, out_channels=8, grid=triangle_grid(pathways=2), extra_levels="conv"
    )
    tensors = load_file(before / "folder" / "model.safetensors")
    assert model.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_a_folder_and_a_file_that_describes_itself(before: Path) -> None:
    folder = before / "folder"
    check(fpg_zoo.create_model(f"local-dir:{folder}"), before)
    check(fpg_zoo.create_model(checkpoint=folder / "model.safetensors"), before)


@pytest.mark.slow
def test_a_repository_of_the_hub(before: Path, tmp_path: Path) -> None:
    with running(tmp_path / "hub") as hub:
        hub.commit("owner/before", {file.name: file.read_bytes() for file in (before / "folder").iterdir()})
        told = Client(hub, tmp_path).run("""
            import fpg_zoo
            model = fpg_zoo.create_model("hf-hub:owner/before")
            told["classes"] = model.class_names
            told["neck"] = [model.config.neck.start_level, model.config.neck.out_channels]
        """)
    assert told == {"classes": list(CLASSES), "neck": [1, 8]}


def test_cached_weights(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPG_ZOO_CACHE", str(before / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (pin,) = (json.loads(file.read_text()) for file in (before / "cache").glob("*.pin.json"))
    entry = entry_of("retinanet_nano_fpg", pin["source_url"])
    file = fetch(entry, fpg_zoo.model_info("retinanet_nano_fpg").config)
    model = fpg_zoo.create_model("retinanet_nano_fpg", checkpoint=file)
    assert not any(tensor.any() for tensor in model.state_dict().values())


def test_a_run_goes_on_as_it_would_have(before: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    run = before / "run"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for folder, resume in ((run, True), (tmp_path / "anew", False)):
        torch.manual_seed(0)
        model = fpg_zoo.modeling.build.build_detector(
            fpg_zoo.create_model(f"local-dir:{before / 'folder'}").config  # as the run began
        )
        train(
            model,
            dataset_of(data),
            folder,
            settings(),
            processes=Processes(),
            resume=resume,
            evaluate=lambda model: {"box_AP": 0.5},
        )
    assert best_metric(run) == 0.5
    states = [newest_state(folder) for folder in (run, tmp_path / "anew")]
    assert [state.name for state in states if state] == ["state-00000006"] * 2
    resumed, anew = (load_file(state / "model.safetensors") for state in states if state)
    # Another machine's steps differ by rounding.
    assert all(torch.allclose(resumed[name], tensor, rtol=1e-3, atol=1e-4) for name, tensor in anew.items())
    steps = [json.loads(line) for line in (tmp_path / "anew" / "log.jsonl").read_text().splitlines()]
    for then, now in zip(log, steps, strict=False):
        renamed = {"rate": "lr", "gradient": "grad_norm"}
        assert {renamed.get(name, name) for name in then} == now.keys() - {"data_wait"}
        assert [now[name] for name in then if name.startswith("loss")] == pytest.approx(
            [value for name, value in then.items() if name.startswith("loss")], rel=1e-4
        )
