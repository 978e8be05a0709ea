"""How a detector is trained, as data: schedule, augmentation, sampling. Frozen dataclasses without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fpg_zoo.config.validation import (
    AboveZero,
    AtLeastZero,
    Count,
    Fraction,
    WholeNumber,
    check_fields,
    is_number,
)
from fpg_zoo.errors import ConfigError, UnknownNameError
from fpg_zoo.text import quoted


def check_lr(**values: object) -> None:
    """Refuse what is no finite number above 0."""
    for name, value in values.items():
        if not is_number(value) or value <= 0:
            raise ConfigError(f"{name}={quoted(value)}: it takes a number above 0")


def check_share(**values: object) -> None:
    """Refuse what is no number above 0 and up to 1."""
    for name, value in values.items():
        if not is_number(value) or not 0 < value <= 1:
            raise ConfigError(f"{name}={quoted(value)}: it takes a number above 0 and up to 1")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """An optimizer, and its learning rate: a linear warm-up, then steps down or half a cosine.

    Attributes:
        epochs: how long to train.
        optimizer: `sgd`, stochastic gradient descent with momentum, or `adamw` (Loshchilov and Hutter,
            arXiv 1711.05101).
        decay: `steps`, a tenth of the rate after each of `milestones`, or `cosine`, from all of it to nothing at the
            end (arXiv 1608.03983).
        milestones: the epochs, whole or not, after which the rate is a tenth of what it was.
        lr: for batches of `base_batch_size` images. That of `sgd` scales in proportion to the batch (Goyal
            et al., arXiv 1706.02677), that of `adamw` with its square root (Malladi et al., arXiv 2205.10287).
        base_batch_size: images.
        warmup_iterations: steps over which the rate grows evenly from `warmup_factor` of it to all of it.
        warmup_factor: 0..1.
        momentum: of the gradients, for `sgd`.
        weight_decay: of all parameters but those of norms.
        max_grad_norm: the norm that gradients are scaled down to if they exceed it; None for no limit.
        layer_decay: the rate of each stage of the backbone is this share of the next one's, 0..1; neck and heads have
            all of it (Clark et al., arXiv 2003.10555). 1 for one rate.
    """

    epochs: Count
    optimizer: Literal["sgd", "adamw"] = "sgd"
    decay: Literal["steps", "cosine"] = "steps"
    milestones: tuple[AtLeastZero, ...] = ()
    lr: Annotated[float, check_lr]
    base_batch_size: Count = 64
    warmup_iterations: WholeNumber = 1000
    warmup_factor: Annotated[float, check_share] = 0.1
    momentum: Fraction = 0.9
    weight_decay: AtLeastZero = 1e-4
    max_grad_norm: AboveZero | None = None
    layer_decay: Annotated[float, check_share] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def lr_at(self, epoch: float, step: int, batch: int) -> float:
        """The learning rate.

        Args:
            epoch: epochs done, 0 in the beginning.
            step: the steps of the optimizer taken before, over all epochs.
            batch: images of a step, over all processes and accumulated parts.
        """
        growth = batch / self.base_batch_size
        lr = self.lr * (growth if self.optimizer == "sgd" else math.sqrt(growth))
        if self.decay == "cosine":
            lr *= (1 + math.cos(math.pi * min(epoch / self.epochs, 1.0))) / 2
        lr *= 0.1 ** sum(epoch >= down for down in self.milestones)
        if step < self.warmup_iterations:
            lr *= self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_iterations
        return lr


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied.

    Attributes:
        longest_side: pixels that the longest side is scaled to, before the random factor.
        factors: least and greatest random factor on it.
        crop: side in pixels of the square that is cut out at random; smaller images stay whole in that direction.
        flip: probability of mirroring left to right, 0..1.
        keep_empty_crops: a crop without an object is trained on. RetinaNet's recipe has False: another view is taken.
        iou_crop: a part of the image is cut out before it is scaled, as SSD was trained (arXiv 1512.02325):
            torchvision's `RandomIoUCrop`. Of the objects, those stay whose center is in it. Not in mosaics.
        mosaic: probability that four images are put together, one in each corner (arXiv 2004.10934), 0..1.
        copy_paste: probability that objects of another image are pasted onto this one (arXiv 2012.07177), 0..1. It
            takes masks.
        rotate90: probability of a turn by 90, 180 or 270 degrees, each as likely, 0..1.
        photometric: brightness, contrast, saturation, hue and the order of the channels vary: torchvision's
            `RandomPhotometricDistort`.
    """

    longest_side: Count = 640
    factors: tuple[AboveZero, AboveZero] = (0.8, 1.2)
    crop: Count = 640
    flip: Fraction = 0.5
    keep_empty_crops: bool = True
    iou_crop: bool = False
    mosaic: Fraction = 0.0
    copy_paste: Fraction = 0.0
    rotate90: Fraction = 0.0
    photometric: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.factors[0] > self.factors[1]:
            raise ConfigError(f"factors={self.factors}: give the least first")


@dataclass(frozen=True, kw_only=True)
class AugmentPreset:
    """What a preset changes in a recipe's augmentation.

    Attributes:
        about: what it is for, in a line.
        changes: fields of `AugmentConfig` and their values.
    """

    about: str
    changes: Mapping[str, Any]


PRESETS = {
    "recipe": AugmentPreset(about="the recipe's own: a random scale, a crop, a flip", changes={}),
    "light": AugmentPreset(about="and colors that vary", changes={"photometric": True}),
    "strong": AugmentPreset(
        about="colors, parts of the image, mosaics of four: for small data sets and long schedules",
        changes={"photometric": True, "iou_crop": True, "mosaic": 0.5},
    ),
    "lsj": AugmentPreset(
        about="large-scale jitter, 0.1 to 2 times the size: for long schedules", changes={"factors": (0.1, 2.0)}
    ),
    "copy_paste": AugmentPreset(
        about="large-scale jitter, and objects of other images pasted in; it takes masks",
        changes={"factors": (0.1, 2.0), "copy_paste": 0.5},
    ),
    "rotations": AugmentPreset(
        about="turns by 90 degrees: for images without an up, as of microscopes and from the air",
        changes={"rotate90": 0.75},  # each of the four ways is as likely
    ),
}


def preset_named(name: str, augment: AugmentConfig) -> AugmentConfig:
    """An augmentation with a preset's changes.

    Args:
        name: a key of `PRESETS`.
        augment: what is changed, as of a recipe.

    Raises:
        UnknownNameError: no such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError(f"no augmentation {quoted(name)}: known are {', '.join(PRESETS)}")
    return dataclasses.replace(augment, **PRESETS[name].changes)


@dataclass(frozen=True, kw_only=True)
class RoISampling:
    """How many RoIs a two-stage detector trains on; RetinaNet, which trains on every anchor, has no use for it.

    Attributes:
        candidates_per_level: the RPN's best boxes of each level, from which the proposals are made.
        rois: sampled of an image's proposals and ground truth for the box head, a quarter positive at most; the
            mask head trains on the positive ones.
    """

    candidates_per_level: Count = 2000
    rois: Count = 512

    def __post_init__(self) -> None:
        check_fields(self)
