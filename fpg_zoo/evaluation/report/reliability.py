"""The parts of the page on how sure the metrics are, and where AP is lost."""

from __future__ import annotations

from collections.abc import Mapping

from fpg_zoo.evaluation.coco_metrics import IOU_TYPES, IouType, Scores
from fpg_zoo.evaluation.errors import Errors
from fpg_zoo.evaluation.intervals import Interval
from fpg_zoo.evaluation.report.html import fraction
from fpg_zoo.evaluation.report.sections import section
from fpg_zoo.evaluation.report.tables import Column, table

_MEANINGS = {
    "classification": "on an object of another class",
    "localization": "on an object of its class, IoU from 0.10 to 0.50",
    "both": "on an object of another class, IoU from 0.10 to 0.50",
    "duplicate": "on an object that another has found",
    "background": "on no object",
    "missed": "object that nothing was on",
}


def parts(
    scores: Mapping[IouType, Scores],
    intervals: Mapping[IouType, Mapping[str, Interval]],
    errors: Mapping[IouType, Errors],
) -> str:
    """Intervals and errors as HTML, by kind; nothing of what is empty."""
    return "\n".join(
        [
            *([section("intervals", "How sure it is", _intervals(scores, intervals))] if intervals else ()),
            *([section("errors", "Where AP is lost", _errors(errors))] if errors else ()),
        ]
    )


def _intervals(scores: Mapping[IouType, Scores], intervals: Mapping[IouType, Mapping[str, Interval]]) -> str:
    rows = [
        [f"{IOU_TYPES[kind].capitalize()} {name}", *map(fraction, (scores[kind].metrics[name], *interval))]
        for kind, of_kind in intervals.items()
        for name, interval in of_kind.items()
    ]
    columns = [Column("Figure"), *(Column(title, kind="number") for title in ("Value", "From", "To"))]
    return table("95 % intervals, by resampling the images", columns, rows)


def _errors(errors: Mapping[IouType, Errors]) -> str:
    columns = [Column("Kind"), Column("Meaning", kind="text")]
    for iou_type in errors:
        label = IOU_TYPES[iou_type].capitalize()
        columns += [Column(f"{label} errors", kind="number"), Column(f"{label} AP50 if fixed", kind="number")]
    rows = []
    for kind, meaning in _MEANINGS.items():
        row = [kind.capitalize(), meaning]
        for one in errors.values():
            gain = one.gains[kind]
            row += [f"{one.counts[kind]:,}", fraction(None) if gain is None else f"{gain:+.3f}"]
        rows.append(row)
    return table("Errors by kind, and what AP50 would gain without each alone", columns, rows)
