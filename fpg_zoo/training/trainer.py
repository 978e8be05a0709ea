"""The training loop: one step after the other, the same on every run, to be broken off and taken up anywhere."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from fpg_zoo.checkpoints.safetensors_files import description_of
from fpg_zoo.config.training import AugmentConfig
from fpg_zoo.data.dataset import Dataset
from fpg_zoo.data.loader import TrainBatch, train_loader
from fpg_zoo.data.user_transform import AugmentCallable
from fpg_zoo.distributed import Processes
from fpg_zoo.errors import ConfigError, TrainingError
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.text import quoted
from fpg_zoo.training.activation_checkpointing import apply_activation_checkpointing
from fpg_zoo.training.callbacks import Callback, Metrics, TrainState
from fpg_zoo.training.criterion import Criterion
from fpg_zoo.training.logger import MetricLogger
from fpg_zoo.training.optimizer import build_optimizer
from fpg_zoo.training.recipes import Recipe
from fpg_zoo.training.run_checkpoints import (
    Progress,
    best_metric,
    check_settings,
    has_run,
    newest_state,
    read_progress,
    restore,
    save_best,
    save_state,
)
from fpg_zoo.training.run_config import write_run_file
from fpg_zoo.uploads import to_device
from fpg_zoo.weights.manifest import nearest

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SCALE = 1.0  # of a loss in float16; gradients that overflow without it are no numbers
AVERAGE_DECAY = 0.999  # of the averaged weights, a step; less in the beginning
_LOCK_FILE = ".lock"
_PAD_TO_CROP = "pad_to_crop"  # a recipe's, which the records of older runs lack
Evaluate = Callable[[Detector], Metrics]


# Of fields of a recipe that have another name in the records of runs.
_RECORDED = {
    "lr": "learning_rate",
    "milestones": "steps_down",
    "base_batch_size": "reference_batch",
    "max_grad_norm": "greatest_gradient",
    "rois": "regions",
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What decides the weights that come out, with the model, the data and the recipe.

    Attributes:
        recipe: how to train.
        batch_size: images in one pass of one process.
        accumulate: passes whose gradients make a step.
        seed: of everything random.
        amp: the precision that autocast computes in, `bf16` or `fp16`; weights and losses stay float32. With `fp16` the
            loss is scaled, and a step whose gradients overflow is left out.
        checkpoint_activations: compute the grid twice and keep less of it (`apply_activation_checkpointing`).
        average: also keep an exponential moving average of the weights, and evaluate that.
        sync_norms: BatchNorms take their statistics over all processes (needs CUDA).
        compile: compile backbone and neck with torch.compile.
        augment: in place of the recipe's augmentation.
        metric: of `evaluate`, that tells the best model; None for the first.
    """

    recipe: Recipe
    batch_size: int = 8
    accumulate: int = 1
    seed: int = 0
    amp: Literal["bf16", "fp16"] | None = None
    checkpoint_activations: bool = False
    average: bool = False
    sync_norms: bool = False
    compile: bool = False
    augment: AugmentConfig | None = None
    metric: str | None = None


def train(
    model: Detector,
    dataset: Dataset,
    run: Path,
    settings: TrainSettings,
    *,
    processes: Processes,
    workers: int = 0,
    save_every: int = 500,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    resume: bool = False,
    data: str = "",
    transform: AugmentCallable | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[str] = (),
    log_every: int = 50,
    config: Mapping[str, Any] | None = None,
) -> Metrics:
    """Train a model in place.

    Args:
        model: on its device; every process has the same.
        dataset: what to train on.
        run: the folder for `log.jsonl`, the newest `state-STEP/` and `best/`; made if need be.
        settings: see there.
        processes: this one among those that train together.
        workers: processes that make batches ahead. Their number changes nothing in what comes out.
        save_every: steps from one state to the next; one is also saved at the end.
        evaluate: gives metrics. It is called in all processes, and the main one's count.
        evaluate_every: epochs from one evaluation to the next; the last epoch is always evaluated.
        resume: take up the newest state in `run`, if there is one. A run that has ended goes on where there are more
            epochs than it had.
        data: what tells the data set from others, as a digest of its annotations. A run that goes on must have the
            same.
        transform: called on each image and its targets after the augmentation, as of `train_loader`.
        callbacks: called at steps and evaluations.
        loggers, log_every: as of `MetricLogger`.
        config: the run's settings, as of `run_config.as_tables`, for the loggers and `run.toml`; None for none.

    Returns:
        The metrics of the last evaluation; empty without one.

    Raises:
        ConfigError: settings that do not go together, or not with the state in `run`; or a state and no `resume`.
        TrainingError: the losses of a step are no numbers; the message has the images' ids. The last state is kept.
        StorageError: a state cannot be written.
    """
    whole = _Run(model, dataset, run, settings, processes, workers, data, transform, callbacks)
    logger_of = functools.partial(MetricLogger, run, processes.is_main, loggers=loggers, log_every=log_every)
    with processes.exclusive(run / _LOCK_FILE, f"the run {run}"):
        return whole.train(save_every, evaluate, evaluate_every, resume, logger_of, config)


class _Run:
    def __init__(
        self,
        model: Detector,
        dataset: Dataset,
        run: Path,
        settings: TrainSettings,
        processes: Processes,
        workers: int,
        data: str,
        transform: AugmentCallable | None,
        callbacks: Sequence[Callback],
    ) -> None:
        if model.class_names != dataset.class_names:
            raise ConfigError(
                f"the model's classes are not the data's: {_difference(model.class_names, dataset.class_names)}; "
                "create the model with class_names of the dataset"
            )
        if settings.batch_size < 1 or settings.accumulate < 1:
            raise ConfigError(f"batch_size={settings.batch_size}, accumulate={settings.accumulate}: at least 1 each")
        if settings.seed < 0 or workers < 0:
            raise ConfigError(f"seed={settings.seed}, workers={workers}: at least 0 each")
        if settings.sync_norms and model.device.type != "cuda":
            raise ConfigError(f"sync_norms on {model.device}: BatchNorms are synchronised on CUDA alone; leave it out")
        self.model, self.dataset, self.run, self.settings = model, dataset, run, settings
        self.processes, self.workers = processes, workers
        self.transform, self.callbacks = transform, callbacks
        self.schedule = settings.recipe.schedule
        self.batch = settings.batch_size * settings.accumulate * processes.world_size  # images of a step
        self.steps = max(self.schedule.epochs * len(dataset) // self.batch, 1)
        self.record = {
            **_recorded(settings),
            "model": description_of(model.config, model.name),
            "pictures": len(dataset),
            "processes": processes.world_size,
            "data": data,
        }
        del self.record["checkpoint_activations"], self.record["recipe"]["about"]  # which change nothing
        self.pad_to_crop = settings.recipe.pad_to_crop
        self.scaler = GradScaler(model.device.type, enabled=settings.amp == "fp16")
        self.average: AveragedModel | None = None

    def train(
        self,
        save_every: int,
        evaluate: Evaluate | None,
        evaluate_every: int,
        resume: bool,
        logger_of: Callable[..., MetricLogger],
        config: Mapping[str, Any] | None,
    ) -> Metrics:
        settings = self.settings
        if settings.sync_norms:
            for name, part in self.model.named_children():
                if name != "mask_head":  # a process without positive RoIs does not run it, and others would wait
                    nn.SyncBatchNorm.convert_sync_batchnorm(part)  # type: ignore[no-untyped-call]
        if settings.checkpoint_activations:
            apply_activation_checkpointing(self.model)
        # On a CPU, and under autocast on a GPU, convolutions are faster so; a layout, nothing else.
        self.model.to(memory_format=torch.channels_last)
        recipe = settings.recipe
        criterion = Criterion(self.model.train(), frozen_stages=recipe.frozen_stages, sampling=recipe.sampling)
        optimizer = build_optimizer(self.model, self.schedule)
        if settings.average:
            with torch.device("cpu"):  # its counter would follow the program's default
                self.average = AveragedModel(self.model, multi_avg_fn=_average, use_buffers=True)
        done = self._resume(optimizer, resume)
        wrapped = self._wrap(criterion)

        def due(step: int) -> bool:
            return evaluate is not None and (step == self.steps or self._ends_epoch(step, evaluate_every))

        metrics: Metrics = {}
        logger = logger_of(done, self.steps, config=config)
        state = TrainState(
            model=self.model,
            evaluated=self._model_to_keep(),
            run=self.run,
            logger=logger,
            step=done,
            steps=self.steps,
            epoch=done * self.batch / len(self.dataset),
            is_main=self.processes.is_main,
        )

        def open_log() -> None:
            logger.open()
            if config is not None:
                write_run_file(config, self.run)

        self.processes.on_main(open_log)
        with logger, _training_errors():
            for callback in self.callbacks:
                callback.on_train_begin(state)
            if done and due(done) and evaluate:  # it may have been broken off there
                metrics = self._evaluated(evaluate, state, logger)
            # Other processes wait for the main one's word, so it is asked for only where a callback may have stopped.
            stops_at_steps = any(type(one).on_step_end is not Callback.on_step_end for one in self.callbacks)
            may_stop = bool(self.callbacks)
            with contextlib.closing(self._batches(done)) as batches:
                for step in range(done + 1, self.steps + 1):
                    if may_stop and self.processes.broadcast(state.stop):
                        break
                    may_stop = stops_at_steps
                    start = time.perf_counter()
                    passes = next(batches)
                    waited = time.perf_counter() - start
                    state.step, state.epoch = step, step * self.batch / len(self.dataset)
                    step_metrics = self._train_step(wrapped, optimizer, step - 1, passes)
                    step_metrics |= _pace(self.batch, waited, time.perf_counter() - start)
                    logger.note(step, step_metrics)
                    for callback in self.callbacks:
                        callback.on_step_end(state, step_metrics)
                    if due(step) or step == self.steps or step % save_every == 0:
                        self._save(optimizer, step)
                    if due(step) and evaluate:
                        metrics = self._evaluated(evaluate, state, logger)
                        may_stop = True
            for callback in self.callbacks:
                callback.on_train_end(state, metrics)
        return metrics

    def _wrap(self, criterion: Criterion) -> nn.Module:
        """The criterion as the processes share it, and compiled if wanted."""
        if self.settings.compile:
            self.model.backbone.compile()
            self.model.neck.compile()
        if self.processes.world_size == 1:
            return criterion
        devices = [self.model.device.index] if self.model.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch has another name for broadcast_buffers
            # Each process keeps the statistics of its own BatchNorms, as the reference does; the main one's are saved.
            return DistributedDataParallel(criterion, device_ids=devices, broadcast_buffers=False)

    def _resume(self, optimizer: torch.optim.Optimizer, resume: bool) -> int:
        """The step to go on from: the newest state's, or 0."""
        if has_run(self.run) and not resume:
            raise ConfigError(f"{self.run} holds a run: resume it (--resume), or choose another folder")
        state = newest_state(self.run)
        progress = read_progress(state) if state else None
        steps = self.processes.all_gather(progress.step if progress else 0)
        if len(set(steps)) > 1:
            raise ConfigError(
                f"{self.run}: the processes find states of the steps {steps}: it must be one folder for all machines"
            )
        if state is None or progress is None:
            return 0
        recipe = progress.settings.get("recipe")
        if isinstance(recipe, dict) and _PAD_TO_CROP not in recipe:
            # Started before recipes had it, when every image had anchors up to the crop. It goes on so, to the bit.
            del self.record["recipe"][_PAD_TO_CROP]
            self.pad_to_crop = True
        check_settings(state, progress.settings, self.record, extended=self._extends(progress))
        self.processes.on_main(lambda: best_metric(self.run))  # which may be damaged: to be known before long work
        average = restore(state, self.model, optimizer, averaged=self.average is not None)
        if self.average is not None and average is not None:
            self.average.module.load_state_dict(average)
            self.average.n_averaged.fill_(progress.step)
        if progress.scaler is not None:
            self.scaler.load_state_dict(progress.scaler)
        return progress.step

    def _extends(self, progress: Progress) -> bool:
        """Whether a run had come to its end, and is to go on with more epochs."""
        epochs = progress.settings.get("recipe", {}).get("schedule", {}).get("epochs")
        ended = isinstance(epochs, int) and progress.step == max(epochs * len(self.dataset) // self.batch, 1)
        return ended and self.steps > progress.step

    def _batches(self, step: int) -> Generator[list[TrainBatch], None, None]:
        """The passes of each step from this one on."""
        recipe, settings = self.settings.recipe, self.settings
        loader = train_loader(
            self.dataset,
            settings.augment or recipe.augment(self.model.config),
            self.model.config.preprocess,
            transform=self.transform,
            batch_size=settings.batch_size,
            seed=settings.seed,
            workers=self.workers,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            start_batch=step * settings.accumulate,
        )
        for _ in range(step, self.steps):
            yield list(itertools.islice(loader, settings.accumulate))

    def _train_step(
        self, criterion: nn.Module, optimizer: torch.optim.Optimizer, step: int, batches: Sequence[TrainBatch]
    ) -> dict[str, float | None]:
        """Losses, backward, step; the gradients of several batches are accumulated."""
        self._seed(step)
        lr = self._set_lr(optimizer, step)
        averages = _StepAverages(len(batches))
        optimizer.zero_grad()
        for index, batch in enumerate(batches):
            with _without_sync(criterion) if index < len(batches) - 1 else contextlib.nullcontext():
                losses = self._losses(criterion, batch)
                loss = torch.stack(list(losses.values())).sum() / len(batches)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            averages.add(losses, batch)
        self.scaler.unscale_(optimizer)
        max_norm = math.inf if self.schedule.max_grad_norm is None else self.schedule.max_grad_norm
        grad_norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), max_norm))
        overflows = self.scaler.is_enabled() and self.scaler.get_scale() > _LEAST_SCALE
        averages.check(step, grad_norm, may_overflow=overflows)
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return {
            "epoch": (step + 1) * self.batch / len(self.dataset),
            "lr": lr,
            "loss": sum(averages.losses.values()),
            **averages.losses,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
        }

    def _seed(self, step: int) -> None:
        """Of the step alone, so that a run that resumes draws the same samples."""
        sequence = np.random.SeedSequence(self.settings.seed, spawn_key=(step, self.processes.rank))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)

    def _set_lr(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        lr = self.schedule.lr_at(step * self.batch / len(self.dataset), step, self.batch)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return lr

    def _losses(self, criterion: nn.Module, batch: TrainBatch) -> dict[str, Tensor]:
        device = self.model.device
        images = to_device(batch.images, device).contiguous(memory_format=torch.channels_last)
        padded_sizes = [(images.shape[-2], images.shape[-1])] * len(images) if self.pad_to_crop else None
        amp = self.settings.amp
        with torch.autocast(device.type, dtype=AMP[amp or "bf16"], enabled=amp is not None):
            losses: dict[str, Tensor] = criterion(images, batch.sizes, batch.targets, padded_sizes=padded_sizes)
        return losses

    def _ends_epoch(self, step: int, every: int) -> bool:
        """Whether the last of so many steps reached the end of an epoch that is to be evaluated."""
        before, after = ((at * self.batch) // len(self.dataset) // every for at in (step - 1, step))
        return after > before

    def _evaluated(self, evaluate: Evaluate, state: TrainState, logger: MetricLogger) -> Metrics:
        """The metrics now, written to the log; the best model so far is kept, and callbacks hear of them."""
        model = self._model_to_keep()
        self.processes.broadcast_module(model)  # but for this, BatchNorm's running statistics are each process's own
        metrics = dict(evaluate(model.eval()))

        def keep_best() -> None:
            name = self._metric_of(metrics)
            best, value = best_metric(self.run), metrics[name]
            if value is not None and (best is None or value > best):
                save_best(self.run, model, {name: value, **metrics})

        self.processes.on_main(keep_best)
        logger.note(state.step, metrics)
        for callback in self.callbacks:
            callback.on_evaluate_end(state, metrics)
        self.model.train()
        return metrics

    def _metric_of(self, metrics: Metrics) -> str:
        name = self.settings.metric or next(iter(metrics))
        if name not in metrics:
            raise ConfigError(f"metric={quoted(name)}: {nearest(name, list(metrics))}")
        return name

    def _model_to_keep(self) -> Detector:
        """The averaged model if there is one, which is the better one as a rule."""
        if self.average is None:
            return self.model
        averaged = self.average.module
        assert isinstance(averaged, Detector)
        return averaged

    def _save(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        def save() -> None:
            average = self.average.module.state_dict() if self.average is not None else None
            scaler = self.scaler.state_dict() if self.scaler.is_enabled() else None
            save_state(self.run, self.model, optimizer, average, Progress(step, self.record, scaler))

        self.processes.on_main(save)


def _pace(images: int, waited: float, took: float) -> dict[str, float]:
    """Of a step: images a second, and the share of its seconds in which it waited for its images."""
    return {"images_per_second": images / took, "data_wait": waited / took}


def _recorded(settings: TrainSettings) -> dict[str, Any]:
    """The settings as a run's record holds them, under the names that records have had from the first.

    What came later is there only where it is not the default, so that older runs go on.
    """
    record = asdict(settings)
    amp, augment, _ = record.pop("amp"), record.pop("augment"), record.pop("metric")
    record["bf16"] = amp == "bf16"
    if amp == "fp16":
        record["fp16"] = True
    if augment is not None:
        record["augment"] = augment
    if settings.recipe.schedule.layer_decay == 1:
        del record["recipe"]["schedule"]["layer_decay"]
    for part in ("schedule", "sampling"):
        fields = record["recipe"][part]
        record["recipe"][part] = {_RECORDED.get(name, name): value for name, value in fields.items()}
    return record


@contextlib.contextmanager
def _training_errors() -> Iterator[None]:
    """Turn what torch raises for want of memory or of images into an error of ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{str(error).splitlines()[0]} Use smaller batches and accumulate them, bf16, or activation checkpointing"
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError("a BatchNorm sees one value a channel: take at least 2 images in a batch") from None


_Tensors = tuple[Tensor, ...] | list[Tensor]


def _average(averages: _Tensors, values: _Tensors, count: Tensor | int) -> None:
    """Move averages towards values, by less and less, so that the first steps are soon forgotten."""
    taken = float(count)
    decay = min(AVERAGE_DECAY, (1 + taken) / (10 + taken))
    for average, value in zip(averages, values, strict=True):
        if average.is_floating_point():
            average.lerp_(value, 1 - decay)
        else:
            average.copy_(value)


def _without_sync(criterion: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Passes within do not exchange gradients with other processes; the last of a step does it for all of them."""
    if isinstance(criterion, DistributedDataParallel):
        kept: contextlib.AbstractContextManager[Any] = criterion.no_sync()
        return kept
    return contextlib.nullcontext()


class _StepAverages:
    """The losses of a step, averaged over its batches, and what is wrong with them.

    Attributes:
        losses: by name.
    """

    def __init__(self, batches: int) -> None:
        self.losses: dict[str, float] = {}
        self._batches = batches
        self._faults: list[str] = []

    def add(self, losses: Mapping[str, Tensor], batch: TrainBatch) -> None:
        """Those of a batch."""
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        for name, value in zip(losses, values, strict=True):
            self.losses[name] = self.losses.get(name, 0.0) + value / self._batches
        bad = [f"{name} = {value}" for name, value in zip(losses, values, strict=True) if not math.isfinite(value)]
        if bad:
            self._faults.append(f"{', '.join(bad)} on the images {', '.join(map(str, batch.image_ids))}")

    def check(self, step: int, grad_norm: float, *, may_overflow: bool) -> None:
        """Refuse a gradient that is no number. It is equal in every process: none takes the step, and none saves it.

        Args:
            step: the steps before.
            grad_norm: over all parameters.
            may_overflow: it is of a loss that was scaled, and may be by less.

        Raises:
            TrainingError: it is so; the message has the images.
        """
        if not math.isfinite(grad_norm) and not may_overflow:
            own = "; ".join(self._faults) or "the losses of this process are numbers"
            raise TrainingError(
                f"step {step + 1}: the gradient is {grad_norm}; {own}. Look at those images' annotations, or "
                "lower the learning rate, and resume from the last state"
            )


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    missing, more = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    if not missing and not more:
        return "the same names in another order"
    return f"the model lacks {missing[:5] or 'none'}, and has {more[:5] or 'none'} more"
