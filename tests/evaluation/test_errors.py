"""Where AP is lost: one case by hand for each kind of error, and COCO's known answers for all together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from pycocotools import mask as mask_api

from fpg_zoo.evaluation.coco_metrics import IouType, coco_scores
from fpg_zoo.evaluation.errors import KINDS, Errors, error_breakdown

# One image of 400 x 100 pixels. IoU of boxes of 40 x 40, moved along by d: (40 - d) / (40 + d).
SIZE = (100, 400)


def _box(x: float) -> dict[str, Any]:
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask[20:60, int(x) : int(x) + 40] = 1
    encoded = mask_api.encode(mask)
    return {
        "bbox": [x, 20.0, 40.0, 40.0],
        "segmentation": {"size": list(SIZE), "counts": encoded["counts"].decode()},
    }


def _object(x: float, category: int = 1, crowd: int = 0) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category, "area": 1600, "iscrowd": crowd, **_box(x)}


def _found(x: float, score: float, category: int = 1) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category, "score": score, **_box(x)}


def _truth(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": place, **row} for place, row in enumerate(objects, 1)],
    }


A, B = 0.0, 200.0  # two places that do not touch

# Objects, detections, kinds with their numbers, AP50, and gains. Points of recall are 101: up to a half, there are 51.
CASES: dict[str, tuple[list[Any], list[Any], dict[str, int], float, dict[str, float]]] = {
    # A dog is taken for a cat. Cats: one found by the second detection, so precision 1/2. Dogs: none found, 0. Fixed,
    # both have 1. The dog counts as meant, so it is not missed.
    "classification": (
        [_object(A, 1), _object(B, 2)],
        [_found(B, 0.9, 1), _found(A, 0.8, 1)],
        {"classification": 1},
        (1 / 2 + 0) / 2,
        {"classification": 1 - 1 / 4},
    ),
    # Moved by 20: IoU 1/3. One of two is found, by the second detection: 1/2 up to recall 1/2. Fixed: 1.
    "localization": (
        [_object(A), _object(B)],
        [_found(B + 20, 0.9), _found(A, 0.8)],
        {"localization": 1},
        51 / 101 / 2,
        {"localization": 1 - 51 / 101 / 2},
    ),
    # IoU 1/3 with a dog, taken for a cat. The dog, which another found, is not concerned. Without it, cats have 1.
    "both": (
        [_object(A, 1), _object(B, 2)],
        [_found(B + 20, 0.9, 1), _found(A, 0.8, 1), _found(B, 0.7, 2)],
        {"both": 1},
        (1 / 2 + 1) / 2,
        {"both": 1 / 4},
    ),
    # Right, again, right: precisions 1, 1/2, 2/3. So 51 points of 1 and 50 of 2/3.
    "duplicate": (
        [_object(A), _object(B)],
        [_found(A, 0.9), _found(A + 2, 0.8), _found(B, 0.7)],
        {"duplicate": 1},
        (51 + 50 * 2 / 3) / 101,
        {"duplicate": 50 / 3 / 101},
    ),
    # Moved by 36: IoU 1/19. Three wrong ones before a right one: precision 1/4.
    "background": (
        [_object(A)],
        [_found(A + 36, 0.9), _found(B, 0.8), _found(B, 0.7), _found(A, 0.6)],
        {"background": 3},
        1 / 4,
        {"background": 3 / 4},
    ),
    # One of two, and nothing else.
    "missed": (
        [_object(A), _object(B)],
        [_found(A, 0.9)],
        {"missed": 1},
        51 / 101,
        {"missed": 50 / 101},
    ),
    # A class of which all are missed counts 0, and then not at all.
    "missed altogether": (
        [_object(A), _object(B, 2)],
        [_found(A, 0.9)],
        {"missed": 1},
        1 / 2,
        {"missed": 1 / 2},
    ),
    # Moved by 20, of an object that a worse score finds: fixed, the better one stays, and the other goes. Without a fix
    # precision is 1/2; fixed, it is 1, as there is no other object.
    "fixed beside a right one": (
        [_object(A)],
        [_found(A + 20, 0.9), _found(A, 0.8)],
        {"localization": 1},
        1 / 2,
        {"localization": 1 / 2},
    ),
    # In a crowd of its class, a detection does not count; in one of another, it does.
    "crowds": (
        [_object(A), _object(B, crowd=1)],
        [_found(B, 0.95, 2), _found(B, 0.9), _found(A, 0.8)],
        {"background": 1},
        1.0,
        {},
    ),
}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("case", CASES)
def test_each_kind_by_hand(case: str, kind: IouType) -> None:
    objects, detections, counts, ap50, gains = CASES[case]
    found = error_breakdown(_truth(objects), detections, kind, [1])
    assert found.counts == dict.fromkeys(KINDS, 0) | counts
    assert found.ap50 == pytest.approx(ap50)
    assert found.gains == pytest.approx(dict.fromkeys(KINDS, 0.0) | gains)


def test_nothing_found_is_all_missed() -> None:
    expected = Errors(0.0, dict.fromkeys(KINDS, 0) | {"missed": 2}, dict.fromkeys(KINDS, 0.0) | {"missed": None})
    assert error_breakdown(_truth([_object(A), _object(B, 2)]), [], "bbox", [1]) == expected


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.slow
def test_ap50_is_pycocotools_on_cocos_known_answers(kind: IouType, data_folder: Path) -> None:
    folder = data_folder / "coco_known_answers"
    annotations = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    ids = [image["id"] for image in annotations["images"]]
    crowds = [row for row in annotations["annotations"] if row["iscrowd"]]
    assert crowds
    for row in crowds:  # as they come from a file that is read by us
        if isinstance(row["segmentation"]["counts"], list):
            row["segmentation"] = mask_api.frPyObjects(row["segmentation"], *row["segmentation"]["size"])
    found = error_breakdown(annotations, results, kind, ids)
    scores = coco_scores(annotations, results, kind, ids)
    assert found.ap50 == pytest.approx(scores.metrics["AP50"], abs=1e-9)
    assert scores.matches is not None
    wrong = int((~scores.matches.positive[0] & ~scores.matches.ignored[0]).sum())
    assert sum(number for name, number in found.counts.items() if name != "missed") == wrong
    assert min(value for value in found.gains.values() if value is not None) >= 0


def test_the_command_tells_errors(tmp_path: Path) -> None:
    objects, detections, *_ = CASES["classification"]
    for name, content in (("truth.json", _truth(objects)), ("rows.json", detections)):
        (tmp_path / name).write_text(json.dumps(content))
    files = ["--results", tmp_path / "rows.json", "--annotations", tmp_path / "truth.json"]
    written = ["--json", tmp_path / "printed.json", "--report", tmp_path / "report.html"]
    ended = run("eval", *files, "--errors", *written)
    assert ended.code == 0, ended.err
    printed = json.loads((tmp_path / "printed.json").read_text())
    for label in ("box", "mask"):
        assert printed[label]["errors"]["classification"] == {"count": 1, "ap50_gain": pytest.approx(0.75)}
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["error", "box", "AP50", "mask", "AP50"] in lines
    assert ["classification", "1", "+0.750", "1", "+0.750"] in lines
    page = (tmp_path / "report.html").read_text()
    assert 'id="errors"' in page
    assert "+0.750" in page
    ended = run("eval", *files, *written)
    assert 'id="errors"' not in (tmp_path / "report.html").read_text()
