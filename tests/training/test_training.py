"""Training runs: broken off anywhere they end with the same weights; together, processes have the mean gradient."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import time
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from training_runs import (
    CLASSES,
    NAME,
    checkpoint,
    data,
    dataset_of,
    settings,
    small_model,
    start,
    steps_logged,
    weights_of,
)

import fpg_zoo
from fpg_zoo.config.training import Schedule
from fpg_zoo.distributed import Processes
from fpg_zoo.errors import ConfigError, TrainingError
from fpg_zoo.modeling.build import build_detector
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.training import Criterion
from fpg_zoo.training.activation_checkpointing import apply_activation_checkpointing
from fpg_zoo.training.optimizer import build_optimizer
from fpg_zoo.training.recipes import RECIPES, recipe_named
from fpg_zoo.training.run_checkpoints import best_metric
from fpg_zoo.training.trainer import _average, train

pytestmark = pytest.mark.usefixtures("one_thread")


# The schedule, by hand


def test_the_rate_warms_up_scales_with_the_batch_and_steps_down() -> None:
    schedule = Schedule(epochs=50, milestones=(30, 40), lr=0.08)
    assert schedule.lr_at(0, 0, 64) == pytest.approx(0.008)  # a tenth
    assert schedule.lr_at(0, 500, 64) == pytest.approx(0.08 * 0.55)  # half of the way from 0.1 to 1
    assert schedule.lr_at(0, 1000, 64) == pytest.approx(0.08)
    assert schedule.lr_at(29, 5000, 16) == pytest.approx(0.02)  # a quarter of the batch
    assert schedule.lr_at(30, 5000, 64) == pytest.approx(0.008)
    assert schedule.lr_at(40, 5000, 64) == pytest.approx(0.0008)
    assert schedule.lr_at(39.99, 5000, 64) == pytest.approx(0.008)


def test_half_a_cosine_ends_at_nothing_and_adamw_scales_with_the_root_of_the_batch() -> None:
    schedule = Schedule(epochs=6, optimizer="adamw", decay="cosine", lr=1e-3, base_batch_size=8, warmup_iterations=0)
    assert schedule.lr_at(0, 0, 8) == pytest.approx(1e-3)
    assert schedule.lr_at(2, 100, 8) == pytest.approx(0.75e-3)  # cos 60 degrees is a half
    assert schedule.lr_at(3, 100, 32) == pytest.approx(1e-3)  # half of the rate, twice for four times the batch
    assert schedule.lr_at(6, 100, 8) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("name", "value"), [("optimizer", "adam"), ("decay", "linear")])
def test_a_schedule_refuses_what_it_does_not_know(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}='{value}': use one of"):
        Schedule(epochs=1, lr=0.1, **{name: value})


def test_the_published_recipe_is_that_of_the_table() -> None:
    recipe = RECIPES["crop640_50e"]
    schedule = recipe.schedule
    assert (schedule.epochs, schedule.milestones, schedule.lr, schedule.base_batch_size) == (
        50,
        (30, 40),
        0.08,
        64,
    )
    assert (schedule.momentum, schedule.weight_decay, schedule.warmup_iterations) == (0.9, 1e-4, 1000)
    for name, keeps in (("retinanet_r50_fpg", False), ("mask_rcnn_r50_fpg", True)):
        augment = recipe.augment(fpg_zoo.model_info(name).config)
        assert (augment.longest_side, augment.crop, augment.factors, augment.flip) == (640, 640, (0.8, 1.2), 0.5)
        assert augment.keep_empty_crops is keeps


def test_other_epochs_move_the_steps_down_in_proportion() -> None:
    schedule = recipe_named("crop640_50e", epochs=10).schedule
    assert (schedule.epochs, schedule.milestones) == (10, (6, 8))


def test_norms_have_no_weight_decay_and_frozen_parts_are_not_trained() -> None:
    model = small_model()
    Criterion(model)
    decayed, norms = build_optimizer(model, RECIPES["finetune"].schedule).param_groups
    assert (decayed["weight_decay"], norms["weight_decay"]) == (1e-4, 0.0)
    assert all(parameter.ndim == 1 for parameter in norms["params"])
    held = {id(parameter) for group in (decayed, norms) for parameter in group["params"]}
    for key, parameter in model.named_parameters():
        frozen = key.startswith(("backbone.conv1.", "backbone.bn1.", "backbone.layer1."))
        assert (id(parameter) in held) != frozen, key
    biases = [id(model.head.deltas.bias), id(model.neck.outputs[0].bias)]  # type: ignore[union-attr, index]
    assert set(biases) <= {id(parameter) for parameter in decayed["params"]}


# Recomputing the grid


@pytest.mark.parametrize("name", ["retinanet_nano_fpg", "mask_rcnn_nano_fpg"])
@pytest.mark.slow
def test_recomputing_the_grid_changes_no_loss_gradient_or_statistic(name: str) -> None:
    plain, again = small_model(name).train(), small_model(name).train()
    apply_activation_checkpointing(again)
    torch.manual_seed(1)
    images = torch.randn(2, 3, 128, 128)
    masks = torch.zeros(1, 128, 128, dtype=torch.bool)
    masks[:, 20:90, 20:90] = True
    truths = [{"boxes": torch.tensor([[20.0, 20, 90, 90]]), "labels": torch.tensor([1]), "masks": masks}] * 2
    found = []
    for model in (plain, again):
        losses = Criterion(model, sample_all=True)(images, [(128, 128)] * 2, truths)
        torch.stack(list(losses.values())).sum().backward()
        found.append((losses, {key: one.grad for key, one in model.named_parameters()}, model.state_dict()))
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value is other[key] or torch.equal(value, other[key]), key


def test_recomputing_is_for_grids() -> None:
    model = fpg_zoo.create_model("retinanet_r50_fpn")
    with pytest.raises(ConfigError, match=r"retinanet_r50_fpn has a FPN neck"):
        apply_activation_checkpointing(model)


# Whole runs


@pytest.mark.slow
def test_two_runs_are_equal_bit_for_bit_whatever_the_workers(data: Path, tmp_path: Path) -> None:
    for name, workers in (("a", 0), ("b", 2)):
        train(small_model(), dataset_of(data), tmp_path / name, settings(), processes=Processes(), workers=workers)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    assert weights_of(tmp_path / "a").keys() == {"model.safetensors", "optimizer.safetensors", "average.safetensors"}
    logged = [[json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in "ab"]
    changing = {"images_per_second", "data_wait", "memory_gb"}
    first, second = ([{k: v for k, v in row.items() if k not in changing} for row in rows] for rows in logged)
    assert first == second
    assert [row["step"] for row in first] == [1, 2, 3, 4, 5, 6]  # 2 epochs of 6 images, 2 a step
    assert [row["epoch"] for row in first] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_with_the_weights_of_an_unbroken_one(
    data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    options = ("--recipe", "scratch", "--epochs", "10", "--batch-size", "2", "--save-every", "2", "--ema")
    unbroken = start(data, tmp_path / "unbroken", checkpoint, *options, "--workers", "0")
    _, errors = unbroken.communicate(timeout=300)
    assert unbroken.returncode == 0, errors
    generator = random.Random(0)
    broken, killed = tmp_path / "broken", 0
    for attempt in range(10):
        # After each third step or so, at a moment within it; with or without workers.
        target = 3 * attempt + 2
        process = start(data, broken, checkpoint, *options, "--resume", "--workers", str(attempt % 2))
        while steps_logged(broken) < target and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.2)
        killed += process.poll() is None
        process.kill()
        process.communicate()
    last = start(data, broken, checkpoint, *options, "--resume", "--workers", "0")
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    print(f"{killed} of 10 processes killed at work")
    assert killed >= 8
    assert weights_of(broken) == weights_of(tmp_path / "unbroken")
    steps = [json.loads(line)["step"] for line in (broken / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 31))
    assert sorted(path.name for path in broken.iterdir()) == ["log.jsonl", "report.html", "run.toml", "state-00000030"]


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_trains_no_further(data: Path, tmp_path: Path) -> None:
    train(small_model(), dataset_of(data), tmp_path / "run", settings(), processes=Processes())
    before = weights_of(tmp_path / "run")
    train(small_model(), dataset_of(data), tmp_path / "run", settings(), processes=Processes(), resume=True)
    assert weights_of(tmp_path / "run") == before


@pytest.mark.slow
def test_accumulated_passes_make_one_step(data: Path, tmp_path: Path) -> None:
    train(small_model(), dataset_of(data), tmp_path / "run", settings(accumulate=3), processes=Processes())
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1.0, 2.0]
    assert rows[0]["lr"] == pytest.approx(RECIPES["scratch"].schedule.lr * math.sqrt(6 / 8) * 0.1)


@pytest.mark.slow
def test_the_best_model_is_kept_with_its_figures(data: Path, tmp_path: Path) -> None:
    told = iter([{"box_AP": 0.25}, {"box_AP": 0.125}])
    seen: list[bool] = []

    def evaluate(model: Detector) -> dict[str, float]:
        seen.append(model.training)
        return next(told)

    figures = train(
        small_model(), dataset_of(data), tmp_path / "run", settings(), processes=Processes(), evaluate=evaluate
    )
    assert seen == [False, False]
    assert figures == {"box_AP": 0.125}
    assert json.loads((tmp_path / "run" / "best" / "figures.json").read_text()) == {"box_AP": 0.25}
    assert best_metric(tmp_path / "run") == 0.25
    best = fpg_zoo.create_model(f"local-dir:{tmp_path / 'run' / 'best'}")
    assert best.class_names == CLASSES


@pytest.mark.slow
def test_other_settings_than_the_runs_are_refused_and_so_is_a_run_not_to_be_resumed(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_model(), dataset_of(data), run, settings(), processes=Processes())
    before = weights_of(run)
    with pytest.raises(ConfigError, match="holds a run: resume it"):
        train(small_model(), dataset_of(data), run, settings(), processes=Processes())
    with pytest.raises(ConfigError, match=r"\(seed was 0, is 1\): repeat those") as caught:
        train(small_model(), dataset_of(data), run, settings(seed=1), processes=Processes(), resume=True)
    assert "batch_size" not in str(caught.value)
    assert weights_of(run) == before


def test_losses_that_are_no_numbers_stop_with_the_pictures(data: Path, tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.backbone.conv1.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(
        TrainingError, match=r"step 1: the gradient is nan; loss_cls = nan, .* on the images \d, \d\. Look at"
    ):
        train(model, dataset_of(data), tmp_path / "run", settings(), processes=Processes())


@pytest.mark.slow
def test_an_evaluation_that_was_broken_off_is_made_up_for(data: Path, tmp_path: Path) -> None:
    told = iter([{"box_AP": 0.25}, None, {"box_AP": 0.5}])

    def evaluate(model: Detector) -> dict[str, float]:
        figures = next(told)
        if figures is None:
            raise KeyboardInterrupt
        return figures

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(small_model(), dataset_of(data), run, settings(), processes=Processes(), evaluate=evaluate)
    before = weights_of(run)  # saved before the evaluation
    figures = train(
        small_model(), dataset_of(data), run, settings(), processes=Processes(), evaluate=evaluate, resume=True
    )
    assert figures == {"box_AP": 0.5}
    assert best_metric(run) == 0.5
    assert weights_of(run) == before
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("box_AP")) for row in rows if "loss" not in row] == [(3, 0.25), (6, 0.5)]


@pytest.mark.parametrize("left", ["log.jsonl", "best"])
def test_what_is_left_of_a_run_is_not_overwritten(left: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / left).mkdir() if left == "best" else (tmp_path / left).write_text("{}\n")
    with pytest.raises(ConfigError, match="holds a run: resume it"):
        train(small_model(), dataset_of(data), tmp_path, settings(), processes=Processes())


def test_averages_forget_their_beginning_by_and_by() -> None:
    # From 0 towards 1 with decays 2/11, 3/12, 4/13 after the first, which is copied.
    averaged = AveragedModel(torch.nn.Linear(1, 1, bias=False), multi_avg_fn=_average, use_buffers=True)
    source = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        for value in (0.0, 1.0, 1.0, 1.0):
            source.weight.fill_(value)
            averaged.update_parameters(source)
    assert averaged.module.weight.item() == pytest.approx(1 - (2 / 11) * (3 / 12) * (4 / 13))


def test_other_classes_than_the_datas_are_told(data: Path, tmp_path: Path) -> None:
    model = build_detector(dataclasses.replace(small_model().config, class_names=("light", "dark")), NAME)
    with pytest.raises(ConfigError, match="the same names in another order"):
        train(model, dataset_of(data), tmp_path / "run", settings(), processes=Processes())
    model = build_detector(dataclasses.replace(small_model().config, class_names=("dark", "cat")), NAME)
    with pytest.raises(ConfigError, match=r"the model lacks \['light'\], and has \['cat'\] more"):
        train(model, dataset_of(data), tmp_path / "run", settings(), processes=Processes())


@pytest.mark.slow
def test_a_copy_of_a_model_is_not_trained_with_it(data: Path, tmp_path: Path) -> None:
    model = small_model()
    twin = copy.deepcopy(model)
    train(model, dataset_of(data), tmp_path / "run", settings(average=False), processes=Processes())
    moved = [key for key, value in twin.state_dict().items() if not torch.equal(value, model.state_dict()[key])]
    assert "head.classes.weight" in moved
