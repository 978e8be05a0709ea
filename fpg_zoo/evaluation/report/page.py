"""The report as one page of HTML that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from fpg_zoo.evaluation.coco_metrics import IOU_TYPES
from fpg_zoo.evaluation.report import charts, sections
from fpg_zoo.evaluation.report.analysis import ReportData
from fpg_zoo.evaluation.report.curves import PARTS, embedded_curves
from fpg_zoo.evaluation.report.html import embedded, escaped, name_of, printable


def page(data: ReportData, more: str = "") -> str:
    """The whole page of an evaluation, with `more` parts in HTML; ASCII but for what people read."""
    return _document(data.info.title, evaluation_parts(data, more), data)


def training_page(title: str, parts: str, evaluation: ReportData | None) -> str:
    """The whole page of a training run.

    Args:
        title: of the page.
        parts: what comes first, as HTML.
        evaluation: what comes below; None for nothing, and a page without scripts.
    """
    below = "" if evaluation is None else evaluation_parts(evaluation, level=2)
    return _document(title, f"{parts}\n{below}", evaluation)


def evaluation_parts(data: ReportData, more: str = "", *, level: int = 1) -> str:
    """The parts of an evaluation as HTML, `more` below its metrics; `level` is of its title."""
    return "\n".join(
        (
            sections.head(data, level=level),
            sections.tiles(data),
            sections.control(data),
            sections.metrics(data),
            more,
            sections.curves(data),
            sections.confusion(data),
            sections.classes(data),
            sections.worst_images(data),
            sections.notes(data),
        )
    )


def _document(title: str, body: str, data: ReportData | None) -> str:
    """A page with the style sheet, and with the script where there is an evaluation for it."""
    style, script = _piece("page.css"), _piece("page.js")
    # Nothing may be fetched or run but these two pieces, whatever a name of a class or file holds.
    scripts = "'none'" if data is None else _digest(script)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {scripts}; "
        "base-uri 'none'; form-action 'none'"
    )
    ending = (
        ""
        if data is None
        else (
            f'<script type="application/json" id="data">{embedded(_data(data))}</script>\n<script>{script}</script>\n'
        )
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{name_of(title)}</title>\n'
        '<link rel="icon" href="data:,">\n'
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n{ending}</body>\n</html>\n"
    )


def _piece(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(piece: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(piece.encode()).digest()).decode('ascii')}'"


def _data(data: ReportData) -> dict[str, Any]:
    """What page.js goes by."""
    confusion = data.confusion
    cells: dict[tuple[int, int], list[int]] = {}
    for object_class, label, step, number in confusion.cells.tolist():
        cells.setdefault((object_class, label), []).extend((step, number))
    return {
        "classes": [printable(name) for name in data.class_names],
        "truth": confusion.object_counts.tolist(),
        "thresholds": data.threshold_texts(),
        "cells": [[*pair, steps] for pair, steps in cells.items()],
        "matrix": data.confusion.visible_classes(),
        "chart": [charts.LEFT, charts.TOP, charts.ACROSS, charts.DOWN],
        "parts": PARTS,
        "curves": {IOU_TYPES[kind]: embedded_curves(one) for kind, one in data.scores.items()},
    }
