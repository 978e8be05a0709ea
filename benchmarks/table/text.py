"""The table of published and measured metrics, as rows, and of these as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from accuracy import TOLERANCE, agrees
from harness.measure import Row

import fpg_zoo
from fpg_zoo.weights.manifest import Published

MET, MISSED = "met", "missed"
# The metrics of a row of the table: column, unit, where they are published.
FIGURES: dict[str, tuple[str, str, str | None]] = {
    "box AP": ("ap", "percent", "box_ap"),
    "mask AP": ("ap", "percent", "mask_ap"),
    "training memory": ("memory", "GB", "memory_gb"),
    "inference memory": ("memory", "MB", None),
    "fps": ("fps", "images/s", "fps"),
    "fps optimized": ("fps", "images/s", None),
    "fps optimized_bf16": ("fps", "images/s", None),
}
UNITS = dict.fromkeys(("published", "measured", "difference", "tolerance"), "as unit says")
# Published of another device and size; what is measured here is another quantity.
_INCOMPARABLE = ("fps",)
_ONLY_WHERE_KNOWN = ("mask AP", "training memory")  # other rows are there, blank, if nothing is known


def rows_of(
    entry: Published,
    metrics: Mapping[str, float],
    weights: Mapping[str, str],
    notes: Mapping[str, str],
    *,
    compare_ap: bool,
) -> list[Row]:
    """What the table says of a checkpoint, a row for each metric.

    Args:
        entry: with the published metrics.
        metrics: the measured ones by the names of `FIGURES`; what is not there was not measured.
        weights: by column, what was measured with.
        notes: by column, what a reader should know.
        compare_ap: AP is of all images, so that it can be compared with what was published.
    """
    info = fpg_zoo.model_info(entry.architecture)
    rows: list[Row] = []
    for figure, (column, unit, field) in FIGURES.items():
        published: float | None = None if field is None else getattr(entry, field)
        measured = metrics.get(figure)
        if published is None and measured is None and figure in _ONLY_WHERE_KNOWN:
            continue
        difference, verdict = None, None
        comparable = figure not in _INCOMPARABLE and (compare_ap or column != "ap")
        if comparable and published is not None and measured is not None:
            difference = round(measured - published, 3)
            if column == "ap":
                verdict = MET if agrees(measured, published) else MISSED
        rows.append(
            {
                "model": entry.name,
                "method": info.method,
                "neck": info.neck,
                "figure": figure,
                "unit": unit,
                "published": published,
                "measured": measured,
                "difference": difference,
                "tolerance": TOLERANCE if column == "ap" else None,
                "verdict": verdict,
                "data": entry.data if column == "ap" else None,
                "weights": weights.get(column),
                "note": notes.get(column),
            }
        )
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each metric; blank where there is none."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """A line for each checkpoint; blank where there is no metric."""
    compared = ("box AP", "mask AP")
    plain = ("fps", "fps optimized", "fps optimized_bf16", "inference memory")
    heads = ["model"]
    for name in compared:
        heads += [f"{name} published", "measured", "difference", "verdict"]
    heads += ["fps", "fps, optimised", "fps, optimised, bf16", "memory, MB", "training GB published", "measured"]
    heads += ["weights for fps and memory", "note"]
    lines = [heads, ["---"] * len(heads)]
    by_model: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["figure"]] = row
    for model, rows_by_metric in by_model.items():
        line = [f"`{model}`"]
        for name in compared:
            one = rows_by_metric.get(name, {})
            line += [_formatted(one.get("published")), _formatted(one.get("measured"), 2)]
            line += [_formatted(one.get("difference"), 2, sign=True), one.get("verdict") or ""]
        line += [_formatted(rows_by_metric[name]["measured"], 0 if "memory" in name else 2) for name in plain]
        training = rows_by_metric.get("training memory", {})
        line += [_formatted(training.get("published")), _formatted(training.get("measured"), 1)]
        line += [rows_by_metric["fps"]["weights"] or rows_by_metric["inference memory"]["weights"] or ""]
        line += ["; ".join(dict.fromkeys(row["note"] for row in rows_by_metric.values() if row["note"]))]
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _formatted(value: Any, digits: int | None = None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    if digits is None:
        return str(value)
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # never -0.00
