"""faster-coco-eval finds what pycocotools finds, and is asked for where it is not installed."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from command import run

from fpg_zoo.evaluation.coco_metrics import IouType, coco_scores


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.slow
def test_faster_is_pycocotools_on_cocos_known_answers(kind: IouType, data_folder: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    folder = data_folder / "coco_known_answers"
    annotations = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    assert any(row["iscrowd"] for row in annotations["annotations"])
    ids = [image["id"] for image in annotations["images"]]
    expected = coco_scores(annotations, results, kind, ids)
    before = copy.deepcopy((annotations, results))
    found = coco_scores(annotations, results, kind, ids, backend="faster")
    assert (annotations, results) == before
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-9)
    assert found.classes == pytest.approx(expected.classes, abs=1e-9)
    np.testing.assert_allclose(found.precisions, expected.precisions, atol=1e-9)
    assert found.matches is None


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ((), "backend 'faster': faster-coco-eval is not installed: pip install 'fpg-zoo[fast-eval]', or leave it out"),
        (("--interval",), "--interval and --backend faster: it does not tell its matches"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    options: tuple[str, ...], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    files = ["--results", tmp_path / "r.json", "--annotations", tmp_path / "a.json"]
    ended = run("eval", *files, "--backend", "faster", *options)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert cause in ended.err
