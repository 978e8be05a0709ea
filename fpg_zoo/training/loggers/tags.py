"""Metrics in groups, as dashboards show them."""

from __future__ import annotations

from collections.abc import Mapping

from fpg_zoo.run_log import is_evaluation

IMAGES, CURVES = "images", "pr"  # groups of pictures and of curves
_GROUPS = {"images_per_second": "time", "data_wait": "time", "memory_gb": "system"}


def tagged(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of one row under `train/`, `val/`, `time/` or `system/`."""
    group = "val" if is_evaluation(metrics) else "train"
    return {f"{_GROUPS.get(name, group)}/{name}": value for name, value in metrics.items()}
