"""The report of a training run: its curves from `log.jsonl`, and the report of an evaluation below."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import document, screenshot
from reporting import HOSTILE, write_hostile

from fpg_zoo.errors import ConfigError, StorageError
from fpg_zoo.evaluation.coco_metrics import coco_scores
from fpg_zoo.evaluation.report.analysis import ReportData, gather
from fpg_zoo.evaluation.report.curves import overall_curves
from fpg_zoo.evaluation.report.training_log import MAX_POINTS, read_training_log
from fpg_zoo.evaluation.report.training_report import write_training_report
from fpg_zoo.evaluation.report.writing import info_of_results
from fpg_zoo.evaluation.results_file import read_results


def write_log(run: Path, rows: list[Mapping[str, Any]]) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def rows_by_hand() -> list[Mapping[str, Any]]:
    """Of ten steps every other, and two evaluations."""
    steps = [
        {"step": step, "epoch": step / 5, "lr": 0.004, "loss": loss, "loss_cls": loss / 8, "memory_gb": 1.0}
        for step, loss in ((2, 4.0), (4, 3.0), (6, 2.0), (8, 2.0), (10, 1.0))
    ]
    steps.insert(3, {"step": 6, "box_AP": 0.12, "mask_AP": 0.1, "memory_gb": 1.0})
    return [*steps, {"step": 10, "box_AP": 0.1, "mask_AP": 0.05, "memory_gb": 1.0}]


def curves_of(text: str) -> dict[str, list[tuple[str, str]]]:
    """Class and path of each curve, by the caption of its chart."""
    figures = re.findall(r"<figure><figcaption>(.*?)</figcaption>(.*?)</figure>", text, re.DOTALL)
    return {
        caption: re.findall(r'<path class="curve (\w*)" stroke-linecap="round" d="(.*?)"/>', drawn)
        for caption, drawn in figures
    }


def evaluation(folder: Path) -> ReportData:
    """Of the detections by hand, whose names are markup."""
    write_hostile(folder)
    annotations, rows, _, _ = read_results(folder / "results.json", folder / "annotations.json")
    scores = {"bbox": coco_scores(annotations, rows, "bbox", [1, 2])}
    info = info_of_results(folder / "results.json", folder / "annotations.json", ["eval"])
    return gather(info, annotations, rows, scores, [1, 2], None)


def test_the_curves_are_those_by_hand(tmp_path: Path) -> None:
    run = write_log(tmp_path / "my run", rows_by_hand())
    write_training_report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    # Charts are 380 wide from 46 on and 238 high from 14 on. Steps end at 10; AP at 0.2, losses at 5 and 0.5, the rate
    # at 0.005.
    assert curves_of(text) == {
        "AP": [("", "M274 109.2L426 133"), ("at75", "M274 133L426 192.5")],
        "Loss": [("", "M122 61.6L198 109.2L274 156.8L350 156.8L426 204.4")],
        "Loss cls": [("", "M122 14L198 73.5L274 133L350 133L426 192.5")],
        "Learning rate": [("", "M122 61.6L198 61.6L274 61.6L350 61.6L426 61.6")],
    }
    ticks = re.findall(r'<text x="38" .*?text-anchor="end">(.*?)<', text)
    assert ticks[:6] == ["0", "0.04", "0.08", "0.12", "0.16", "0.2"]
    assert ticks[-6:] == ["0", "0.001", "0.002", "0.003", "0.004", "0.005"]
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", text.split("</header>")[0]))
    assert (facts["Steps"], facts["Epochs"], facts["Evaluations"]) == ("10", "2", "2")
    assert re.findall(r'<h2>(.*?)</h2><p class="big">(.*?)</p>', text) == [
        *[("Best box AP", "0.120"), ("Best mask AP", "0.100"), ("Last loss", "1")],
    ]
    assert "<dt>at step</dt><dd>6</dd>" in text


def test_without_an_evaluation_there_is_no_script(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", rows_by_hand())
    write_training_report(run, tmp_path / "made" / "page.html")
    text = (tmp_path / "made" / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "url(" not in text
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall('Policy" content="(.*?)"', text)
    assert html.unescape(policy) == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; script-src 'none'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_the_evaluation_is_below(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", rows_by_hand())
    write_training_report(run, evaluation=evaluation(tmp_path))
    text = (run / "report.html").read_text(encoding="utf-8")
    places = [text.index(part) for part in ('id="training"', "Evaluation report", 'id="metrics"', 'id="classes"')]
    assert places == sorted(places)
    assert text.count("<h1>") == 1
    digests = re.findall(r"(style|script)-src &#x27;sha256-(.*?)&#x27;", text)
    assert [name for name, _ in digests] == ["style", "script"]
    scripts = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    assert [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts] == [digests[1][1]]


def test_names_in_the_log_are_texts(tmp_path: Path) -> None:
    name = f"loss{HOSTILE[0]}"
    run = write_log(tmp_path / "<b>run", [{"step": 1, "loss": 1.0, name: 2.0}, {"step": 1, HOSTILE[0]: 0.5}])
    write_training_report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "<b>run" not in text
    assert "<img" not in text
    assert "<script" not in text
    assert html.escape(HOSTILE[0].replace("_", " ")[:20]) in text
    assert "<title>Training of &lt;b&gt;run</title>" in text


def test_long_runs_are_thinned_and_keep_their_means(tmp_path: Path) -> None:
    steps = [{"step": step, "loss": float(step % 2), "lr": 1e-5} for step in range(1, 8001)]
    evaluated = [{"step": step, "box_AP": step / 10000} for step in range(4, 8001, 4)]
    run = write_log(tmp_path / "run", [*steps, *evaluated])
    log = read_training_log(run / "log.jsonl")
    loss, ap = log.training["loss"], log.evaluated["box_AP"]
    assert (len(loss.steps), len(ap.steps)) == (MAX_POINTS, MAX_POINTS)
    assert loss.values.tolist() == [0.5] * MAX_POINTS  # of twenty steps each
    assert loss.steps[:2].tolist() == [10.5, 30.5]
    assert (ap.last, ap.best, ap.best_step, log.step, log.evaluations) == (0.8, 0.8, 8000, 8000, 2000)
    write_training_report(run)
    assert (run / "report.html").stat().st_size < 100_000
    assert "4e-6" in (run / "report.html").read_text(encoding="utf-8")


def test_damaged_logs_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", [])
    lines = [
        *[b'{"step": 1, "loss": 2.0, "lr": null}', b"\xff\xfe", b"[" * 100_000, b'{"step": "2", "loss": 9.0}'],
        *[b'{"step": -4, "loss": 9.0}', b'{"step": 1' + b"0" * 400 + b', "loss": 9.0}', b'{"step": 3, "loss": NaN}'],
        *[b'{"step": 3, "loss": 1' + b"0" * 400 + b"}", b'{"step": 3, "loss": true, "lr": "x", "note": [1]}'],
        *[b'{"step": 3, "loss": 1.0}', b'{"step": 4, "lo'],
    ]
    (run / "log.jsonl").write_bytes(b"\n".join(lines))
    log = read_training_log(run / "log.jsonl")
    assert {name: one.values.tolist() for name, one in log.training.items()} == {"loss": [2.0, 1.0]}
    assert (log.step, log.evaluations) == (3, 0)
    write_training_report(run)


def test_a_log_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for content in (None, b"", b"{}\n", b'{"step": 0, "loss": 1.0}\n'):
        if content is not None:
            (run / "log.jsonl").write_bytes(content)
        with pytest.raises(ConfigError, match=r"log\.jsonl: no step of a training in it; name the folder of a run$"):
            write_training_report(run)
    (run / "log.jsonl").unlink()
    os.mkfifo(run / "log.jsonl")
    with pytest.raises(StorageError, match=r"log\.jsonl: cannot be read \(not a regular file\)"):
        write_training_report(run)
    assert [path.name for path in run.iterdir()] == ["log.jsonl"]


def test_curves_for_loggers_are_means_of_the_classes(tmp_path: Path) -> None:
    data = evaluation(tmp_path)
    curves = overall_curves(data.scores)
    assert list(curves) == ["box_AP50", "box_AP75", "box_AP"]
    assert all(curve.shape == (101,) for curve in curves.values())
    # By hand: of the first class's three objects, one is found at 0.9 and one at 0.3 after a wrong one: precision 1 up
    # to recall 1/3, 2/3 up to 2/3, then 0. Of the second class, all at once.
    assert curves["box_AP50"][[0, 33, 34, 66, 67, 100]] == pytest.approx([1, 1, 5 / 6, 5 / 6, 0.5, 0.5])


@pytest.mark.slow
def test_a_browser_shows_the_curves_without_a_complaint(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", rows_by_hand())
    write_training_report(run, evaluation=evaluation(tmp_path))
    assert "data-ready" in document(run / "report.html")
    write_training_report(run)
    pixels = np.asarray(screenshot(run / "report.html", tmp_path / "page.png", (1000, 900))).astype(int)
    blue = (np.abs(pixels - (0x24, 0x58, 0xB8)).sum(axis=2) < 30).sum()  # the color of first curves
    assert blue > 500
