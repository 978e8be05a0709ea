"""The parts of the page, from above to below; each is HTML."""

from __future__ import annotations

import numpy as np

from fpg_zoo.evaluation.coco_metrics import FIGURES, IOU_TYPES
from fpg_zoo.evaluation.report import charts, overlays
from fpg_zoo.evaluation.report.analysis import Contents
from fpg_zoo.evaluation.report.confusion import MIDDLE, MOST_SHOWN, rates
from fpg_zoo.evaluation.report.curves import NAMES, aps, curves_of, overall
from fpg_zoo.evaluation.report.html import TIMES, escaped, fraction, name_of, text_of
from fpg_zoo.evaluation.report.tables import Column, table
from fpg_zoo.evaluation.report.worst_images import MOST_DETECTIONS, MOST_OBJECTS, Worst

_MANY = 25  # classes, whose matrix needs the whole width
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


def _labels(contents: Contents) -> list[str]:
    return [IOU_TYPES[kind] for kind in contents.scores]


def _section(name: str, title: str, body: str) -> str:
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n{body}\n</section>'
    )


def head(contents: Contents) -> str:
    """What was evaluated, and the command."""
    about = contents.about
    counts = (
        ("Pictures", f"{contents.pictures:,}"),
        ("Objects", f"{contents.objects:,}"),
        *((("Crowds", f"{contents.crowds:,}"),) if contents.crowds else ()),
        ("Detections", f"{contents.detections:,}"),
    )
    facts = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{text_of(value)}</dd></div>" for name, value in (*about.facts, *counts)
    )
    return (
        f'<header>\n<p class="eyebrow">Evaluation report</p>\n<h1>{name_of(about.title)}</h1>\n'
        f'<dl class="facts">{facts}</dl>\n'
        '<p class="command"><span class="prompt" aria-hidden="true">$</span> '
        f"<code>{text_of(about.command)}</code></p>\n"
        "<noscript><p>Without scripts the page shows everything at one score threshold, and neither the confusion nor "
        "curves of single classes.</p></noscript>\n</header>"
    )


def tiles(contents: Contents) -> str:
    """The figures that matter most."""
    tiles = []
    for kind, scores in contents.scores.items():
        others = "".join(
            f"<div><dt>{name}</dt><dd>{fraction(scores.figures[figure])}</dd></div>"
            for name, figure in (("AP50", "AP50"), ("AP75", "AP75"), ("AR 100", "AR_100"))
        )
        tiles.append(
            f'<div class="tile"><h2>{IOU_TYPES[kind].capitalize()} AP</h2><p class="big">'
            f"{fraction(scores.figures['AP'])}</p><dl>{others}</dl></div>"
        )
    rates_at = contents.rates()
    f1 = rates_at[2]
    if not np.isnan(f1).all():
        best = int(np.nanargmax(f1))
        precision, recall, _ = (float(values[best]) for values in rates_at)
        tiles.append(
            f'<div class="tile"><h2>Best F1</h2><p class="big">{fraction(float(f1[best]))}</p><dl>'
            f"<div><dt>at score</dt><dd>{contents.threshold_texts()[best]}</dd></div>"
            f"<div><dt>Precision</dt><dd>{fraction(precision)}</dd></div>"
            f"<div><dt>Recall</dt><dd>{fraction(recall)}</dd></div></dl></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def control(contents: Contents) -> str:
    """The slider of the score threshold, which stays in sight, and what follows from it."""
    values = "".join(
        f'<div><dt>{name}</dt><dd data-overall="{name.lower()}">{fraction(float(values[MIDDLE]))}</dd></div>'
        for name, values in zip(("Precision", "Recall", "F1"), contents.rates(), strict=True)
    )
    return (
        '<div class="control" role="group" aria-label="Score threshold and what follows from it">'
        '<label for="threshold">Score threshold</label>'
        f'<input type="range" id="threshold" min="0" max="100" step="1" value="{MIDDLE}">'
        f'<output for="threshold" id="shown">{contents.threshold_texts()[MIDDLE]}</output><dl>{values}</dl></div>'
    )


def figures(contents: Contents) -> str:
    """COCO's twelve figures, and those of each size with its number of objects."""
    labels = _labels(contents)
    figures = [one.figures for one in contents.scores.values()]
    twelve = table(
        "COCO's twelve figures",
        [
            Column("Figure"),
            Column("Meaning", kind="text"),
            *(Column(label.capitalize(), kind="number") for label in labels),
        ],
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


def _with_bar(value: float | None, label: str) -> str:
    return f"{charts.bar(value, label)}<span>{fraction(value)}</span>"


def curves(contents: Contents) -> str:
    """Precision over recall of all classes or one, and all over the score threshold."""
    names = "".join(
        f'<option value="{place}">{name_of(name)}</option>' for place, name in enumerate(contents.class_names, 1)
    )
    choice = (
        '<p class="choice"><label for="class">Precision and recall of</label> <select id="class">'
        f'<option value="0">all classes</option>{names}</select></p>'
    )
    figures = []
    for kind, scores in contents.scores.items():
        label = IOU_TYPES[kind]
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
        charts.line(values, name) for values, name in zip(contents.rates(), ("precision", "recall", "f1"), strict=True)
    )
    ticks = [contents.threshold_texts()[place] for place in range(0, 101, 20)]
    key = "".join(f"<li>{charts.sample(name.lower())} {name}</li>" for name in ("Precision", "Recall", "F1"))
    figures.append(
        "<figure><figcaption>All classes over the score threshold</figcaption>"
        + charts.chart(
            "Precision, recall and F1 over the score threshold",
            "Score threshold",
            "Value",
            ticks,
            lines + charts.marker(),
        )
        + f'<ul class="key">{key}</ul></figure>'
    )
    return _section("curves", "Curves", f'{choice}<div class="charts">{"".join(figures)}</div>')


def confusion(contents: Contents) -> str:
    """Where page.js puts the confusion at the score threshold."""
    shown, there = len(contents.confusion.classes_shown()), len(contents.class_names)
    limited = ""
    if shown < there:
        which = "with most objects" if shown == MOST_SHOWN else "that occur"
        limited = f" Shown are the {shown} classes {which}, of {there:,}."
    regions = "boxes" if contents.matched_by == "bbox" else "masks"
    return _section(
        "confusion",
        "Confusion",
        '<p class="lead">Rows are what is annotated, columns what was detected, at the score threshold above and IoU '
        f"of {regions} 0.50. The stronger a cell's shade, the larger its share of the row.{limited}</p>\n"
        f'<div class="confusion{" many" if shown > _MANY else ""}"><div id="frequent"></div>'
        '<div id="matrix" class="scroll" role="region" aria-label="Confusion matrix" tabindex="0"></div></div>',
    )


def classes(contents: Contents) -> str:
    """AP of each class, and what follows from the score threshold."""
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
            *(_with_bar(one.classes[name], IOU_TYPES[kind]) for kind, one in contents.scores.items()),
            *(fraction(float(values[place])) for values in each),
        ]
        for place, name in enumerate(contents.class_names)
    ]
    shown = table("AP of each class; precision, recall and F1 at the score threshold", columns, rows, name="by-class")
    return _section(
        "classes", "Classes", f'<div class="scroll" role="region" aria-label="Classes" tabindex="0">{shown}</div>'
    )


def worst(contents: Contents) -> str:
    """The pictures with most mistakes."""
    threshold = contents.threshold_texts()[MIDDLE]
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
            ("wrong", f"“{TIMES}” wrong class or no object"),
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
    note = f'<p class="note">Without the picture: {text_of(worst.note)}</p>' if worst.note else ""
    counts = zip(overlays.outcome(worst), ("right", "wrong", "missed"), strict=True)
    mistakes = ", ".join(f'<span data-count="{name}">{number}</span> {name}' for number, name in counts)
    return (
        f'<figure class="worst"><figcaption><bdi>{name_of(worst.name)}</bdi> <span>{mistakes}</span></figcaption>{note}'
        f'<div class="sides"><div><h3>Annotated</h3>{overlays.annotated(worst, number)}</div>'
        f"<div><h3>Detected</h3>{overlays.detected(worst, number)}</div></div></figure>"
    )


def notes(contents: Contents) -> str:
    """What the parts mean."""
    regions = "boxes" if contents.matched_by == "bbox" else "masks"
    points = (
        "AP, AR and the precision-recall curves are pycocotools'; crowds, and more than 100 detections of a class in a "
        "picture, do not count.",
        "All that depends on the score threshold comes from one matching: from the highest score on, a detection takes "
        f"the object not yet taken whose {regions} have the largest IoU with it, of at least 0.50, whatever the "
        "classes. It is right if the object is of its class. One that finds no object, and half of which lies in a "
        "crowd of its class, does not count.",
        "A picture's mistakes are its detections of nothing, its objects detected as another class, and its objects "
        f"not detected, each once. Of a picture, at most {MOST_DETECTIONS} detections, the best, and {MOST_OBJECTS} "
        "objects, the first, are drawn, and counted above it.",
    )
    return _section("notes", "How to read it", f"<ul>{''.join(f'<li>{point}</li>' for point in points)}</ul>")
