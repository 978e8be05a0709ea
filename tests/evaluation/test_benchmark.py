"""What `fpg-zoo benchmark` measures with: timings, passes, random weights with something to do, memory."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import pytest
from command import run
from tiny_models import LONGEST_SIDE, tiny_model

import fpg_zoo
from fpg_zoo.errors import WorkerError
from fpg_zoo.evaluation import benchmark as benchmarking
from fpg_zoo.evaluation.benchmark import (
    Memory,
    detection_pass,
    open_to_measure,
    peak_memory,
    scenes_of,
)
from fpg_zoo.evaluation.timing import measure, summary

pytestmark = pytest.mark.usefixtures("one_thread")


def test_quartiles_are_of_the_runs_that_count() -> None:
    waits = iter([0.05, 0.001, 0.001])
    spread = measure(lambda: time.sleep(next(waits)), runs=2, warmup=1)
    assert (spread.runs, spread.upper < 0.05) == (2, True)
    # Of five values the quartiles are halfway between neighbors, as `statistics.quantiles` has them.
    assert dataclasses.astuple(summary([5.0, 1.0, 3.0, 2.0, 4.0])) == (3.0, 1.5, 4.5, 5)


def test_a_pass_is_detect_on_scenes_as_they_are() -> None:
    model = tiny_model("retinanet_nano_fpg")
    scenes = scenes_of((96, 160), 2)
    assert [scene.shape for scene in scenes] == [(3, 96, 160)] * 2
    # Of a model that resizes to 128, the sides of these stay.
    assert [found.size for found in detection_pass(model, scenes)()] == [(96, 160)] * 2
    assert scenes_of((20, 1100), 1)[0].shape == (3, 20, 1100)  # smaller and larger than scenes are drawn


@pytest.fixture
def unmeasured_memory(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """In place of a process of its own: what it would have read."""
    files: list[Path] = []

    def measured(file: Path, *_: object, **__: object) -> Memory:
        assert file.is_file()
        files.append(file)
        return Memory(imported=700.0, before=750.0, peak=821.5)

    monkeypatch.setattr(benchmarking, "peak_memory", measured)
    return files


def test_a_saved_model_is_measured_as_it_is(tmp_path: Path, unmeasured_memory: list[Path]) -> None:
    tiny_model().save_pretrained(tmp_path / "saved")
    options = ("--runs", 2, "--batch-size", 3, "--dtype", "bf16", "--optimize", "--threads", 1, "--device", "cpu")
    code, out, err = run("benchmark", f"local-dir:{tmp_path / 'saved'}", *options, "--json")
    assert (code, err) == (0, "")
    output = json.loads(out)
    assert (output["model"], output["weights"], output["dtype"]) == ("mask_rcnn_nano_fpg", "saved", "bf16")
    assert (output["optimized"], output["threads"], output["batch_size"]) == (True, 1, 3)
    assert output["image_size"] == [LONGEST_SIDE] * 2
    assert output["memory"] == 121.5
    latency = output["latency"]
    assert latency["runs"] == 2
    assert 0 < latency["lower"] <= latency["median"] <= latency["upper"]
    assert output["throughput"] > 1 / latency["median"] / 3  # a batch of three does not take as long as nine
    assert output["detections"] == 100
    assert output["cost"]["parameters"] == sum(parameter.numel() for parameter in tiny_model().parameters())
    assert not unmeasured_memory[0].exists()  # it was written for the other process alone


def test_a_model_of_ones_own_gets_weights_that_find_something(tmp_path: Path, unmeasured_memory: list[Path]) -> None:
    (tmp_path / "own.toml").write_text('base = "retinanet_nano_fpg"\n[preprocess]\nlongest_side = 128\n')
    code, out, err = run("benchmark", "--config", tmp_path / "own.toml", "--runs", 2, "--image-size", "64x128")
    assert (code, err) == (0, "")
    first, *lines = out.splitlines()
    assert first.endswith(": random weights, fp32, images of 64x128")
    facts = {line[:16].strip(): line[16:] for line in lines}
    assert facts["memory"] == "122 MB of weights and a pass of 1"
    assert facts["parameters"] == "1,839,372"
    assert float(facts["detections"].split()[0]) > 10


def test_weights_that_cannot_be_had_are_random_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(benchmarking, "give_work", lambda *_: None)
    with pytest.warns(UserWarning, match="retinanet_r50_fpn: measured with random weights"):
        model, weights = open_to_measure("retinanet_r50_fpn")
    assert (model.name, weights) == ("retinanet_r50_fpn", "random")
    assert open_to_measure("retinanet_nano_fpg")[1] == "shapes"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "no model: give MODEL"),
        (("retinanet_nano_fpg", "--runs", 1), "--runs 1: it takes at least 2"),
        (("retinanet_nano_fpg", "--batch-size", 0), "--batch-size 0: it takes at least 1"),
        (("retinanet_nano_fpgg",), "no model 'retinanet_nano_fpgg' in the zoo: did you mean retinanet_nano_fpg"),
        (("retinanet_nano_fpg", "--device", "abacus"), "device 'abacus' cannot be used here"),
        (("missing.onnx",), "missing.onnx: No such file or directory"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments: tuple[object, ...], complaint: str) -> None:
    code, out, err = run("benchmark", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err


@pytest.mark.slow
def test_an_exported_file_is_measured_as_a_model_is(tmp_path: Path, unmeasured_memory: list[Path]) -> None:
    model = tiny_model("retinanet_nano_fpg")
    file = fpg_zoo.export(model, tmp_path / "model.onnx", size=(128, 128)).path
    output = json.loads(run("benchmark", file, "--runs", 2, "--json")[1])
    assert (output["model"], output["weights"], output["dtype"]) == ("retinanet_nano_fpg", "exported", "fp32")
    assert (output["image_size"], unmeasured_memory) == ([128, 128], [file])
    assert "optimize does not apply to an exported file" in run("benchmark", file, "--optimize").err
    assert "its images have 128x128 pixels" in run("benchmark", file, "--image-size", 256).err


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    model = tiny_model("retinanet_nano_fpg")
    model.save_pretrained(file)
    memory = peak_memory(file, (256, 256), 4, "cpu")
    weights = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    # The backbone's first maps are of 24 channels at half of 256 x 256 pixels, of four images.
    assert memory.peak - memory.before > 4 * 24 * 128 * 128 * 4 / 1e6
    assert weights < memory.needed < 500
    monkeypatch.setattr(benchmarking, "_memory", _dies)
    with pytest.raises(WorkerError, match="give a smaller batch or image"):
        peak_memory(file, (256, 256), 4, "cpu")


def _dies(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
