"""All that decides a training run, in one file: model, data, recipe, schedule, augmentation, evaluation, logging.

A run begins with a recipe. A file and the command line change fields of it, each by its name: `schedule.lr`. What comes
out is written into the run's folder and starts the same run again.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import tomli_w

from fpg_zoo.config import DetectorConfig
from fpg_zoo.config.serialization import read_value
from fpg_zoo.config.training import PRESETS, AugmentConfig, RoISampling, Schedule, preset_named
from fpg_zoo.config.validation import Count, Fraction, WholeNumber, check_fields
from fpg_zoo.errors import ConfigError, UnknownNameError
from fpg_zoo.files import atomic_write
from fpg_zoo.models.config_file import read_table
from fpg_zoo.text import printable, quoted
from fpg_zoo.training.loggers.names import check_loggers
from fpg_zoo.training.recipes import Recipe, recipe_named
from fpg_zoo.weights.manifest import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RUN_FILE = "run.toml"
_NONE = "none"  # in files, which have no word for it


class _Checked:
    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(_Checked):
    """Which detector, and what it begins with.

    Attributes:
        name: as `create_model` takes it.
        config: a file of a detector of one's own, as `create_model(config=)` takes it.
        backbone, pretrained, checkpoint, backbone_checkpoint: as of `create_model`.
        pretrained_backbone: begin with ImageNet's weights. None: where no detector's weights are given, and there are
            known ones of the backbone.
        image_size: pixels of the longest side that images are scaled to, in place of the model's own.
        max_detections: at most so many of an image, in place of the model's own.
    """

    name: str | None = None
    config: str | None = None
    backbone: str | None = None
    pretrained: bool = False
    checkpoint: str | None = None
    pretrained_backbone: bool | None = None
    backbone_checkpoint: str | None = None
    image_size: Count | None = None
    max_detections: Count | None = None


@dataclass(frozen=True, kw_only=True)
class DataSettings(_Checked):
    """What is trained and evaluated on.

    Attributes:
        path: of the data; None where `annotations` are given.
        annotations, images: an annotation file and its images' folder, given apart, as of `open_train`.
        train_split: the split to train on; None for `train`, or for all images where there are no splits.
        val_split: the split to evaluate on; None for the usual one, if it is there.
        val_fraction: the share of the images that are evaluated on where there is no split to; None for none.
        keep_background: train on images without objects, too.
        allow_losses: go on where more than one annotation in ten cannot be used.
        workers: processes that read images, or `auto`.
    """

    path: str | None = None
    annotations: str | None = None
    images: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    val_fraction: Fraction | None = None
    keep_background: bool = False
    allow_losses: bool = False
    workers: WholeNumber | Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class StepSettings(_Checked):
    """What a step is.

    Attributes:
        batch_size: images in one pass of one process; `auto` for as many as the memory takes.
        accumulate: passes whose gradients make a step.
        amp: the precision that autocast computes in, with gradients scaled for `fp16`; None for float32.
        frozen_stages: backbone stages that are not trained, with the stem; 0 trains everything.
        pad_to_crop: as of `Recipe`.
        checkpoint_activations, ema, sync_norms, compile: as of `TrainSettings`.
        save_every: steps from one state to the next.
    """

    batch_size: Count | Literal["auto"] = 8
    accumulate: Count = 1
    amp: Literal["bf16", "fp16"] | None = None
    frozen_stages: WholeNumber = 0
    pad_to_crop: bool = False
    checkpoint_activations: bool = False
    ema: bool = False
    sync_norms: bool = False
    compile: bool = False
    save_every: Count = 500


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(_Checked):
    """How a run is judged as it goes.

    Attributes:
        every: epochs from one evaluation to the next; the last epoch is always evaluated.
        metric: that tells the best model, and when to stop, as `box_AP50`; None for the first, `box_AP`.
        patience: evaluations without a better one, after which training stops; None never stops it.
    """

    every: Count = 1
    metric: str | None = None
    patience: Count | None = None


@dataclass(frozen=True, kw_only=True)
class LoggingSettings(_Checked):
    """What a run shows as it goes.

    Attributes:
        every: steps from one line to the next, where standard error is no terminal.
        loggers: names of `fpg_zoo.training.loggers.names.LOGGERS`.
        images: so many of the images that are evaluated on are shown with what is detected in them.
    """

    every: Count = 50
    loggers: tuple[str, ...] = ()
    images: WholeNumber = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loggers(self.loggers)


_TABLES: dict[str, type] = {
    "model": ModelSettings,
    "data": DataSettings,
    "schedule": Schedule,
    "sampling": RoISampling,
    "augmentation": AugmentConfig,
    "training": StepSettings,
    "evaluation": EvaluationSettings,
    "logging": LoggingSettings,
}
# What the command and `fpg_zoo.train` call the usual fields.
OPTIONS = {
    "model": "model.name",
    "backbone": "model.backbone",
    "pretrained": "model.pretrained",
    "checkpoint": "model.checkpoint",
    "pretrained_backbone": "model.pretrained_backbone",
    "backbone_checkpoint": "model.backbone_checkpoint",
    "image_size": "model.image_size",
    "max_detections": "model.max_detections",
    "data": "data.path",
    "train_split": "data.train_split",
    "val_split": "data.val_split",
    "annotations": "data.annotations",
    "images": "data.images",
    "val_fraction": "data.val_fraction",
    "keep_background": "data.keep_background",
    "allow_losses": "data.allow_losses",
    "workers": "data.workers",
    "output": "output",
    "recipe": "recipe",
    "seed": "seed",
    "device": "device",
    "epochs": "schedule.epochs",
    "lr": "schedule.lr",
    "weight_decay": "schedule.weight_decay",
    "warmup": "schedule.warmup_iterations",
    "layer_decay": "schedule.layer_decay",
    "freeze": "training.frozen_stages",
    "batch_size": "training.batch_size",
    "accumulate": "training.accumulate",
    "amp": "training.amp",
    "checkpoint_activations": "training.checkpoint_activations",
    "ema": "training.ema",
    "sync_norms": "training.sync_norms",
    "compile": "training.compile",
    "save_every": "training.save_every",
    "evaluate_every": "evaluation.every",
    "metric": "evaluation.metric",
    "patience": "evaluation.patience",
    "log_every": "logging.every",
    "logger": "logging.loggers",
    "augment": "augmentation.preset",
}
_TOP: dict[str, Any] = {"recipe": str, "output": str, "seed": int, "device": str | None}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run.

    Attributes:
        recipe: that it began with; its fields are in the parts below.
        output: the run's folder.
        seed: of everything random.
        device: to train on; None for `cuda` if there is one, else `cpu`.
        model, data, schedule, sampling, training, evaluation, logging: the parts.
        augmentation: fields of `AugmentConfig` that are not the recipe's, and a `preset` of `PRESETS`.
    """

    recipe: str = "finetune"
    output: str
    seed: WholeNumber = 0
    device: str | None = None
    model: ModelSettings
    data: DataSettings
    schedule: Schedule
    sampling: RoISampling
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    training: StepSettings
    evaluation: EvaluationSettings
    logging: LoggingSettings

    def __post_init__(self) -> None:
        check_fields(self)

    def as_recipe(self) -> Recipe:
        """The recipe with what is changed of it."""
        return dataclasses.replace(
            recipe_named(self.recipe),
            schedule=self.schedule,
            sampling=self.sampling,
            frozen_stages=self.training.frozen_stages,
            pad_to_crop=self.training.pad_to_crop,
        )

    def augment(self, detector: DetectorConfig) -> AugmentConfig:
        """The augmentation for a model.

        Raises:
            ConfigError: fields that do not go together.
        """
        changes = dict(self.augmentation)
        try:
            augment = preset_named(changes.pop("preset", "recipe"), self.as_recipe().augment(detector))
            return dataclasses.replace(augment, **changes)
        except ConfigError as error:
            raise ConfigError(f"augmentation: {error}") from None


class Given(NamedTuple):
    """A value of a field, and where it is from, for errors."""

    value: Any
    origin: str


def read_run_file(path: Path) -> dict[str, Given]:
    """The fields that a file gives, by their dotted names; of a detector's file, that it is the model.

    Raises:
        ConfigError: the file cannot be read, or has something in place of a table.
    """
    content = read_table(path)
    if {"base", "type", "architecture"} & content.keys():
        return {"model.config": Given(str(path), "")}
    given: dict[str, Given] = {}
    for name, value in content.items():
        if name in _TABLES:
            if not isinstance(value, dict):
                raise ConfigError(f"{printable(path)}: {name}={quoted(value)}: it takes a table, [{name}]")
            given |= {f"{name}.{key}": Given(one, f"{printable(path)}: ") for key, one in value.items()}
        else:
            given[name] = Given(value, f"{printable(path)}: ")
    return given


def read_assignment(text: str) -> tuple[str, Given]:
    """A field and its value, of `schedule.lr=0.01`; a value is written as in TOML, a text also without quotes.

    Raises:
        ConfigError: there is no `=` in it, or no such field.
    """
    key, equals, raw = text.partition("=")
    origin = f"--set {quoted(text)}: "
    if not equals:
        raise ConfigError(f"--set {quoted(text)}: give KEY=VALUE, as in --set schedule.lr=0.01")
    key = key.strip()
    expected = _expected(key, origin)
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except ValueError:
        value = raw
    if not isinstance(value, str) and str in (*get_args(expected), expected):
        value = raw
    return key, Given(value, origin)


def build_run_config(given: Mapping[str, Given]) -> RunConfig:
    """A run of fields by their dotted names; what is left out is the recipe's, or has its default.

    Args:
        given: `schedule.lr`, `seed`, ... with values as of `json.loads` and of `tomllib`.

    Raises:
        ConfigError: no such field, or a value that it does not take; the message names file or option, field and value.
        UnknownNameError: no such recipe.
    """
    values = {key: _read(key, one) for key, one in given.items()}
    name = values.get("recipe", "finetune")
    try:
        recipe = recipe_named(name, epochs=None if "schedule.milestones" in values else values.get("schedule.epochs"))
    except (ConfigError, ValueError) as error:
        at = given.get("recipe") if "no recipe" in str(error) else given["schedule.epochs"]
        raise ConfigError(f"{at.origin if at else ''}{error}") from None
    bases: dict[str, Any] = {
        "schedule": recipe.schedule,
        "sampling": recipe.sampling,
        "training": StepSettings(frozen_stages=recipe.frozen_stages, pad_to_crop=recipe.pad_to_crop),
    }
    if "output" not in values:
        raise ConfigError("output is missing: give --output RUN, or output in the run's file")
    if values.get("data.path") is None and values.get("data.annotations") is None:
        raise ConfigError("data.path is missing: give --data DIR, or data.path in the run's file")
    parts = {
        table: _part(cls, bases.get(table), _of_table(values, table), _of_table(given, table))
        for table, cls in _TABLES.items()
        if table != "augmentation"
    }
    top = {key: values[key] for key in _TOP if key in values}
    try:
        return RunConfig(**top, **parts, augmentation=_of_table(values, "augmentation"))
    except ConfigError as error:
        raise ConfigError(f"{given['seed'].origin}{error}") from None  # the one field that is checked there


def _of_table(values: Mapping[str, Any], table: str) -> dict[str, Any]:
    return {key.removeprefix(f"{table}."): value for key, value in values.items() if key.startswith(f"{table}.")}


def _part(cls: type, base: Any, values: dict[str, Any], given: Mapping[str, Given]) -> Any:
    try:
        return cls(**values) if base is None else dataclasses.replace(base, **values)
    except (ConfigError, UnknownNameError) as error:
        # A check names its field first.
        field_name = str(error).partition("=")[0].partition("[")[0]
        table = next(name for name, known in _TABLES.items() if known is cls)
        place = f"{table}." if field_name in _hints(cls) else ""
        origin = given[field_name].origin if field_name in given else ""
        raise ConfigError(f"{origin}{place}{error}") from None


def _read(key: str, given: Given) -> Any:
    expected = _expected(key, given.origin)
    if given.value == _NONE and NoneType in get_args(expected):
        return None
    try:
        return read_value(_plain(given.value), expected, key)
    except ConfigError as error:
        raise ConfigError(f"{given.origin}{error}") from None


def _plain(value: Any) -> Any:
    """Paths and tuples as a file has them."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


def _expected(key: str, origin: str) -> Any:
    """The annotation of a field.

    Raises:
        ConfigError: no such field.
    """
    fields = known_fields()
    if key not in fields:
        same = [name for name in fields if name.rpartition(".")[2] == key.rpartition(".")[2]]
        remedy = f"did you mean {', '.join(same)}?" if same else nearest(key, list(fields))
        raise ConfigError(f"{origin}no field {quoted(key)}: {remedy}")
    return fields[key]


@functools.cache
def known_fields() -> dict[str, Any]:
    """The annotation of each field, by its dotted name."""
    return {
        **_TOP,
        "augmentation.preset": Literal[tuple(PRESETS)],
        **_of_tables(),
    }


def _of_tables() -> dict[str, Any]:
    return {f"{table}.{name}": annotation for table, cls in _TABLES.items() for name, annotation in _hints(cls).items()}


def _hints(cls: type) -> dict[str, Any]:
    return {one.name: get_type_hints(cls)[one.name] for one in dataclasses.fields(cls)}


def as_tables(config: RunConfig) -> dict[str, Any]:
    """The run's fields by table, as a file has them. What the augmentation takes from the model is left to that."""
    recipe = recipe_named(config.recipe)
    bases = {"schedule": recipe.schedule, "sampling": recipe.sampling}
    content: dict[str, Any] = {key: getattr(config, key) for key in _TOP if getattr(config, key) is not None}
    for table in _TABLES:
        if table == "augmentation":
            preset = config.augmentation.get("preset", "recipe")
            fields = {"preset": preset, "factors": recipe.factors, "flip": recipe.flip}
            fields |= {**PRESETS[preset].changes, **config.augmentation}
            content[table] = {name: _plain(value) for name, value in fields.items()}
        else:
            content[table] = dict(_written(getattr(config, table), bases.get(table)))
    return content


def to_toml(config: RunConfig) -> str:
    """The run as a file that starts it again."""
    return tomli_w.dumps(as_tables(config))


def _written(part: Any, base: Any) -> Iterable[tuple[str, Any]]:
    for one in dataclasses.fields(part):
        value = getattr(part, one.name)
        default = one.default if base is None else getattr(base, one.name)
        if value is not None:
            yield one.name, _plain(value)
        elif default is not None:
            yield one.name, _NONE


def write_run_file(tables: Mapping[str, Any], run: Path) -> None:
    """Write `run.toml` into a run's folder, of fields by table.

    Raises:
        StorageError: it cannot be written.
    """
    with atomic_write(run / RUN_FILE) as temporary:
        temporary.write_text(tomli_w.dumps(tables), encoding="utf-8")
