"""Training recipes as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from fpg_zoo.config import DetectorConfig
from fpg_zoo.config.training import AugmentConfig, RoISampling, Schedule
from fpg_zoo.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        schedule: the optimizer's.
        factors: least and greatest random factor on the longest side that the model takes; crops have that side.
        flip: probability of mirroring left to right, 0..1.
        pad_to_crop: an image has anchors in all of its padding up to the crop, as the published models were trained
            (mmdetection 2.x). Else up to the least multiples of the model's divisor, as in mmdetection 3.3.0.
        frozen_stages: backbone stages that are not trained, with the stem; 0 trains everything.
        sampling: of the RoIs that a two-stage detector trains on.
        about: what it is for, in a line.
    """

    schedule: Schedule
    factors: tuple[float, float] = (0.8, 1.2)
    flip: float = 0.5
    pad_to_crop: bool = False
    frozen_stages: int
    sampling: RoISampling = field(default_factory=RoISampling)
    about: str

    def augment(self, config: DetectorConfig) -> AugmentConfig:
        """The augmentation for a model. RetinaNet's crops hold an object, as its published schedule has it."""
        side = config.preprocess.longest_side
        return AugmentConfig(
            longest_side=side,
            crop=side,
            factors=self.factors,
            flip=self.flip,
            keep_empty_crops=config.keep_empty_crops,
        )


RECIPES = {
    "crop640_50e": Recipe(
        schedule=Schedule(epochs=50, milestones=(30, 40), lr=0.08),
        pad_to_crop=True,
        frozen_stages=1,
        about="the published one: 50 epochs from a backbone trained on ImageNet, batches of 64",
    ),
    "finetune": Recipe(
        schedule=Schedule(epochs=12, milestones=(8, 11), lr=0.04, warmup_iterations=100, max_grad_norm=35.0),
        frozen_stages=1,
        about="12 epochs from a trained detector, on data of your own",
    ),
    "scratch": Recipe(
        schedule=Schedule(
            epochs=12,
            optimizer="adamw",
            decay="cosine",
            lr=1e-3,
            base_batch_size=8,
            warmup_iterations=200,
            weight_decay=0.05,
            max_grad_norm=5.0,
        ),
        frozen_stages=0,
        # An image of the size these models take has few objects, and pooling RoIs is most of their step.
        sampling=RoISampling(candidates_per_level=500, rois=64),
        about="12 epochs from nothing, for the nano models",
    ),
}


def recipe_named(name: str, *, epochs: int | None = None) -> Recipe:
    """A recipe by its name.

    Args:
        name: a key of `RECIPES`.
        epochs: instead of its own; the steps down move in proportion.

    Raises:
        UnknownNameError: no such recipe.
        ConfigError: fewer than one epoch.
    """
    if name not in RECIPES:
        raise UnknownNameError(f"no recipe {name!r}: known are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if epochs is None:
        return recipe
    schedule = recipe.schedule
    down = tuple(step * epochs / schedule.epochs for step in schedule.milestones)
    return dataclasses.replace(recipe, schedule=dataclasses.replace(schedule, epochs=epochs, milestones=down))
