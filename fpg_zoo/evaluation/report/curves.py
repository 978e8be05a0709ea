"""pycocotools' precisions as the page's curves: at IoU 0.50, at 0.75, and the mean of all ten IoUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fpg_zoo.evaluation.coco_metrics import IOU_TYPES, IouType, Scores

NAMES = ("IoU 0.50", "IoU 0.75", "mean of IoU 0.50 to 0.95")
_PLACES = {"IoU 0.50": 0, "IoU 0.75": 5}  # of the ten IoUs
PARTS = 10_000  # that precisions are embedded in, as whole numbers


def curves_of(precisions: np.ndarray) -> np.ndarray:
    """(3, 101, C) 0..1 from `Scores.precisions`, in the order of `NAMES`; NaN where there is no ground truth."""
    return np.stack([precisions[_PLACES[name]] if name in _PLACES else precisions.mean(axis=0) for name in NAMES])


def overall(curves: np.ndarray) -> np.ndarray:
    """(3, 101): the mean of the classes that have ground truth; its mean is AP. NaN if there are none."""
    known = curves[:, :, ~np.isnan(curves[0, 0])]
    mean: np.ndarray = known.mean(axis=2) if known.shape[2] else np.full(known.shape[:2], np.nan)
    return mean


def aps(curve: np.ndarray) -> list[float]:
    """AP of each of (3, 101); NaN where there is no ground truth."""
    aps_of_classes: list[float] = curve.mean(axis=1).tolist()
    return aps_of_classes


def overall_curves(scores: Mapping[IouType, Scores]) -> dict[str, np.ndarray]:
    """Precision over recall of all classes together, as the loggers of a run take it.

    Args:
        scores: by kind.

    Returns:
        `box_AP50`, `box_AP75` and `box_AP`, and the same of masks, each (101,) float64 0..1 at recall 0, 0.01, ..., 1.
        Those without ground truth are left out.
    """
    named = {
        f"{IOU_TYPES[kind]}_{metric}": curve
        for kind, one in scores.items()
        for metric, curve in zip(("AP50", "AP75", "AP"), overall(curves_of(one.precisions)), strict=True)
    }
    return {name: curve for name, curve in named.items() if not np.isnan(curve).any()}


def embedded_curves(scores: Scores) -> list[Any]:
    """What page.js draws: of all classes, then of each, AP and precisions of the three curves; null without truth."""
    curves = curves_of(scores.precisions)
    drawn = [overall(curves), *np.moveaxis(curves, 2, 0)]
    return [
        None
        if np.isnan(curve).any()
        else {
            "ap": [f"{value:.3f}" for value in aps(curve)],
            "precision": (curve * PARTS).round().astype(int).tolist(),
        }
        for curve in drawn
    ]
