"""What an annotation file may hold, at each door: `eval --data`, `eval --results`, training. Figures are by hand.

Perfect detections have AP 1. What is wrong with an annotation beside them changes that only where it is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folders import CATEGORIES, annotation, picture, rectangle, write_folder
from command import run

from fpg_zoo.config.training import AugmentConfig
from fpg_zoo.data.augment import augmented
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.open_split import open_held_out
from fpg_zoo.errors import ConfigError
from fpg_zoo.evaluation.coco_metrics import coco_scores

BOXES = ([2, 3, 20, 12], [5, 22, 10, 20], [20, 30, 15, 15])


def objects() -> list[dict[str, Any]]:
    """Three objects of equal class with masks, in one image of 40x48."""
    return [
        annotation(number, 1, box, segmentation=rectangle(box[0], box[1], box[0] + box[2], box[1] + box[3]))
        for number, box in enumerate(BOXES, 1)
    ]


def perfect(folder: Path) -> Path:
    """Detections equal to `objects`."""
    file = folder / "results.json"
    keys = ("image_id", "category_id", "bbox", "segmentation")
    file.write_text(json.dumps([{key: row[key] for key in keys} | {"score": 0.9} for row in objects()]))
    return file


def ap_of(folder: Path, rows: Sequence[Any], *options: str) -> tuple[float | None, float | None, str]:
    """Box and mask AP of perfect detections against these annotations, and what was reported."""
    write_folder(folder, [picture(1)], rows, split="val", pictures="val")
    figures = folder / "figures.json"
    ended = run(
        *("eval", "--results", str(perfect(folder)), "--json", str(figures), *options),
        *("--annotations", str(folder / "annotations" / "instances_val.json")),
    )
    assert ended.code == 0, ended.err
    values = json.loads(figures.read_text())
    return (*(values[kind]["figures"]["AP"] if kind in values else None for kind in ("box", "mask")), ended.err)


def changed(place: int, **values: Any) -> list[dict[str, Any]]:
    rows = objects()
    rows[place] |= values
    return rows


@pytest.mark.parametrize(
    "rows",
    [
        changed(0, area=None),
        changed(1, area="large"),
        changed(2, area=[9]),
        changed(0, area=-5),
        changed(0, area=1e400),
        changed(0, area=float("nan")),
        changed(1, iscrowd=None),
        changed(1, iscrowd="0"),
        changed(1, iscrowd=0.0),
        changed(1, iscrowd="false"),
        changed(0, id=[1]),
        changed(0, id={}),
        changed(0, id=None),
        changed(0, id=2),
        changed(0, id=1.5),
        [{**row, "id": 0} for row in objects()],
        [{key: value for key, value in row.items() if key != "id"} for row in objects()],
        changed(0, segmentation=[[1, 1], *objects()[0]["segmentation"]]),
        changed(0, segmentation=[*objects()[0]["segmentation"], []]),
        changed(0, image_id="1"),
        changed(0, image_id=1.0),
        changed(0, category_id="7"),
        changed(0, category_id=7.0),
    ],
)
def test_what_does_not_matter_or_can_be_repaired_changes_no_figure(rows: list[Any], tmp_path: Path) -> None:
    box, mask, _ = ap_of(tmp_path, rows)
    assert (box, mask) == (pytest.approx(1.0), pytest.approx(1.0))
    dataset = CocoDataset.from_folder(tmp_path, "val", masks=True)
    assert (dataset.object_count, dataset.crowd_count, dataset.mask_count) == (3, 0, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"iscrowd": "maybe"},
        {"iscrowd": 2},
        {"iscrowd": [0]},
        {"bbox": [1, 2, 3]},
        {"bbox": ["2", "3", "20", "12"]},
        {"bbox": [2, 3, float("nan"), 12]},
        {"image_id": [1]},
        {"image_id": 9},
        {"category_id": None},
        {"category_id": "seven"},
    ],
)
def test_what_cannot_be_read_is_reported_and_more_than_one_in_ten_stops(wrong: dict[str, Any], tmp_path: Path) -> None:
    write_folder(tmp_path, [picture(1)], changed(0, **wrong), split="val", pictures="val")
    with pytest.raises(ConfigError, match=r"1 of 3 annotations cannot be used, more than one in ten .*--allow-losses"):
        CocoDataset.from_folder(tmp_path, "val")
    box, mask, said = ap_of(tmp_path, changed(0, **wrong), "--allow-losses")
    # Two of three are left, and the third detection, of equal score and first in the file, finds nothing: precision is
    # 0 at first, then 1/2 and 2/3, which is interpolated to 2/3 at each recall.
    assert (box, mask) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert "1 x " in said


def test_one_in_ten_may_be_lost(tmp_path: Path) -> None:
    rows = [annotation(number, 1, [number, 1, 10, 10]) for number in range(9)]
    write_folder(tmp_path, [picture(1)], [*rows, annotation(9, 1, None)], split="val", pictures="val")
    assert CocoDataset.from_folder(tmp_path, "val").object_count == 9


def without_mask(*places: int) -> list[dict[str, Any]]:
    rows = objects()
    for place in places:
        rows[place]["segmentation"] = []
    return rows


@pytest.mark.parametrize("places", [(0,), (2,), (0, 1)])
def test_an_object_without_a_mask_counts_for_boxes_and_is_ignored_for_masks(
    places: tuple[int, ...], tmp_path: Path
) -> None:
    box, mask, _ = ap_of(tmp_path, without_mask(*places))
    # All three boxes are found. The detection on the object without a mask is neither right nor wrong.
    assert (box, mask) == (pytest.approx(1.0), pytest.approx(1.0))


def test_a_file_without_masks_has_a_box_ap_and_says_why_no_other(tmp_path: Path) -> None:
    box, mask, said = ap_of(tmp_path, without_mask(0, 1, 2))
    assert (box, mask) == (pytest.approx(1.0), None)
    assert "no mask AP, as none of the 3 objects has a mask" in said
    with pytest.raises(ConfigError, match="no mask to train on"):
        CocoDataset.from_folder(tmp_path, "val", masks=True, training=True)


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ([{**row, "iscrowd": 1} for row in objects()], "all 3 objects are crowds"),
        ([], "no image has an object"),
        ([{**row, "image_id": "one"} for row in objects()], "unknown image id"),
    ],
)
def test_nothing_to_evaluate_is_an_error_with_its_cause(rows: list[Any], cause: str, tmp_path: Path) -> None:
    write_folder(tmp_path, [picture(1)], rows, split="val", pictures="val")
    truth = str(tmp_path / "annotations" / "instances_val.json")
    ended = run("eval", "--results", str(perfect(tmp_path)), "--annotations", truth)
    assert ended.code == 2
    assert "nothing to evaluate" in ended.err
    assert cause in ended.err
    with pytest.raises(ConfigError, match=cause):
        open_held_out(tmp_path, "val", limit=None, masks=False)


def test_a_figure_without_ground_truth_is_none(tmp_path: Path) -> None:
    write_folder(tmp_path, [picture(1)], objects(), split="val", pictures="val")
    data = open_held_out(tmp_path, "val", limit=None, masks=False)
    scores = coco_scores(data.annotations, [], "bbox", [1])
    assert scores.metrics["AP_large"] is None
    assert scores.metrics["AP_small"] == 0.0
    assert scores.classes == {"dot": None, "cell": 0.0}
    assert np.isnan(scores.precisions[:, :, 0]).all()


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 1e8, 0, 1e8, 1e8, 0, 1e8]],
        [[0, 0, 39, 47] * 200_000],
        {"size": [10**8, 10**8], "counts": [10**16]},
    ],
)
@pytest.mark.parametrize("side", [48, 10**8, 40_000])
def test_an_outline_or_image_of_any_size_reaches_no_c_code(segmentation: Any, side: int, tmp_path: Path) -> None:
    rows = [annotation(1, 1, [1, 1, 5, 5], segmentation=segmentation)]
    write_folder(tmp_path, [], rows, split="val")
    file = tmp_path / "annotations" / "instances_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": [picture(1, 40, side)]}))
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 1, "category_id": 7, "score": 0.5, "segmentation": segmentation}]))
    ended = run("eval", "--results", str(results), "--annotations", str(file))
    assert ended.code == 2
    assert len(ended.err.splitlines()) <= 4


def test_a_root_category_that_no_annotation_uses_is_no_class(tmp_path: Path) -> None:
    root = {"id": 0, "name": "cells", "supercategory": "none"}
    below = [{**category, "supercategory": "cells"} for category in CATEGORIES]
    write_folder(tmp_path, [picture(1)], objects(), [root, *below])
    assert CocoDataset.from_folder(tmp_path, "train").class_names == ("dot", "cell")
    write_folder(tmp_path, [picture(1)], [*objects(), annotation(9, 1, [1, 1, 9, 9], category_id=0)], [root, *below])
    assert CocoDataset.from_folder(tmp_path, "train").class_names == ("cells", "dot", "cell")


def test_what_is_trained_on_says_which_objects_have_masks(tmp_path: Path) -> None:
    write_folder(tmp_path, [picture(1)], without_mask(1))
    dataset = CocoDataset.from_folder(tmp_path, "train", masks=True)
    config = AugmentConfig(longest_side=48, factors=(1.0, 1.0), crop=48, flip=0.0)
    target = augmented(dataset, 0, config, np.random.default_rng(0)).target
    assert target["has_mask"].tolist() == [True, False, True]
    assert [int(mask.sum()) for mask in target["masks"]] == [20 * 12, 0, 15 * 15]


def test_a_file_of_masks_alone_has_no_has_mask(tmp_path: Path) -> None:
    write_folder(tmp_path, [picture(1)], objects())
    dataset = CocoDataset.from_folder(tmp_path, "train", masks=True)
    config = AugmentConfig(longest_side=48, factors=(1.0, 1.0), crop=48, flip=0.0)
    assert set(augmented(dataset, 0, config, np.random.default_rng(0)).target) == {"boxes", "labels", "masks"}


def test_the_photographs_are_judged_as_their_file_says(data_folder: Path) -> None:
    """pycocotools' own metrics on the raw file, for detections that are half right."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    file = data_folder / "coco" / "annotations" / "instances_val2017.json"
    data = open_held_out(data_folder / "coco", "val2017", limit=None, masks=True)
    raw = json.loads(file.read_bytes())
    rows = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": [row["bbox"][0] + row["id"] % 7, *row["bbox"][1:]],
            "score": 0.1 + row["id"] % 89 / 100,
        }
        for row in raw["annotations"]
    ]
    ours = coco_scores(data.annotations, rows, "bbox", [image["id"] for image in raw["images"]])
    truth = COCO(str(file))
    evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert [value for value in ours.metrics.values() if value is not None] == evaluation.stats.tolist()


@pytest.mark.slow
def test_an_object_without_a_mask_is_learned_by_its_box_and_not_by_its_mask() -> None:
    from tiny_models import tiny_model

    from fpg_zoo.training import Criterion

    criterion = Criterion(tiny_model("mask_rcnn_nano_fpg").eval(), sample_all=True)
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[8.0, 8.0, 60.0, 70.0], [50.0, 40.0, 120.0, 110.0]])
    labels = torch.tensor([0, 1])
    masks = torch.zeros(2, 128, 128, dtype=torch.bool)
    masks[0, 8:70, 8:60] = True

    def losses(**more: Any) -> dict[str, float]:
        target = {"boxes": boxes, "labels": labels, "masks": masks} | more
        return {name: loss.item() for name, loss in criterion(images, [(128, 128)], [target]).items()}

    all_have, one_has = losses(), losses(has_mask=torch.tensor([True, False]))
    assert losses(has_mask=torch.tensor([True, True])) == all_have
    assert {name: one_has[name] for name in one_has if name != "loss_mask"} == {
        name: all_have[name] for name in all_have if name != "loss_mask"
    }
    masks[1] = True  # what is given of it is not looked at
    assert losses(has_mask=torch.tensor([True, False])) == one_has
    assert losses()["loss_mask"] != all_have["loss_mask"]
