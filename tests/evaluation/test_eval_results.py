"""`fpg-zoo eval --results`: COCO's known answers, perfect and no detections, one clear line for whatever is wrong."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_evaluation import KNOWN

from fpg_zoo.evaluation.coco_metrics import METRICS, IouType, coco_scores

LABELS: dict[IouType, str] = {"bbox": "box", "segm": "mask"}


def _eval(folder: Path, results: Any, annotations: Any) -> dict[str, Any]:
    """Figures by the command."""
    files = [folder / name for name in ("results.json", "annotations.json")]
    for file, content in zip(files, (results, annotations), strict=True):
        file.write_text(json.dumps(content))
    done = run("eval", "--results", files[0], "--annotations", files[1], "--json", folder / "figures.json")
    assert done.code == 0, done.err
    told: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return told


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.slow
def test_cocos_known_answers(kind: IouType, data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "coco_known_answers"
    truth, rows = folder / "instances_val2014_100.json", folder / f"instances_val2014_fake{kind}100_results.json"
    done = run("eval", "--results", rows, "--annotations", truth, "--json", tmp_path / "f.json")
    assert done.code == 0, done.err
    label = LABELS[kind]
    figures = json.loads((tmp_path / "f.json").read_text())[label]["figures"]
    # The published ones have three digits; pycocotools itself has the others.
    assert [float(f"{figures[name]:.3f}") for name in METRICS] == KNOWN[kind]
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(truth))
        judged = COCOeval(annotations, annotations.loadRes(str(rows)), kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    assert [figures[name] for name in METRICS] == pytest.approx(judged.stats.tolist(), abs=1e-6)
    lines = done.out.splitlines()
    assert lines[0].split() == [label]
    assert lines[1].split() == ["AP", f"{KNOWN[kind][0]:.3f}"]
    assert lines[12].split() == ["AR_large", f"{KNOWN[kind][11]:.3f}"]
    assert lines[14].split() == ["AP", "of", "class", label]
    assert len(lines) == 15 + 80 + 1


def test_perfect_detections_score_one_crowds_included(data_folder: Path, tmp_path: Path) -> None:
    annotations = json.loads((data_folder / "coco" / "annotations" / "instances_val2017.json").read_text())
    assert sum(row["iscrowd"] for row in annotations["annotations"]) == 3
    keys = ("image_id", "category_id", "bbox", "segmentation")
    rows = [{**{key: row[key] for key in keys}, "score": 1.0} for row in annotations["annotations"]]
    told = _eval(tmp_path, rows, annotations)
    for label in ("box", "mask"):
        figures = told[label]["figures"]
        assert [figures[name] for name in METRICS[:6]] == pytest.approx([1.0] * 6)
        with_truth = {row["category_id"] for row in annotations["annotations"] if not row["iscrowd"]}
        scored = [value for value in told[label]["classes"].values() if value is not None]
        assert scored == pytest.approx([1.0] * len(with_truth))


def test_an_empty_file_scores_zero(data_folder: Path, tmp_path: Path) -> None:
    annotations = json.loads((data_folder / "coco" / "annotations" / "instances_val2017.json").read_text())
    told = _eval(tmp_path, [], annotations)
    assert {value for label in ("box", "mask") for value in told[label]["figures"].values()} == {0.0}
    assert set(told["mask"]["classes"].values()) == {0.0, None}


# By hand: two images of 20 x 10 pixels, a block of 6 x 4 in each.


def _rle(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    mask = np.zeros((10, 20), dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    encoded = mask_api.encode(mask)
    return {"size": [10, 20], "counts": encoded["counts"].decode()}


TRUTH: dict[str, Any] = {
    "images": [{"id": 0, "height": 10, "width": 20}, {"id": "b", "height": 10, "width": 20}],
    "categories": [{"id": 3, "name": "cell"}, {"id": 1, "name": "dot"}],
    "annotations": [
        {"id": 0, "image_id": 0, "category_id": 3, "bbox": [2, 2, 6, 4], "segmentation": [[2, 2, 8, 2, 8, 6, 2, 6]]},
        {"id": "x", "image_id": "b", "category_id": 1, "bbox": [9, 4, 6, 4], "segmentation": _rle(9, 4, 6, 4)},
    ],
}
ROW = {"image_id": 0, "category_id": 3, "score": 0.5, "bbox": [2, 2, 6, 4], "segmentation": _rle(2, 2, 6, 4)}
OTHER = {"image_id": "b", "category_id": 1, "score": 0.4, "bbox": [9, 4, 6, 4], "segmentation": _rle(9, 4, 6, 4)}


def test_ids_of_any_kind_and_entries_without_area_and_crowd(tmp_path: Path) -> None:
    # pycocotools takes an annotation id of 0 for no match, and makes texts of numbers among texts.
    told = _eval(tmp_path, [ROW, OTHER], TRUTH)
    for label in ("box", "mask"):
        assert told[label]["figures"]["AP"] == pytest.approx(1.0)
        assert told[label]["classes"] == pytest.approx({"dot": 1.0, "cell": 1.0})
    told = _eval(tmp_path, [ROW], TRUTH)
    assert told["box"]["classes"] == pytest.approx({"dot": 0.0, "cell": 1.0})
    assert told["box"]["figures"]["AP"] == pytest.approx(0.5)


def test_polygons_and_plain_counts_are_masks_too(tmp_path: Path) -> None:
    polygon = ROW | {"segmentation": [[2, 2, 8, 2, 8, 6, 2, 6]]}
    # Down the columns: 9 columns of 10, then 4 above, 4 inside, and 6 to the next one's.
    counts = [94, 4, 6, 4, 6, 4, 6, 4, 6, 4, 6, 4, 52]
    plain = OTHER | {"segmentation": {"size": [10, 20], "counts": counts}}
    told = _eval(tmp_path, [polygon, plain], TRUTH)
    assert told["mask"]["figures"]["AP"] == pytest.approx(1.0)


def test_rows_decide_what_is_judged(tmp_path: Path) -> None:
    boxes = [{key: row[key] for key in row if key != "segmentation"} for row in (ROW, OTHER)]
    masks = [{key: row[key] for key in row if key != "bbox"} for row in (ROW, OTHER)]
    assert list(_eval(tmp_path, boxes, TRUTH)) == ["box"]
    assert list(_eval(tmp_path, masks, TRUTH)) == ["mask"]
    without = copy.deepcopy(TRUTH)
    for entry in without["annotations"]:
        del entry["segmentation"]
    assert list(_eval(tmp_path, boxes, without)) == ["box"]
    assert list(_eval(tmp_path, [], without)) == ["box"]


def test_nothing_that_is_given_is_changed() -> None:
    given = copy.deepcopy(TRUTH)
    for entry in given["annotations"]:
        entry |= {"area": 24, "iscrowd": 0}
    before, rows = copy.deepcopy(given), [copy.deepcopy(ROW)]
    for kind in LABELS:
        assert coco_scores(given, rows, kind, [0, "b"]).metrics["AP"] == pytest.approx(0.5)
        assert coco_scores(given, rows, kind, [0]).metrics["AP"] == pytest.approx(1.0)
    assert given == before
    assert rows == [ROW]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"image_id": 7}, "has image_id 7, which is not in annotations.json"),
        ({"image_id": "0"}, "has image_id '0', which is not in annotations.json"),
        ({"image_id": [0]}, "has image_id [0], which is not in"),
        ({"category_id": 2}, "has category_id 2, which is not in annotations.json"),
        ({"category_id": True}, "has category_id True, which is not in"),
        ({"score": "0.5"}, "has score '0.5', which is no number"),
        ({"score": float("nan")}, "has score nan, which is no number"),
        ({"score": float("inf")}, "has score inf, which is no number"),
        ({"score": 10**400}, "has score 1000"),
        ({"score": None}, "has score None, which is no number"),
        ({"bbox": [1, 2, -3, 4]}, "has bbox [1, 2, -3, 4], whose width or height is negative"),
        ({"bbox": [1, 2, 3]}, "has bbox [1, 2, 3], which is not four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "has bbox [1, 2, 3, nan], which is not four numbers"),
        ({"bbox": [1, float("-inf"), 3, 4]}, "has bbox [1, -inf, 3, 4], which is not four numbers"),
        ({"bbox": [1, 2, 3, 1e10]}, "has bbox [1, 2, 3, 10000000000.0], which lies in no image"),
        ({"bbox": None}, "has bbox None, which is not four numbers"),
        ({"segmentation": None}, "has a segmentation that is no RLE or polygons of its 20x10 pixels"),
        ({"segmentation": [[1, 2, 3]]}, "has a segmentation that is no RLE"),
        ({"segmentation": {"size": [20, 10], "counts": "0"}}, "has a segmentation that is no RLE"),
        ({"segmentation": {"size": [10, 20], "counts": "\u00ff!"}}, "has a segmentation that is no RLE"),
        ({"segmentation": {"size": [10, 20], "counts": [9]}}, "has a segmentation that is no RLE"),
        ({"segmentation": "mask.png"}, "has a segmentation that is no RLE"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(TRUTH))
    (tmp_path / "r.json").write_text(json.dumps([ROW, ROW | changes, ROW]))
    _refused(tmp_path, f"r.json: 1 of 3 rows cannot be used: rows[1] {complaint}")


def _refused(folder: Path, start: str) -> str:
    """The message, if it begins so; nothing else is said or written."""
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    arguments = ["--results", folder / "r.json", "--annotations", folder / "annotations.json"]
    ended = run("eval", *arguments, "--json", folder / "figures.json")
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    name, _, rest = start.partition(":")
    assert line.startswith(f"fpg-zoo: {folder / name}:"), line
    assert rest in line
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    return line


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "bbox", "segmentation"])
def test_a_row_without_what_others_have(key: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(TRUTH))
    (tmp_path / "r.json").write_text(json.dumps([ROW, {name: ROW[name] for name in ROW if name != key}]))
    _refused(tmp_path, f"r.json: 1 of 2 rows cannot be used: rows[1] is without {key}; correct them or leave them out")


def test_the_first_of_many_are_named_and_all_counted(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(TRUTH))
    (tmp_path / "r.json").write_text(json.dumps([ROW, *[ROW | {"image_id": 9}] * 1000, 5, []]))
    line = _refused(tmp_path, "r.json: 1002 of 1003 rows cannot be used: rows[1] has image_id 9")
    assert line.count("rows[") == 5
    assert line.endswith("; ...; correct them or leave them out")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "r.json: not JSON"),
        (b"[{]", "r.json: not JSON"),
        (b"\xff\xfe\x00", "r.json: not JSON"),
        (b"[" * 100_000, "r.json: not JSON"),
        (b'{"annotations": []}', "r.json: holds an object, not a list"),
        (b"5", "r.json: holds a number, not a list"),
        (b"null", "r.json: holds null, not a list"),
        (b"[5]", "r.json: 1 of 1 rows cannot be used: rows[0] is a number, no detection"),
        (b"[{}]", "r.json: 1 of 1 rows cannot be used: rows[0] is without image_id, category_id, score, bbox"),
        (None, "r.json: no such file"),
    ],
)
def test_what_is_no_results_file(content: bytes | None, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(TRUTH))
    if content is not None:
        (tmp_path / "r.json").write_bytes(content)
    _refused(tmp_path, complaint)


def _changed(part: str, **changes: Any) -> dict[str, Any]:
    """TRUTH with the second entry of a part changed; what is changed to None is left out."""
    content = copy.deepcopy(TRUTH)
    entry = content[part][1] | changes
    content[part][1] = {key: value for key, value in entry.items() if value is not None}
    return content


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([], "no list 'images' in it"),
        ({"images": [], "annotations": []}, "no list 'categories' in it"),
        (TRUTH | {"images": []}, "no images in it"),
        (TRUTH | {"categories": []}, "no categories in it"),
        (_changed("categories", id=3), "category id 3 is there twice; give each category an id of its own"),
        (_changed("categories", name="cell"), "category name 'cell' is there twice; give each a name of its own"),
        (
            _changed("categories", name=5),
            "categories[1]={'id': 1, 'name': 5}: give it a whole number as id, and a name",
        ),
        (_changed("images", id=0), "images[1] has an id that is there before: 0"),
        (_changed("images", id=None), "images[1] is without an id"),
        (_changed("images", height=None), "images[1] is without height and width in pixels, which masks need"),
        (_changed("images", height=1 << 20), "images[1] has 20x1048576 pixels; masks take at most 32768 a side"),
        (
            _changed("annotations", category_id=2),
            "1 of 2 annotations cannot be used, more than one in ten (1 x annotation",
        ),
        (
            _changed("annotations", bbox="no"),
            "(1 x box that is not four numbers: x); correct them, or go on without them",
        ),
        (_changed("annotations", iscrowd="no"), "(1 x iscrowd that is neither 0 nor 1: x)"),
        (_changed("annotations", image_id=None), "(1 x annotation of an unknown image id: x)"),
        (TRUTH | {"annotations": []}, "nothing to evaluate: no image has an object"),
    ],
)
def test_what_is_no_annotation_file(content: Any, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "r.json").write_text(json.dumps([ROW]))
    _refused(tmp_path, f"annotations.json: {complaint}")
