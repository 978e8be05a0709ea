"""The report of a training run: its curves, and below them the report of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from fpg_zoo.evaluation.report import charts
from fpg_zoo.evaluation.report.analysis import ReportData
from fpg_zoo.evaluation.report.html import escaped, fraction, name_of, text_of
from fpg_zoo.evaluation.report.page import training_page
from fpg_zoo.evaluation.report.sections import section
from fpg_zoo.evaluation.report.training_log import Series, TrainingLog, read_training_log
from fpg_zoo.evaluation.report.writing import versions, write_page
from fpg_zoo.run_log import LOG_FILE

_REPORT_FILE = "report.html"
_PARTS = 5  # of an axis
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)  # where an axis may end, times a power of ten
_CURVES = ("", "at75")  # classes of the style sheet, of two curves in a chart
_LEAST = 1e-30  # an axis of nothing but zeros


def write_training_report(run: Path, target: Path | None = None, evaluation: ReportData | None = None) -> None:
    """Write the page of a run, all or nothing: its losses, AP and learning rate over the steps, from its `log.jsonl`.

    Args:
        run: the run's folder.
        target: the file to write, replaced if it is there; None for `report.html` in `run`.
        evaluation: of the model that came out, as of `fpg_zoo.evaluation.report.analysis.gather`, to be shown below.
            None for the curves alone, on a page without scripts.

    Raises:
        ConfigError: there is no step in the log.
        StorageError: the log cannot be read, or the page not be written.
    """
    log = read_training_log(run / LOG_FILE)
    title = f"Training of {run.absolute().name}"
    parts = "\n".join((_head(title, run, log), _tiles(log), _charts(log)))
    write_page(run / _REPORT_FILE if target is None else target, training_page(title, parts, evaluation))


def _head(title: str, run: Path, log: TrainingLog) -> str:
    facts = (
        ("Run", str(run)),
        ("Steps", f"{log.step:,}"),
        *((("Epochs", f"{log.epoch:.4g}"),) if log.epoch is not None else ()),
        ("Evaluations", f"{log.evaluations:,}"),
        *versions(),
    )
    shown = "".join(f"<div><dt>{escaped(name)}</dt><dd>{text_of(value)}</dd></div>" for name, value in facts)
    return (
        f'<header>\n<p class="eyebrow">Training report</p>\n<h1>{name_of(title)}</h1>\n<dl class="facts">{shown}</dl>\n'
        "</header>"
    )


def _aps(log: TrainingLog) -> dict[str, Series]:
    """Of evaluations, AP of boxes and of masks; without these the first metric, which chose the best model."""
    found = {name: log.evaluated[name] for name in ("box_AP", "mask_AP") if name in log.evaluated}
    return found or dict(list(log.evaluated.items())[:1])


def _tiles(log: TrainingLog) -> str:
    tiles = [
        f'<div class="tile"><h2>Best {_words(name)}</h2><p class="big">{fraction(series.best)}</p><dl>'
        f"<div><dt>at step</dt><dd>{series.best_step:,}</dd></div>"
        f"<div><dt>last</dt><dd>{fraction(series.last)}</dd></div></dl></div>"
        for name, series in _aps(log).items()
    ]
    if (loss := log.training.get("loss")) is not None:
        tiles.append(f'<div class="tile"><h2>Last loss</h2><p class="big">{loss.last:.4g}</p></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _charts(log: TrainingLog) -> str:
    """AP, each loss, and the learning rate."""
    aps = _aps(log)
    figures = [_figure("AP" if "box_AP" in aps else next(iter(aps)), aps, log.step)] if aps else []
    figures += [
        _figure(name, {name: series}, log.step) for name, series in log.training.items() if name.startswith("loss")
    ]
    if "lr" in log.training:
        figures.append(_figure("learning rate", {"lr": log.training["lr"]}, log.step))
    return section("training", "Training", f'<div class="charts">{"".join(figures)}</div>')


def _figure(title: str, series: Mapping[str, Series], steps: int) -> str:
    """One or two series in a chart."""
    right = _PARTS * math.ceil(steps / _PARTS)
    top = _axis_end(max(float(one.values.max()) for one in series.values()))
    curves = "".join(
        charts.line_through(
            [(x / right, max(y / top, 0.0)) for x, y in zip(one.steps.tolist(), one.values.tolist(), strict=True)],
            curve,
        )
        for one, curve in zip(series.values(), _CURVES, strict=False)
    )
    key = "".join(
        f"<li>{charts.sample(curve)} {_words(name)} <b>{one.last:.4g}</b></li>"
        for (name, one), curve in zip(series.items(), _CURVES, strict=False)
    )
    drawn = charts.chart(
        f"{title} over the steps",
        "Step",
        "",
        [f"{right * part // _PARTS:,}" for part in range(_PARTS + 1)],
        curves,
        [_short(top * part / _PARTS) for part in range(_PARTS + 1)],
    )
    caption = _words(title[:1].upper() + title[1:])
    return f'<figure><figcaption>{caption}</figcaption>{drawn}<ul class="key">{key}</ul></figure>'


def _axis_end(greatest: float) -> float:
    """A round number that is not less."""
    greatest = max(greatest, _LEAST)
    power = 10.0 ** math.floor(math.log10(greatest))
    return next((part * power for part in _ROUND if part * power >= greatest), 10 * power)


def _short(value: float) -> str:
    """A number in the few letters that there is room for beside an axis."""
    if 0 < value < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.3g}"


def _words(name: str) -> str:
    """A metric's name as people read it, in HTML."""
    return name_of(name.replace("_", " "))
