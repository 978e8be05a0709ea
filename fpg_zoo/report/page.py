"""The report as one page of HTML that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fpg_zoo.evaluation import FIGURES, KINDS
from fpg_zoo.report import charts, overlays
from fpg_zoo.report.curves import NAMES, aps, curves_of, embedded_curves, overall
from fpg_zoo.report.gathering import Contents
from fpg_zoo.report.markup import embedded, escaped, fraction, name_of, printable
from fpg_zoo.report.matching import MIDDLE, rates
from fpg_zoo.report.pictures import Worst
from fpg_zoo.report.tables import Column, table

MOST_IN_MATRIX = 100  # classes; with more, those with most objects
_CURVES = ("at50", "at75", "mean")  # their classes in the style sheet
_MEANINGS = {
    "AP": "mean of IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "AP_small": "objects of at most 32² pixels",
    "AP_medium": "from 32² to 96² pixels",
    "AP_large": "of at least 96² pixels",
    "AR_1": "recall of the best detection a picture",
    "AR_10": "of the best 10",
    "AR_100": "of the best 100",
    "AR_small": "of 100, small objects",
    "AR_medium": "of 100, medium ones",
    "AR_large": "of 100, large ones",
}


def page(contents: Contents) -> str:
    """The whole page; ASCII but for what people read."""
    style, script = _piece("page.css"), _piece("page.js")
    # Nothing may be fetched or run but these two pieces, whatever a name of a class or file holds.
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    title = name_of(contents.about.title)
    body = "\n".join(
        (
            _head(contents),
            _tiles(contents),
            _control(contents),
            _figures(contents),
            _curves(contents),
            _confusion(contents),
            _classes(contents),
            _worst(contents),
            _notes(contents),
        )
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f'<script type="application/json" id="data">{embedded(_data(contents))}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _piece(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(piece: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(piece.encode()).digest()).decode('ascii')}'"


def _data(contents: Contents) -> dict[str, Any]:
    """What page.js goes by."""
    confusion = contents.confusion
    cells: dict[tuple[int, int], list[int]] = {}
    for truth, label, step, number in confusion.cells.tolist():
        cells.setdefault((truth, label), []).extend((step, number))
    order = np.argsort(-confusion.truth, kind="stable")[:MOST_IN_MATRIX]
    return {
        "classes": [printable(name) for name in contents.class_names],
        "truth": confusion.truth.tolist(),
        "thresholds": _thresholds(contents),
        "cells": [[*pair, steps] for pair, steps in cells.items()],
        "matrix": sorted(order.tolist()),
        "curves": {KINDS[kind]: embedded_curves(one) for kind, one in contents.scores.items()},
    }


def _thresholds(contents: Contents) -> list[str]:
    values: list[float] = contents.thresholds.tolist()
    return [f"{value:.2f}" if (values[0], values[-1]) == (0, 1) else f"{value:.4g}" for value in values]


def _labels(contents: Contents) -> list[str]:
    return [KINDS[kind] for kind in contents.scores]


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n{body}\n</section>'


def _head(contents: Contents) -> str:
    about = contents.about
    counts = (
        ("Pictures", f"{contents.pictures:,}"),
        ("Objects", f"{contents.objects:,}" + (f" and {contents.crowds:,} crowds" if contents.crowds else "")),
        ("Detections", f"{contents.detections:,}"),
    )
    facts = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{name_of(value)}</dd></div>" for name, value in (*about.facts, *counts)
    )
    return (
        f'<header>\n<p class="eyebrow">Evaluation report</p>\n<h1>{name_of(about.title)}</h1>\n'
        f'<dl class="facts">{facts}</dl>\n'
        f'<p class="command"><span class="prompt" aria-hidden="true">$</span> <code>{escaped(about.command)}</code></p>\n'
        "<noscript><p>Without scripts the page shows everything at one score threshold, and neither the confusion nor "
        "curves of single classes.</p></noscript>\n</header>"
    )


def _tiles(contents: Contents) -> str:
    tiles = []
    for kind, scores in contents.scores.items():
        others = "".join(
            f"<div><dt>{name}</dt><dd>{fraction(scores.figures[figure])}</dd></div>"
            for name, figure in (("AP50", "AP50"), ("AP75", "AP75"), ("AR", "AR_100"))
        )
        tiles.append(
            f'<div class="tile"><h2>{KINDS[kind].capitalize()} AP</h2><p class="big">'
            f"{fraction(scores.figures['AP'])}</p><dl>{others}</dl></div>"
        )
    f1 = _rates(contents)[2]
    best = int(np.nanargmax(f1)) if not np.isnan(f1).all() else None
    if best is not None:
        precision, recall, _ = (float(values[best]) for values in _rates(contents))
        tiles.append(
            f'<div class="tile"><h2>Best F1</h2><p class="big">{fraction(float(f1[best]))}</p><dl>'
            f"<div><dt>at score</dt><dd>{_thresholds(contents)[best]}</dd></div>"
            f"<div><dt>Precision</dt><dd>{fraction(precision)}</dd></div>"
            f"<div><dt>Recall</dt><dd>{fraction(recall)}</dd></div></dl></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _rates(contents: Contents) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of all classes together at each threshold, (101,) each."""
    right, wrong = contents.confusion.at_least()
    return rates(right.sum(axis=0), wrong.sum(axis=0), contents.confusion.truth.sum())


def _control(contents: Contents) -> str:
    values = "".join(
        f'<div><dt>{name}</dt><dd data-overall="{name.lower()}">{fraction(float(values[MIDDLE]))}</dd></div>'
        for name, values in zip(("Precision", "Recall", "F1"), _rates(contents), strict=True)
    )
    return (
        '<div class="control" role="group" aria-label="Score threshold and what follows from it">'
        '<label for="threshold">Score threshold</label>'
        f'<input type="range" id="threshold" min="0" max="100" step="1" value="{MIDDLE}">'
        f'<output for="threshold" id="shown">{_thresholds(contents)[MIDDLE]}</output><dl>{values}</dl></div>'
    )


def _figures(contents: Contents) -> str:
    labels = _labels(contents)
    figures = [one.figures for one in contents.scores.values()]
    twelve = table(
        "COCO's twelve figures",
        [Column("Figure"), Column("Meaning", kind="text"), *(Column(label.capitalize(), kind="number") for label in labels)],
        [
            [escaped(name.replace("_", " ")), _MEANINGS[name], *(fraction(one[name]) for one in figures)]
            for name in FIGURES
        ],
    )
    columns = [Column("Size"), Column("Objects", kind="number")]
    for label in labels:
        columns += [Column(f"{label.capitalize()} AP", kind="bar"), Column(f"{label.capitalize()} AR", kind="number")]
    rows = []
    for size, number in contents.sizes.items():
        row = [size.capitalize(), f"{number:,}"]
        for label, one in zip(labels, figures, strict=True):
            row += [_with_bar(one[f"AP_{size}"], label), fraction(one[f"AR_{size}"])]
        rows.append(row)
    sizes = table("By size of the object", columns, rows)
    return _section("figures", "Figures", f'<div class="pair">{twelve}{sizes}</div>')


def _with_bar(value: float, label: str) -> str:
    return f"{charts.bar(value, label)}<span>{fraction(value)}</span>"


def _curves(contents: Contents) -> str:
    names = "".join(f'<option value="{place}">{name_of(name)}</option>' for place, name in enumerate(contents.class_names, 1))
    choice = (
        '<p class="choice"><label for="class">Precision and recall of</label> <select id="class">'
        f'<option value="0">all classes</option>{names}</select></p>'
    )
    figures = []
    for kind, scores in contents.scores.items():
        label = KINDS[kind]
        curve = overall(curves_of(scores.precisions))
        drawing = "".join(charts.line(one, name) for one, name in zip(curve, _CURVES, strict=True))
        ticks = [f"{tick / 5:.1f}" for tick in range(6)]
        shown = charts.chart(f"Precision over recall, {label}", "Recall", "Precision", ticks, drawing)
        key = "".join(
            f"<li>{charts.sample(name)} {text} <b>{fraction(ap)}</b></li>"
            for name, text, ap in zip(_CURVES, NAMES, aps(curve), strict=True)
        )
        figures.append(
            f'<figure data-curves="{label}"><figcaption>{label.capitalize()}: precision over recall</figcaption>'
            f'{shown}<ul class="key">{key}</ul></figure>'
        )
    lines = "".join(
        charts.line(values, name) for values, name in zip(_rates(contents), ("precision", "recall", "f1"), strict=True)
    )
    ticks = [_thresholds(contents)[place] for place in range(0, 101, 20)]
    key = "".join(
        f"<li>{charts.sample(name.lower())} {name}</li>" for name in ("Precision", "Recall", "F1")
    )
    figures.append(
        "<figure><figcaption>All classes over the score threshold</figcaption>"
        + charts.chart("Precision, recall and F1 over the score threshold", "Score threshold", "Value", ticks, lines + charts.marker())
        + f'<ul class="key">{key}</ul></figure>'
    )
    return _section("curves", "Curves", f'{choice}<div class="charts">{"".join(figures)}</div>')


def _confusion(contents: Contents) -> str:
    limited = ""
    if len(contents.class_names) > MOST_IN_MATRIX:
        limited = f" The {MOST_IN_MATRIX} classes with most objects, of {len(contents.class_names):,}."
    return _section(
        "confusion",
        "Confusion",
        '<p class="lead">Rows are what is annotated, columns what was detected, at the score threshold above and IoU '
        f"{'of boxes' if contents.matched_by == 'bbox' else 'of masks'} 0.50. A darker cell is a larger share of its row.{limited}</p>\n"
        '<div class="confusion"><div id="frequent"></div>'
        '<div id="matrix" class="scroll" role="region" aria-label="Confusion matrix" tabindex="0"></div></div>',
    )


def _classes(contents: Contents) -> str:
    labels = _labels(contents)
    right, wrong = (counts[:, MIDDLE] for counts in contents.confusion.at_least())
    each = rates(right, wrong, contents.confusion.truth)
    columns = [
        Column("Class"),
        Column("Objects", kind="number"),
        *(Column(f"{label.capitalize()} AP", kind="bar") for label in labels),
        *(Column(name, kind="number", mark=name.lower()) for name in ("Precision", "Recall", "F1")),
    ]
    rows = [
        [
            f"<bdi>{name_of(name)}</bdi>",
            f"{contents.confusion.truth[place]:,}",
            *(_with_bar(one.classes[name], KINDS[kind]) for kind, one in contents.scores.items()),
            *(fraction(float(values[place])) for values in each),
        ]
        for place, name in enumerate(contents.class_names)
    ]
    shown = table("AP of each class; precision, recall and F1 at the score threshold", columns, rows, name="by-class")
    return _section(
        "classes", "Classes", f'<div class="scroll" role="region" aria-label="Classes" tabindex="0">{shown}</div>'
    )


def _worst(contents: Contents) -> str:
    threshold = _thresholds(contents)[MIDDLE]
    if not contents.worst:
        return _section("pictures", "Pictures", f'<p class="lead">No mistakes at score {threshold} in any picture.</p>')
    key = "".join(
        f'<li><svg class="sample" viewBox="0 0 28 12" aria-hidden="true"><g class="shape {state}">'
        f'<rect class="line" x="2" y="2" width="24" height="8"/></g></svg> {text}</li>'
        for state, text in (
            ("object", "annotated, found"),
            ("object missed", "“missed:” annotated, not found"),
            ("crowd", "“crowd:” dashed, does not count"),
            ("right", "detected rightly"),
            ("wrong", "“×” wrong class or no object"),
        )
    )
    figures = "".join(_picture(worst, number) for number, worst in enumerate(contents.worst, 1))
    return _section(
        "pictures",
        "Pictures with most mistakes",
        f'<p class="lead">Ranked by mistakes at score {threshold}: detections of nothing, objects of another class, '
        f'objects missed.</p>\n<ul class="key">{key}</ul>\n{figures}',
    )


def _picture(worst: Worst, number: int) -> str:
    note = f'<p class="note">Without the picture: {name_of(worst.note)}</p>' if worst.note else ""
    counts = zip(overlays.outcome(worst), ("right", "wrong", "missed"), strict=True)
    mistakes = ", ".join(f'<span data-count="{name}">{number}</span> {name}' for number, name in counts)
    return (
        f'<figure class="worst"><figcaption><bdi>{name_of(worst.name)}</bdi> <span>{mistakes}</span></figcaption>{note}'
        f'<div class="sides"><div><h3>Annotated</h3>{overlays.annotated(worst, number)}</div>'
        f"<div><h3>Detected</h3>{overlays.detected(worst, number)}</div></div></figure>"
    )


def _notes(contents: Contents) -> str:
    regions = "boxes" if contents.matched_by == "bbox" else "masks"
    return _section(
        "notes",
        "How to read it",
        "<ul>"
        "<li>AP, AR and the precision-recall curves are pycocotools'; crowds and more than 100 detections of a class in a "
        "picture do not count.</li>"
        "<li>All that depends on the score threshold comes from one matching: from the highest score on, a detection takes "
        f"the object not yet taken whose {regions} have the largest IoU with it, of at least 0.50, whatever the classes. Right is a "
        "detection whose object is of its class. One that finds no object, and half of which lies in a crowd of its "
        "class, does not count.</li>"
        "<li>A picture's mistakes are its detections of nothing, its objects detected as another class, and its objects "
        "not detected, each once.</li>"
        "</ul>",
    )
