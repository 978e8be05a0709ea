"""What makes a run convenient: float16, rates by layer, srun, a batch size that is found, `fpg_zoo.train`."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from command import environment
from training_runs import (
    CLASSES,
    NAME,
    checkpoint,
    data,
    dataset_of,
    make_data,
    settings,
    small_model,
    steps_logged,
    weights_of,
)

import fpg_zoo
from fpg_zoo.config.training import Schedule
from fpg_zoo.distributed import Processes, _first_node
from fpg_zoo.errors import ConfigError
from fpg_zoo.run_training import resolved
from fpg_zoo.training import batch_size
from fpg_zoo.training.callbacks import Callback, EarlyStopping, TrainState
from fpg_zoo.training.optimizer import build_optimizer
from fpg_zoo.training.recipes import RECIPES, recipe_named
from fpg_zoo.training.run_checkpoints import newest_state, read_progress
from fpg_zoo.training.run_config import Given, build_run_config
from fpg_zoo.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")


# float16


@pytest.mark.slow
def test_a_step_that_overflows_is_left_out_and_the_scale_halved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of the second step are so large that their scaled gradients overflow."""
    from fpg_zoo.training import trainer

    losses, calls, after = trainer._Run._losses, [], []

    def large_at_second(run: Any, *arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(run)
        factor = 1e36 if len(calls) == 2 else 1.0
        return {key: one * factor for key, one in losses(run, *arguments).items()}

    class Weights(Callback):
        def on_step_end(self, state: TrainState, metrics: Mapping[str, float | None]) -> None:
            after.append(({key: value.clone() for key, value in state.model.named_parameters()}, dict(metrics)))

    monkeypatch.setattr(trainer._Run, "_losses", large_at_second)
    chosen = settings(amp="fp16", average=False)
    train(small_model(), dataset_of(data), tmp_path, chosen, processes=Processes(), callbacks=[Weights()])
    (first, _), (second, printed), (third, _) = after[:3]
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert printed["grad_norm"] is None
    assert any(not torch.equal(second[key], third[key]) for key in second)
    state = newest_state(tmp_path)
    assert state is not None
    scaler = read_progress(state).scaler
    assert scaler is not None
    assert scaler["scale"] == 32768.0  # half of torch's 65536
    assert scaler["_growth_tracker"] == 4  # of six steps those after the second


@pytest.mark.slow
def test_a_run_in_float16_resumes_to_the_bit(data: Path, tmp_path: Path) -> None:
    chosen = settings(amp="fp16")

    class Stop(Callback):
        def on_step_end(self, state: TrainState, metrics: Mapping[str, float | None]) -> None:
            state.stop = state.step == 4

    for callbacks in ([Stop()], []):
        train(
            small_model(),
            dataset_of(data),
            tmp_path / "a",
            chosen,
            processes=Processes(),
            callbacks=callbacks,
            save_every=2,
            resume=True,
        )
    train(small_model(), dataset_of(data), tmp_path / "b", chosen, processes=Processes())
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


# Early stopping


@pytest.mark.slow
def test_an_evaluation_that_is_made_again_counts_once(data: Path, tmp_path: Path) -> None:
    """Four epochs of three steps, none better than the first: patience for two ends it after the third."""

    class StopAt(Callback):
        def on_evaluate_end(self, state: TrainState, metrics: Mapping[str, float | None]) -> None:
            state.stop = state.step == 6

    chosen = settings(average=False, recipe=recipe_named("scratch", epochs=4))
    for callback in (StopAt(), EarlyStopping(None, 2)):
        train(
            small_model(),
            dataset_of(data),
            tmp_path,
            chosen,
            processes=Processes(),
            evaluate=lambda model: {"box_AP": 0.5},
            resume=True,
            callbacks=[callback],
        )
    state = newest_state(tmp_path)
    assert state is not None
    assert state.name == "state-00000009"


# Rates by layer


def test_the_rate_shrinks_from_the_heads_to_the_stem() -> None:
    model = small_model()
    optimizer = build_optimizer(model, Schedule(epochs=1, lr=0.1, layer_decay=0.5))
    scales = {id(one): group["lr_scale"] for group in optimizer.param_groups for one in group["params"]}
    body = model.backbone
    parts = [body.conv1, body.layer1, body.layer2, body.layer3, body.layer4, model.neck, model.head]
    expected = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 1]
    for part, scale in zip(parts, expected, strict=True):
        assert {scales[id(one)] for one in part.parameters()} == {scale}
    assert len(scales) == len(list(model.parameters()))
    # Norms are without decay, as with one rate.
    decays = {(group["lr_scale"], group["weight_decay"]) for group in optimizer.param_groups}
    assert {decay for _, decay in decays} == {0.0, 1e-4}


# srun


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-05,7],login1", "gpu03"),
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("rack-[1,2]-b,c", "rack-1-b"),
        ("gpu[10]", "gpu10"),
    ],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert _first_node(nodes) == first


def srun(count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """Processes with the variables that srun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "7"}
    common |= {"MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "fpg_zoo.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**common, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
        )
        for rank in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_srun_starts_what_torchrun_does(count: int, data: Path, checkpoint: Path, tmp_path: Path) -> None:
    options = ["train", "--model", NAME, "--checkpoint", str(checkpoint), "--data", str(data), "--recipe", "scratch"]
    options += ["--epochs", "4", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    processes = srun(count, *options, "--output", str(tmp_path / "a"))
    printed = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, printed
    assert [out for out, _ in printed] == [f"{tmp_path / 'a'}: trained\n"] + [""] * (count - 1)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--standalone", "-m"]
    command += ["fpg_zoo.cli", *options, "--output", str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_with_a_line(
    killed: int, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    options = ["train", "--model", NAME, "--checkpoint", str(checkpoint), "--data", str(data), "--recipe", "scratch"]
    options += ["--epochs", "500", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    processes = srun(2, *options, "--output", str(tmp_path))
    try:
        deadline = time.monotonic() + 120
        while steps_logged(tmp_path) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        processes[killed].send_signal(signal.SIGKILL)
        _, printed = processes[1 - killed].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1 - killed].returncode == 2
    assert printed.splitlines()[-1] == "fpg-zoo: another process has stopped; its own message says why"


# The batch size


def test_the_batch_is_as_large_as_the_predicted_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, image = RECIPES["scratch"], 1000
    monkeypatch.setattr(batch_size, "_free_bytes", lambda: 11.2 * image / batch_size._SHARE)
    monkeypatch.setattr(
        batch_size, "_step", lambda model, recipe, amp, images: kept.append(torch.zeros(image * images // 4))
    )
    kept: list[torch.Tensor] = []

    def model() -> Any:
        kept.clear()
        return small_model()

    # A step takes 1,000 bytes an image and nothing else; 11 fit, and 8 is the power of two below.
    assert batch_size.find_batch_size(model, recipe, None, 64) == 8
    assert batch_size.find_batch_size(model, recipe, None, 4) == 4
    monkeypatch.setattr(batch_size, "_free_bytes", lambda: 0.5 * image)
    with pytest.raises(ConfigError, match="a training step of one image does not fit in the memory of cpu"):
        batch_size.find_batch_size(model, recipe, None, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAME, "mask_rcnn_nano_fpg"])
def test_a_step_that_is_tried_is_one_of_training(name: str) -> None:
    assert batch_size.find_batch_size(lambda: small_model(name), RECIPES["scratch"], torch.bfloat16, 2) == 2


# From Python


@pytest.mark.slow
def test_train_takes_a_name_or_a_model_and_callbacks(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    class Steps(Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[str, int]] = []

        def on_train_begin(self, state: TrainState) -> None:
            self.seen.append(("begin", state.step))

        def on_step_end(self, state: TrainState, metrics: Mapping[str, float | None]) -> None:
            assert metrics["loss"] is not None
            assert 0 <= (metrics["data_wait"] or 0) <= 1
            self.seen.append(("step", state.step))
            state.stop = state.step == 2

        def on_train_end(self, state: TrainState, metrics: Mapping[str, float | None]) -> None:
            self.seen.append(("end", state.step))

    options: dict[str, Any] = {"recipe": "scratch", "epochs": 2, "batch_size": 2, "workers": 0, "device": "cpu"}
    steps = Steps()
    named = fpg_zoo.train(NAME, data, tmp_path / "a", checkpoint=checkpoint, callbacks=[steps], **options)
    assert named == {}
    assert steps.seen == [("begin", 0), ("step", 1), ("step", 2), ("end", 2)]
    # A detector is trained in place, on a data set of one's own.
    model = fpg_zoo.create_model(checkpoint=checkpoint)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    make_data(tmp_path / "val", pictures=2, split="val")
    val = fpg_zoo.data.coco.CocoDataset.from_folder(tmp_path / "val", "val", training=False)
    del options["device"]
    found = fpg_zoo.train(model, dataset_of(data), tmp_path / "b", val_data=val, **options)
    assert set(found) >= {"box_AP", "box_AP50"}
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert (tmp_path / "b" / "best" / "config.json").is_file()


def test_train_refuses_what_it_does_not_know(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate=0\.1: no option of train"):
        fpg_zoo.train(NAME, data, tmp_path / "run", learning_rate=0.1)
    with pytest.raises(ConfigError, match=r"no model: give --model NAME"):
        fpg_zoo.train(data=data, output=tmp_path / "run")
    with pytest.raises(ConfigError, match="output is missing"):
        fpg_zoo.train(NAME, data)
    assert not (tmp_path / "run").exists()


def test_the_size_of_images_and_the_number_of_detections_are_settings() -> None:
    values = {"output": "x", "data.path": "x", "recipe": "scratch", "model.image_size": 256, "model.max_detections": 7}
    for name in ("retinanet_nano_fpg", "mask_rcnn_nano_fpg"):
        given = {key: Given(value, "") for key, value in {**values, "model.name": name}.items()}
        _, detector = resolved(build_run_config(given))
        assert detector.preprocess.longest_side == 256
        part = detector.head if name.startswith("retinanet") else detector.box
        assert part.detections == 7
