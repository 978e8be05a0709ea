"""COCO's metrics: its own known answers, perfect detections, and none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.evaluation.coco_metrics import METRICS, IouType, coco_scores
from fpg_zoo.evaluation.detect import detect_all, evaluate
from fpg_zoo.inference.predictor import Predictor

# As COCO publishes them (val2014_fake_eval_res.txt), to three digits.
KNOWN = {
    "bbox": [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564],
    "segm": [0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381],
}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_cocos_known_answers(kind: IouType, data_folder: Path) -> None:
    folder = data_folder / "coco_known_answers"
    annotations = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    figures = coco_scores(annotations, results, kind, [image["id"] for image in annotations["images"]]).metrics
    assert list(figures) == list(METRICS)
    assert list(figures.values()) == pytest.approx(KNOWN[kind], abs=5e-4 + 1e-9)


def test_perfect_detections_score_one_crowds_included(data_folder: Path) -> None:
    annotations = json.loads((data_folder / "coco" / "annotations" / "instances_val2017.json").read_text())
    ids = [image["id"] for image in annotations["images"]]
    rows: list[dict[str, Any]] = [
        {**{key: row[key] for key in ("image_id", "category_id", "bbox")}, "score": 1.0}
        for row in annotations["annotations"]
        if not row["iscrowd"]
    ]
    figures = coco_scores(annotations, rows, "bbox", ids).metrics
    assert figures["AP"] == pytest.approx(1.0)
    assert figures["AP50"] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_no_detections_score_zero(kind: IouType, data_folder: Path) -> None:
    annotations = json.loads((data_folder / "coco" / "annotations" / "instances_val2017.json").read_text())
    figures = coco_scores(annotations, [], kind, [image["id"] for image in annotations["images"]]).metrics
    assert set(figures.values()) == {0.0}


@pytest.mark.slow
def test_a_models_detections_are_those_of_the_predictor_in_the_files_ids(data_folder: Path) -> None:
    dataset = CocoDataset.from_folder(data_folder / "coco", "val2017", masks=True, training=False)
    model = tiny_model("mask_rcnn_nano_fpg")
    first = [dataset.image_info(index) for index in range(3)]
    rows = detect_all(model, _Few(dataset, 3), dataset.category_ids)
    for picture in first:
        (expected,) = Predictor(model)([picture.file])
        wanted = expected.to_coco(picture.image_id, dataset.category_ids)
        found = [row for row in rows if row["image_id"] == picture.image_id]
        assert [row["category_id"] for row in found] == [row["category_id"] for row in wanted]
        assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-5)
    figures = evaluate(model, _Few(dataset, 3), dataset.category_ids, batch_size=2)
    assert list(figures) == [f"{kind}_{name}" for kind in ("box", "mask") for name in METRICS]


class _Few:
    """The first images of a data set."""

    def __init__(self, dataset: CocoDataset, count: int) -> None:
        self.class_names = dataset.class_names
        self._dataset, self._count = dataset, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

    def image_info(self, index: int) -> Any:
        return self._dataset.image_info(index)
