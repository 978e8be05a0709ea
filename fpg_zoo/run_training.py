"""Training a detector, whole: settings, data, weights to begin with, evaluation, several processes."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fpg_zoo.config import DetectorConfig, TwoStageConfig
from fpg_zoo.data.split_names import HUB_PREFIX, SHAPES_NAME
from fpg_zoo.errors import ConfigError, DownloadError
from fpg_zoo.models.backbones import has_weights
from fpg_zoo.models.factory import is_source_of_weights, model_info
from fpg_zoo.text import quoted
from fpg_zoo.training.run_config import (
    OPTIONS,
    Given,
    ModelSettings,
    RunConfig,
    as_tables,
    build_run_config,
    read_run_file,
)

if TYPE_CHECKING:
    from fpg_zoo.data.dataset import Dataset
    from fpg_zoo.data.open_split import HeldOut
    from fpg_zoo.data.user_transform import AugmentCallable
    from fpg_zoo.distributed import Processes
    from fpg_zoo.evaluation.coco_metrics import IouType, Scores
    from fpg_zoo.modeling.detectors import Detector
    from fpg_zoo.training.callbacks import Callback, Metrics, TrainState
    from fpg_zoo.training.trainer import TrainSettings


def train(
    model: str | Detector | None = None,
    data: str | Path | Dataset | None = None,
    output: str | Path | None = None,
    *,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    val_data: Dataset | None = None,
    augment: AugmentCallable | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    **options: Any,
) -> dict[str, float | None]:
    """Train a detector, as `fpg-zoo train` does. Under torchrun or srun, each process calls it.

    Args:
        model: a name as of `create_model`, or a detector that is trained in place.
        data: what `fpg-zoo train --data` takes, or a data set of your own (`fpg_zoo.data.dataset.Dataset`).
        output: the run's folder, for `log.jsonl`, the newest state, `best/` and `run.toml`.
        config: a run's file, as `fpg-zoo train --dump-config` prints it, or that of a detector of one's own.
        settings: fields of a run by their dotted names, as `{"schedule.lr": 0.01}`; over those of `config`.
        val_data: to evaluate on, where `data` is a data set of your own.
        augment: called after the augmentation on each image and its targets, as of `fpg_zoo.data.loader.train_loader`.
        callbacks: called at steps and evaluations (`fpg_zoo.training.callbacks.Callback`).
        resume: go on from the newest state in `output`, if there is one. A run that has ended goes on where it is given
            more epochs.
        options: the usual fields by the names of the command's options: `epochs=12`, `lr=0.01`, `batch_size=4`.

    Returns:
        The metrics of the last evaluation, `box_AP` and others; empty without one, and in all processes but the first.

    Raises:
        ConfigError: settings that cannot be used, or data, or not with the run in `output`.
        WeightsError: the weights to begin with cannot be had.
        TrainingError: the losses are no numbers any more.
        StorageError: the run cannot be written.
    """
    from fpg_zoo.modeling.detectors import Detector

    given: dict[str, Given] = {}
    if config is not None:
        given |= read_run_file(Path(os.path.expanduser(config)))
    own_model = model if isinstance(model, Detector) else None
    own_data = data if data is not None and not isinstance(data, (str, os.PathLike)) else None
    named = {
        "model": own_model.name if own_model is not None else model,
        "data": "" if own_data is not None else data,
        "output": output,
    }
    for name, value in {**named, **options}.items():
        if name not in OPTIONS:
            raise ConfigError(f"{name}={quoted(value)}: no option of train; settings= takes fields by dotted names")
        if value is not None:
            given[OPTIONS[name]] = Given(value, "")
    given |= {key: Given(value, "") for key, value in (settings or {}).items()}
    whole = build_run_config(given)
    metrics = run_training(
        whole, model=own_model, data=own_data, val=val_data, augment=augment, callbacks=callbacks, resume=resume
    )
    return metrics or {}


def resolved(config: RunConfig) -> tuple[RunConfig, DetectorConfig]:
    """A run with what depends on its model settled, and that model's config. Nothing is read but descriptions.

    Raises:
        ConfigError: settings that do not go together.
        UnknownNameError: no such model.
    """
    model = config.model
    if model.name is None and model.config is None:
        raise ConfigError("no model: give --model NAME (`fpg-zoo list` has the names) or --config FILE")
    info = model_info(model.name, backbone=model.backbone, config=model.config)
    detector = with_settings(info.config, model)
    config.augment(detector)
    if model.pretrained_backbone is None:
        whole = bool(model.pretrained or model.checkpoint or is_source_of_weights(model.name))
        start = not whole and not model.backbone_checkpoint and has_weights(info.config.backbone)
        model = dataclasses.replace(model, pretrained_backbone=start)
        config = dataclasses.replace(config, model=model)
    random = not any((model.pretrained, model.checkpoint, model.pretrained_backbone, model.backbone_checkpoint))
    if config.training.frozen_stages and random and not is_source_of_weights(model.name):
        raise ConfigError(
            f"recipe {config.recipe} does not train the stem, which would stay at its random beginning: give "
            "--pretrained, --checkpoint, --pretrained-backbone or --backbone-checkpoint, or --recipe scratch"
        )
    return config, detector


def with_settings(detector: DetectorConfig, settings: ModelSettings) -> DetectorConfig:
    """A detector's config with another size of images, or another number of detections.

    Raises:
        ConfigError: it has one size for all images.
    """
    preprocess = detector.preprocess
    if settings.image_size is not None:
        if preprocess.fixed_size is not None:
            raise ConfigError(
                f"image_size={settings.image_size}: this model stretches every image to {preprocess.fixed_size}; "
                "leave it out"
            )
        shortest = preprocess.shortest_side
        if shortest is not None:
            shortest = max(shortest * settings.image_size // preprocess.longest_side, 1)
        preprocess = dataclasses.replace(preprocess, longest_side=settings.image_size, shortest_side=shortest)
    detector = dataclasses.replace(detector, preprocess=preprocess)
    if settings.max_detections is None:
        return detector
    if isinstance(detector, TwoStageConfig):
        return dataclasses.replace(detector, box=dataclasses.replace(detector.box, detections=settings.max_detections))
    head = dataclasses.replace(detector.head, detections=settings.max_detections)  # type: ignore[type-var]
    return dataclasses.replace(detector, head=head)


def run_training(
    config: RunConfig,
    *,
    model: Detector | None = None,
    data: Dataset | None = None,
    val: Dataset | None = None,
    augment: AugmentCallable | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, float | None] | None:
    """Train as a config says.

    Args:
        config: the run.
        model: in place of the config's.
        data, val: data sets in place of the config's.
        augment, callbacks, resume: as of `train`.
        say: is given lines for people, by the main process.

    Returns:
        The metrics of the last evaluation, empty without one; None in all processes but the main one.
    """
    # What can be refused without torch is refused at once.
    if model is None:
        config, detector = resolved(config)
    else:
        detector = model.config
        if config.model != ModelSettings(name=model.name):
            raise ConfigError("a detector is trained as it is: leave out the settings of the model, or name one")
    if data is None:
        _check_paths(config)
    import torch

    from fpg_zoo.distributed import device_of_process, process_group
    from fpg_zoo.training.callbacks import EarlyStopping
    from fpg_zoo.training.trainer import train as train_loop

    run = Path(os.path.expanduser(config.output))
    device = device_of_process(config.device) if model is None else model.device
    with process_group(device) as processes:

        def tell(text: str) -> None:
            if processes.is_main:
                say(text)

        source = _own_source(data, val) if data is not None else _source(config, detector)
        for note in source.notes(detector.has_masks):
            tell(note)
        torch.manual_seed(config.seed)  # of layers that begin at random: the same in every process
        if model is None:
            model = _model(config.model, source.train.class_names).to(device)
            if config.model.pretrained_backbone:
                tell(f"backbone: {detector.backbone.label}, trained on ImageNet")
        config = processes.on_main(lambda: _with_batch_size(config, model, len(source.train)))
        evaluation = _Evaluation(source.held_out, config, processes) if source.held_out else None
        kept = list(callbacks)
        if evaluation is not None and config.logging.loggers:
            kept.append(_shown(evaluation, config))
        if config.evaluation.patience is not None:
            kept.append(EarlyStopping(config.evaluation.metric, config.evaluation.patience))
        metrics = train_loop(
            model,
            source.train,
            run,
            _train_settings(config, model.config),
            processes=processes,
            workers=_workers_of(config.data.workers),
            save_every=config.training.save_every,
            evaluate=evaluation,
            evaluate_every=config.evaluation.every,
            resume=resume,
            data=source.digest,
            transform=augment,
            callbacks=kept,
            loggers=config.logging.loggers,
            log_every=config.logging.every,
            config=as_tables(config),
        )
        processes.on_main(lambda: _write_report(run, config, model.name, evaluation))
        return dict(metrics) if processes.is_main else None


def _check_paths(config: RunConfig) -> None:
    """Whether there is something where the data are said to be.

    Raises:
        ConfigError: there is nothing.
    """
    for name in ("path", "annotations", "images"):
        path = getattr(config.data, name)
        if path in (None, SHAPES_NAME) or path.startswith(HUB_PREFIX) or os.path.exists(os.path.expanduser(path)):
            continue
        raise ConfigError(f"data.{name}={quoted(path)}: nothing is there; name what is (--data DIR, --annotations F)")


@dataclass(frozen=True)
class _Source:
    """What to train on, what to evaluate on if there is any, and a digest of the annotations trained on."""

    train: Dataset
    held_out: HeldOut | None
    digest: str

    def notes(self, masks: bool) -> Iterator[str]:
        """What there is, for people."""
        from fpg_zoo.data.coco import CocoDataset
        from fpg_zoo.evaluation.coco_metrics import no_mask_note

        if isinstance(self.train, CocoDataset):
            yield self.train.summary()
        if self.held_out is not None:
            iou_types: tuple[IouType, ...] = ("bbox", "segm") if masks else ("bbox",)
            notes = self.held_out.summary, no_mask_note(iou_types, self.held_out.annotations)
            yield from (note for note in notes if note is not None)


def _source(config: RunConfig, detector: DetectorConfig) -> _Source:
    from fpg_zoo.data.coco import CocoDataset
    from fpg_zoo.data.open_split import open_train, open_val

    settings = config.data
    path, annotations, images = (
        None if name is None else Path(os.path.expanduser(name))
        for name in (settings.path, settings.annotations, settings.images)
    )
    pasted = config.augment(detector).copy_paste > 0  # which takes masks, whatever is trained on them
    common: dict[str, Any] = {
        "annotations": annotations,
        "images": images,
        "allow_losses": settings.allow_losses,
        "val_fraction": settings.val_fraction,
        "seed": config.seed,
    }
    train = open_train(
        path,
        split=settings.train_split,
        masks=detector.has_masks or pasted,
        keep_background=settings.keep_background,
        **common,
    )
    if settings.val_fraction is None:
        common["annotations"] = common["images"] = None  # which are of what is trained on
    held_out = None
    if path is not None or settings.val_fraction is not None:
        held_out = open_val(
            path,
            train,
            split=settings.val_split,
            train_split=settings.train_split,
            masks=detector.has_masks,
            **common,
        )
    digest = train.digest if isinstance(train, CocoDataset) else held_out.digest if held_out else ""
    return _Source(train, held_out, digest)


def _own_source(data: Dataset, val: Dataset | None) -> _Source:
    from fpg_zoo.data.ground_truth import ground_truth
    from fpg_zoo.data.open_split import HeldOut

    if val is None:
        return _Source(data, None, "")
    ids = tuple(range(1, len(val.class_names) + 1))
    return _Source(data, HeldOut(val, ground_truth(val, ids, source="val_data"), ids, "", None, "val", None), "")


def _model(settings: ModelSettings, class_names: tuple[str, ...]) -> Detector:
    from fpg_zoo.modeling.build import build_on_cpu
    from fpg_zoo.models.factory import create_model

    sources = ("backbone", "config", "pretrained", "checkpoint", "pretrained_backbone", "backbone_checkpoint")
    try:
        model = create_model(
            settings.name, class_names=class_names, **{name: getattr(settings, name) for name in sources}
        )
    except DownloadError as error:
        if settings.pretrained_backbone:
            raise DownloadError(f"{error}. --no-pretrained-backbone --recipe scratch begins at random") from None
        raise
    changed = with_settings(model.config, settings)
    if changed == model.config:
        return model
    other = build_on_cpu(changed, model.name)
    other.load_state_dict(model.state_dict())
    return other


def _with_batch_size(config: RunConfig, model: Detector, images: int) -> RunConfig:
    """The config with a batch size that fits, where that is to be found."""
    from fpg_zoo.training.batch_size import find_batch_size
    from fpg_zoo.training.trainer import AMP

    if config.training.batch_size != "auto":
        return config
    amp = AMP[config.training.amp] if config.training.amp else None
    most = min(config.schedule.base_batch_size, images)
    found = find_batch_size(lambda: copy.deepcopy(model), config.as_recipe(), amp, most)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=found))


def _train_settings(config: RunConfig, detector: DetectorConfig) -> TrainSettings:
    from fpg_zoo.training.trainer import TrainSettings

    recipe, training = config.as_recipe(), config.training
    augment = config.augment(detector)
    assert training.batch_size != "auto"
    return TrainSettings(
        recipe=recipe,
        batch_size=training.batch_size,
        accumulate=training.accumulate,
        seed=config.seed,
        amp=training.amp,
        checkpoint_activations=training.checkpoint_activations,
        average=training.ema,
        sync_norms=training.sync_norms,
        compile=training.compile,
        augment=None if augment == recipe.augment(detector) else augment,
        metric=config.evaluation.metric,
    )


def _workers_of(wanted: int | Literal["auto"]) -> int:
    from fpg_zoo.data.workers import usable_workers

    return usable_workers() if wanted == "auto" else wanted


class _Evaluation:
    """COCO's metrics of the images that are held out, by all processes together; the main one has them.

    Attributes:
        rows, scores: of the last evaluation, in the main process.
    """

    def __init__(self, held_out: HeldOut, config: RunConfig, processes: Processes) -> None:
        assert config.training.batch_size != "auto"
        self.held_out = held_out
        self.rows: list[dict[str, Any]] = []
        self.scores: dict[IouType, Scores] = {}
        self._batch_size = config.training.batch_size
        self._workers = _workers_of(config.data.workers)
        self._processes = processes

    def __call__(self, model: Detector) -> dict[str, float | None]:
        from fpg_zoo.evaluation.coco_metrics import metrics_by_name, scores_by_type
        from fpg_zoo.evaluation.detect import detect_all, iou_types_of

        self.rows = detect_all(
            model,
            self.held_out.dataset,
            self.held_out.category_ids,
            batch_size=self._batch_size,
            workers=self._workers,
            processes=self._processes,
        )
        if not self._processes.is_main:
            return {}
        self.scores = scores_by_type(iou_types_of(model), self.held_out.annotations, self.rows)
        return metrics_by_name(self.scores)


def _shown(evaluation: _Evaluation, config: RunConfig) -> Callback:
    """Shows each evaluation in the loggers that show images or curves."""
    from fpg_zoo.evaluation.report.curves import overall_curves
    from fpg_zoo.inference.drawn_detections import drawn_detections
    from fpg_zoo.training.callbacks import Callback

    class Shown(Callback):
        def on_evaluate_end(self, state: TrainState, metrics: Metrics) -> None:
            logger = state.logger
            if logger.takes_curves and evaluation.scores:
                logger.log_curves(state.step, overall_curves(evaluation.scores))
            if logger.takes_images:
                dataset = evaluation.held_out.dataset
                shown = min(config.logging.images, len(dataset))
                # Spread over the data set, the same ones each time.
                indices = [place * len(dataset) // shown for place in range(shown)]
                logger.log_images(state.step, drawn_detections(state.evaluated, dataset, indices))

    return Shown()


def _write_report(run: Path, config: RunConfig, name: str, evaluation: _Evaluation | None) -> None:
    """The page of a run: its curves, and its last evaluation below."""
    from fpg_zoo.evaluation.report.analysis import gather
    from fpg_zoo.evaluation.report.training_report import write_training_report
    from fpg_zoo.evaluation.report.writing import info_of_training, pixels_of

    data = None
    if evaluation is not None and evaluation.scores:
        held_out = evaluation.held_out
        info = info_of_training(run, name, data=config.data.path or config.data.annotations or "", split=held_out.split)
        ids = [image["id"] for image in held_out.annotations["images"]]
        pixels = pixels_of(held_out.dataset, held_out.folder)
        data = gather(info, held_out.annotations, evaluation.rows, evaluation.scores, ids, pixels)
    write_training_report(run, evaluation=data)
