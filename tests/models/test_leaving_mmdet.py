"""`fpg-zoo convert --check IMAGES --against RESULTS`: a converted model beside the detections of where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run
from PIL import Image

import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.evaluation.agreement import agreement

NAME = "mask_rcnn_nano_fpg"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in mmdetection's form, two images, and what its model detects in them, boxes and masks apart."""
    folder = tmp_path_factory.mktemp("check")
    model = fpg_zoo.create_model(NAME, pretrained=True)
    names = model.class_names
    meta = {"dataset_meta": {"classes": names}}
    torch.save({"meta": meta, "state_dict": fpg_zoo.reference_state_dict(model)}, folder / "x.pth")
    scenes, rows = ShapesDataset("val", num_images=2), []
    (folder / "images").mkdir()
    for index in range(2):
        file = folder / "images" / f"{index + 7:012}.png"
        Image.fromarray(scenes[index].image.permute(1, 2, 0).numpy()).save(file)
        rows += fpg_zoo.Predictor(model)(file)[0].to_coco(index + 7)
    for kind, key in (("bbox", "bbox"), ("segm", "segmentation")):
        kept = ("image_id", "category_id", "score", key)
        (folder / f"{kind}.json").write_text(json.dumps([{name: row[name] for name in kept} for row in rows]))
    content = {
        "images": [{"id": f"img{index}", "file_name": f"{index:012}.png"} for index in (7, 8)],
        "annotations": [],
        "categories": [{"id": 50 + number, "name": name} for number, name in enumerate(reversed(names))],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def check(place: Path, tmp_path: Path, results: Path, *more: Any) -> Any:
    return run("convert", place / "x.pth", tmp_path / "out", "--check", place / "images", "--against", results, *more)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_same_detections_agree(kind: str, place: Path, tmp_path: Path) -> None:
    rows = json.loads((place / f"{kind}.json").read_text())
    done = check(place, tmp_path, place / f"{kind}.json")
    assert done.code == 0, done.out + done.err
    assert done.out.endswith(f"{len(rows)} of {len(rows)} detections agree, in 2 of 2 images\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("what", ["category", "score", "number", "place"])
def test_what_differs_is_counted_and_told_by_the_exit_code(what: str, kind: str, place: Path, tmp_path: Path) -> None:
    rows = json.loads((place / f"{kind}.json").read_text())
    first = [row for row in rows if row["image_id"] == 7]
    for row in first:
        if what == "category":
            row["category_id"] = row["category_id"] % 10 + 1
        elif what == "score":
            row["score"] *= 0.9 if row["score"] > 0.2 else 2
        elif what == "number":
            pass
        elif kind == "bbox":
            row["bbox"][0] += 5
        else:
            row["segmentation"] = first[0]["segmentation"]
    if what == "number":
        rows += first[:1] * 5
    (tmp_path / "other.json").write_text(json.dumps(rows))
    done = check(place, tmp_path, tmp_path / "other.json")
    assert done.code == 1, done.out
    assert f"agree, {len(first)} found\n" in done.out
    assert done.out.endswith("in 1 of 2 images\n")
    assert (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_annotation_file_has_the_ids(place: Path, tmp_path: Path) -> None:
    rows = json.loads((place / "bbox.json").read_text())
    for row in rows:  # categories numbered backwards from 59 on, images by texts
        row.update(image_id=f"img{row['image_id']}", category_id=60 - row["category_id"])
    (tmp_path / "ids.json").write_text(json.dumps(rows))
    done = check(place, tmp_path, tmp_path / "ids.json", "--annotations", place / "annotations.json")
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no list of detections"),
        ("[", "not JSON"),
        ("[3]", "entry 0: 3 is no detection"),
        ('[{"image_id": 7, "category_id": "x", "score": 1, "bbox": [0, 0, 1, 1]}]', "of no detection"),
        (
            '[{"image_id": 7, "category_id": 1, "score": NaN, "bbox": [0, 0, 1, 1]}]',
            "has score nan, which is no number",
        ),
        (
            '[{"image_id": 7, "category_id": 1, "score": 1, "bbox": [0, 0, 1]}]',
            "has bbox [0, 0, 1], which is not four numbers",
        ),
        ('[{"image_id": 7, "category_id": 1, "score": 1, "segmentation": {"size": [9], "counts": ""}}]', "size="),
        (
            '[{"image_id": 7, "category_id": 1, "score": 1, "segmentation": {"size": [240, 320], "counts": "!!!"}}]',
            "segmentation: no run lengths of its size",
        ),
        ('[{"image_id": 99, "category_id": 1, "score": 1, "bbox": [0, 0, 1, 1]}]', "no detections of these images"),
        ("[]", "no detections of these images"),
    ],
)
def test_wrong_results_are_refused_before_anything_is_written(
    text: str, message: str, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "wrong.json").write_text(text)
    done = check(place, tmp_path, tmp_path / "wrong.json")
    assert (done.code, message in done.err) == (2, True), done.err
    assert not (tmp_path / "out").exists()


def test_check_and_against_go_together(place: Path, tmp_path: Path) -> None:
    for options in (("--check", place / "images"), ("--against", place / "bbox.json")):
        done = run("convert", place / "x.pth", tmp_path / "out", *options)
        assert (done.code, "go together" in done.err) == (2, True)
    done = check(place, tmp_path, place / "bbox.json", "--to", "reference")
    assert (done.code, "leave --to reference out" in done.err) == (2, True)


def test_each_detection_stands_for_one_at_most() -> None:
    row = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0.0, 0.0, 10.0, 10.0]}
    assert agreement(1, [row, row], [row]).matched == 1
    assert agreement(1, [row], [row, row]).matched == 1
    assert agreement(1, [], []).agrees
    assert not agreement(1, [], [row] * 4).agrees
    assert agreement(1, [row] * 100, [row] * 97).agrees
    assert not agreement(1, [row] * 100, [row] * 96).agrees
