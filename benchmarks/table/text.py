"""The table of published and measured metrics, as rows, and of these as Markdown and CSV.

`table.md` is of one device, and `results.csv` has a row for each model and device.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from accuracy import TOLERANCE, agrees
from harness.measure import Row

import fpg_zoo
from fpg_zoo.weights.manifest import Published
from table.cells import table_checkpoints

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


def results_rows(rows: Sequence[Row], device: str) -> list[dict[str, Any]]:
    """A row for each model: what it costs, and what was measured on this device; blank where nothing was.

    Args:
        rows: of `rows_of`.
        device: by which its rows are told from those of other devices.
    """
    entries = {entry.name: entry for entry in table_checkpoints()}
    data_sets = dict.fromkeys(entry.data_set for entry in entries.values())
    results: list[dict[str, Any]] = []
    for model, figures in _by_model(rows).items():
        entry = entries[model]
        info = fpg_zoo.model_info(entry.architecture)
        cost = info.cost()
        training = figures.get("training memory", {})
        result = {
            "model": model,
            "method": info.method,
            "neck": info.neck,
            "device": device,
            "weights": _weights_of(figures),
            "img_size": "{}x{}".format(*info.config.preprocess.square_size),
            "params_m": round(cost.parameters / 1e6, 2),
            "gflops": round(cost.flops / 1e9, 1),
            "activations_m": round(cost.activations / 1e6, 1),
            "memory_mb_predicted": round(cost.memory / 1e6),
            "memory_mb": figures["inference memory"]["measured"],
            "fps": figures["fps"]["measured"],
            "fps_optimized": figures["fps optimized"]["measured"],
            "fps_optimized_bf16": figures["fps optimized_bf16"]["measured"],
            "training_gb_published": training.get("published"),
            "training_gb": training.get("measured"),
        }
        for data_set in data_sets:
            for kind in ("box", "mask"):
                ap = figures.get(f"{kind} AP", {}) if entry.data_set == data_set else {}
                name = f"{data_set.lower()}_{kind}_ap"
                result |= {f"{name}_published": ap.get("published"), name: ap.get("measured")}
        results.append(result)
    return results


def as_csv(results: Sequence[dict[str, Any]], earlier: str) -> str:
    """A line for each model and device; those that stand in an earlier file and not among `results` stay."""
    new = {(row["model"], row["device"]) for row in results}
    kept = [row for row in csv.DictReader(io.StringIO(earlier)) if (row.get("model"), row.get("device")) not in new]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(results[0]), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *results])
    return stream.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """A section for each data set that AP is of, in it a line for each checkpoint; blank where there is no metric."""
    compared = ("box AP", "mask AP")
    plain = ("fps", "fps optimized", "fps optimized_bf16", "inference memory")
    heads = ["model"]
    for name in compared:
        heads += [f"{name} published", "measured", "difference", "verdict"]
    heads += ["fps", "fps, optimized", "fps, optimized, bf16", "memory, MB", "predicted", "parameters, M", "GFLOPs"]
    heads += ["activations, M", "training GB published", "measured", "weights for fps and memory", "note"]
    entries = {entry.name: entry for entry in table_checkpoints()}
    sections: dict[str, list[list[str]]] = {}
    for model, figures in _by_model(rows).items():
        line = [f"`{model}`"]
        for name in compared:
            one = figures.get(name, {})
            line += [_formatted(one.get("published")), _formatted(one.get("measured"), 2)]
            line += [_formatted(one.get("difference"), 2, sign=True), one.get("verdict") or ""]
        line += [_formatted(figures[name]["measured"], 0 if "memory" in name else 2) for name in plain]
        line += costs_of(entries[model].architecture)
        training = figures.get("training memory", {})
        line += [_formatted(training.get("published")), _formatted(training.get("measured"), 1)]
        line += [_weights_of(figures)]
        line += ["; ".join(dict.fromkeys(row["note"] for row in figures.values() if row["note"]))]
        sections.setdefault(entries[model].data, []).append(line)
    return "\n".join(f"AP on {data}:\n\n{table_of(heads, lines)}" for data, lines in sections.items())


def table_of(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, ["---"] * len(heads), *lines))


def costs_of(architecture: str) -> list[str]:
    """Predicted memory in MB, parameters in millions, GFLOPs and activations in millions, as they are printed."""
    cost = fpg_zoo.model_info(architecture).cost()
    values = ((cost.memory / 1e6, 0), (cost.parameters / 1e6, 1), (cost.flops / 1e9, 1), (cost.activations / 1e6, 1))
    return [_formatted(value, digits) for value, digits in values]


def _by_model(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    by_model: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["figure"]] = row
    return by_model


def _weights_of(figures: Mapping[str, Row]) -> str:
    """That fps and memory were measured with."""
    return figures["fps"]["weights"] or figures["inference memory"]["weights"] or ""


def _formatted(value: Any, digits: int | None = None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    if digits is None:
        return str(value)
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # never -0.00
