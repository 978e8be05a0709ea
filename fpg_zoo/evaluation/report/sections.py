"""The parts of the page, from above to below; each is HTML."""

from __future__ import annotations

import numpy as np

from fpg_zoo.evaluation.coco_metrics import IOU_TYPES, METRICS
from fpg_zoo.evaluation.report import charts, overlays
from fpg_zoo.evaluation.report.analysis import ReportData
from fpg_zoo.evaluation.report.confusion import MIDDLE, MOST_SHOWN, rates
from fpg_zoo.evaluation.report.curves import NAMES, aps, curves_of, overall
from fpg_zoo.evaluation.report.html import TIMES, escaped, fraction, name_of, text_of
from fpg_zoo.evaluation.report.tables import Column, table
from fpg_zoo.evaluation.report.worst_images import MOST_DETECTIONS, MOST_OBJECTS, WorstImage

_MANY = 25  # classes, whose matrix needs the whole width
_CURVES = ("at50", "at75", "mean")  # their classes in the style sheet
_MEANINGS = {
    "AP": "mean of IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "AP_small": "objects of at most 32² pixels",
    "AP_medium": "from 32² to 96² pixels",
    "AP_large": "of at least 96² pixels",
    "AR_1": "recall of the best detection an image",
    "AR_10": "of the best 10",
    "AR_100": "of the best 100",
    "AR_small": "of 100, small objects",
    "AR_medium": "of 100, medium ones",
    "AR_large": "of 100, large ones",
}


def _labels(data: ReportData) -> list[str]:
    return [IOU_TYPES[kind] for kind in data.scores]


def section(name: str, title: str, body: str) -> str:
    """A part of the page under a heading; `name` is its id."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n{body}\n</section>'
    )


def head(data: ReportData, *, level: int = 1) -> str:
    """What was evaluated, and the command; `level` is of the title."""
    info = data.info
    counts = (
        ("Images", f"{data.image_count:,}"),
        ("Objects", f"{data.objects:,}"),
        *((("Crowds", f"{data.crowds:,}"),) if data.crowds else ()),
        ("Detections", f"{data.detections:,}"),
    )
    facts = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{text_of(value)}</dd></div>" for name, value in (*info.facts, *counts)
    )
    return (
        f'<header>\n<p class="eyebrow">Evaluation report</p>\n<h{level}>{name_of(info.title)}</h{level}>\n'
        f'<dl class="facts">{facts}</dl>\n'
        '<p class="command"><span class="prompt" aria-hidden="true">$</span> '
        f"<code>{text_of(info.command)}</code></p>\n"
        "<noscript><p>Without scripts the page shows everything at one score threshold, and neither the confusion nor "
        "curves of single classes.</p></noscript>\n</header>"
    )


def tiles(data: ReportData) -> str:
    """The metrics that matter most."""
    tiles = []
    for kind, scores in data.scores.items():
        others = "".join(
            f"<div><dt>{name}</dt><dd>{fraction(scores.metrics[figure])}</dd></div>"
            for name, figure in (("AP50", "AP50"), ("AP75", "AP75"), ("AR 100", "AR_100"))
        )
        tiles.append(
            f'<div class="tile"><h2>{IOU_TYPES[kind].capitalize()} AP</h2><p class="big">'
            f"{fraction(scores.metrics['AP'])}</p><dl>{others}</dl></div>"
        )
    rates_at = data.rates()
    f1 = rates_at[2]
    if not np.isnan(f1).all():
        best = int(np.nanargmax(f1))
        precision, recall, _ = (float(values[best]) for values in rates_at)
        tiles.append(
            f'<div class="tile"><h2>Best F1</h2><p class="big">{fraction(float(f1[best]))}</p><dl>'
            f"<div><dt>at score</dt><dd>{data.threshold_texts()[best]}</dd></div>"
            f"<div><dt>Precision</dt><dd>{fraction(precision)}</dd></div>"
            f"<div><dt>Recall</dt><dd>{fraction(recall)}</dd></div></dl></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def control(data: ReportData) -> str:
    """The slider of the score threshold, which stays in sight, and what follows from it."""
    values = "".join(
        f'<div><dt>{name}</dt><dd data-overall="{name.lower()}">{fraction(float(values[MIDDLE]))}</dd></div>'
        for name, values in zip(("Precision", "Recall", "F1"), data.rates(), strict=True)
    )
    return (
        '<div class="control" role="group" aria-label="Score threshold and what follows from it">'
        '<label for="threshold">Score threshold</label>'
        f'<input type="range" id="threshold" min="0" max="100" step="1" value="{MIDDLE}">'
        f'<output for="threshold" id="shown">{data.threshold_texts()[MIDDLE]}</output><dl>{values}</dl></div>'
    )


def metrics(data: ReportData) -> str:
    """COCO's twelve metrics, and those of each size with its number of objects."""
    labels = _labels(data)
    by_type = [one.metrics for one in data.scores.values()]
    twelve = table(
        "COCO's twelve figures",
        [
            Column("Figure"),
            Column("Meaning", kind="text"),
            *(Column(label.capitalize(), kind="number") for label in labels),
        ],
        [
            [escaped(name.replace("_", " ")), _MEANINGS[name], *(fraction(one[name]) for one in by_type)]
            for name in METRICS
        ],
    )
    columns = [Column("Size"), Column("Objects", kind="number")]
    for label in labels:
        columns += [Column(f"{label.capitalize()} AP", kind="bar"), Column(f"{label.capitalize()} AR", kind="number")]
    rows = []
    for size, number in data.sizes.items():
        row = [size.capitalize(), f"{number:,}"]
        for label, one in zip(labels, by_type, strict=True):
            row += [_with_bar(one[f"AP_{size}"], label), fraction(one[f"AR_{size}"])]
        rows.append(row)
    sizes = table("By size of the object", columns, rows)
    return section("metrics", "Metrics", f'<div class="pair">{twelve}{sizes}</div>')


def _with_bar(value: float | None, label: str) -> str:
    return f"{charts.bar(value, label)}<span>{fraction(value)}</span>"


def curves(data: ReportData) -> str:
    """Precision over recall of all classes or one, and all over the score threshold."""
    names = "".join(
        f'<option value="{place}">{name_of(name)}</option>' for place, name in enumerate(data.class_names, 1)
    )
    choice = (
        '<p class="choice"><label for="class">Precision and recall of</label> <select id="class">'
        f'<option value="0">all classes</option>{names}</select></p>'
    )
    charts_html = []
    for kind, scores in data.scores.items():
        label = IOU_TYPES[kind]
        curve = overall(curves_of(scores.precisions))
        drawing = "".join(charts.line(one, name) for one, name in zip(curve, _CURVES, strict=True))
        ticks = [f"{tick / 5:.1f}" for tick in range(6)]
        chart_html = charts.chart(f"Precision over recall, {label}", "Recall", "Precision", ticks, drawing)
        key = "".join(
            f"<li>{charts.sample(name)} {text} <b>{fraction(ap)}</b></li>"
            for name, text, ap in zip(_CURVES, NAMES, aps(curve), strict=True)
        )
        charts_html.append(
            f'<figure data-curves="{label}"><figcaption>{label.capitalize()}: precision over recall</figcaption>'
            f'{chart_html}<ul class="key">{key}</ul></figure>'
        )
    lines = "".join(
        charts.line(values, name) for values, name in zip(data.rates(), ("precision", "recall", "f1"), strict=True)
    )
    ticks = [data.threshold_texts()[place] for place in range(0, 101, 20)]
    key = "".join(f"<li>{charts.sample(name.lower())} {name}</li>" for name in ("Precision", "Recall", "F1"))
    charts_html.append(
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
    return section("curves", "Curves", f'{choice}<div class="charts">{"".join(charts_html)}</div>')


def confusion(data: ReportData) -> str:
    """Where page.js puts the confusion at the score threshold."""
    visible, there = len(data.confusion.visible_classes()), len(data.class_names)
    limited = ""
    if visible < there:
        which = "with most objects" if visible == MOST_SHOWN else "that occur"
        limited = f" Shown are the {visible} classes {which}, of {there:,}."
    shapes = "boxes" if data.matched_by == "bbox" else "masks"
    return section(
        "confusion",
        "Confusion",
        '<p class="lead">Rows are what is annotated, columns what was detected, at the score threshold above and IoU '
        f"of {shapes} 0.50. The stronger a cell's shade, the larger its share of the row.{limited}</p>\n"
        f'<div class="confusion{" many" if visible > _MANY else ""}"><div id="frequent"></div>'
        '<div id="matrix" class="scroll" role="region" aria-label="Confusion matrix" tabindex="0"></div></div>',
    )


def classes(data: ReportData) -> str:
    """AP of each class, and what follows from the score threshold."""
    labels = _labels(data)
    right, wrong = (counts[:, MIDDLE] for counts in data.confusion.at_least())
    each = rates(right, wrong, data.confusion.object_counts)
    columns = [
        Column("Class"),
        Column("Objects", kind="number"),
        *(Column(f"{label.capitalize()} AP", kind="bar") for label in labels),
        *(Column(name, kind="number", mark=name.lower()) for name in ("Precision", "Recall", "F1")),
    ]
    rows = [
        [
            f"<bdi>{name_of(name)}</bdi>",
            f"{data.confusion.object_counts[place]:,}",
            *(_with_bar(one.classes[name], IOU_TYPES[kind]) for kind, one in data.scores.items()),
            *(fraction(float(values[place])) for values in each),
        ]
        for place, name in enumerate(data.class_names)
    ]
    table_html = table(
        "AP of each class; precision, recall and F1 at the score threshold", columns, rows, name="by-class"
    )
    return section(
        "classes", "Classes", f'<div class="scroll" role="region" aria-label="Classes" tabindex="0">{table_html}</div>'
    )


def worst_images(data: ReportData) -> str:
    """The images with most mistakes."""
    threshold = data.threshold_texts()[MIDDLE]
    if not data.worst_images:
        return section("images", "Images", f'<p class="lead">No mistakes at score {threshold} in any image.</p>')
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
    blocks = "".join(_worst_image(image, number) for number, image in enumerate(data.worst_images, 1))
    return section(
        "images",
        "Images with most mistakes",
        f'<p class="lead">Ranked by mistakes at score {threshold}: detections of nothing, objects of another class, '
        f'objects missed.</p>\n<ul class="key">{key}</ul>\n{blocks}',
    )


def _worst_image(image: WorstImage, number: int) -> str:
    note = f'<p class="note">Without the image: {text_of(image.note)}</p>' if image.note else ""
    counts = zip(overlays.outcome(image), ("right", "wrong", "missed"), strict=True)
    mistakes = ", ".join(f'<span data-count="{name}">{number}</span> {name}' for number, name in counts)
    return (
        f'<figure class="worst"><figcaption><bdi>{name_of(image.name)}</bdi> <span>{mistakes}</span></figcaption>{note}'
        f'<div class="sides"><div><h3>Annotated</h3>{overlays.annotated(image, number)}</div>'
        f"<div><h3>Detected</h3>{overlays.detected(image, number)}</div></div></figure>"
    )


def notes(data: ReportData) -> str:
    """What the parts mean."""
    shapes = "boxes" if data.matched_by == "bbox" else "masks"
    points = (
        "AP, AR and the precision-recall curves are pycocotools'; crowds, and more than 100 detections of a class in "
        "an image, do not count.",
        "All that depends on the score threshold comes from one matching: from the highest score on, a detection takes "
        f"the object not yet taken whose {shapes} have the largest IoU with it, of at least 0.50, whatever the "
        "classes. It is right if the object is of its class. One that finds no object, and half of which lies in a "
        "crowd of its class, does not count.",
        "An image's mistakes are its detections of nothing, its objects detected as another class, and its objects "
        f"not detected, each once. Of an image, at most {MOST_DETECTIONS} detections, the best, and {MOST_OBJECTS} "
        "objects, the first, are drawn, and counted above it.",
    )
    return section("notes", "How to read it", f"<ul>{''.join(f'<li>{point}</li>' for point in points)}</ul>")
