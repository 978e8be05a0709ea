"""How sure an AP is: resampled metrics are pycocotools' own, a seed draws the same, and a pair is drawn together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run

from fpg_zoo.errors import ConfigError
from fpg_zoo.evaluation.coco_metrics import METRICS, Scores, coco_scores
from fpg_zoo.evaluation.intervals import Resampled, check_draws, difference_intervals, intervals

CLASSES = 3
SIDE = 200


def drawn(images: int, seed: int, *, found: float = 0.7) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations with crowds, and detections of a part of the objects among wrong ones."""
    random = np.random.default_rng(seed)
    objects: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []

    def box() -> list[float]:
        return [float(value) for value in (*random.uniform(0, 120, 2), *random.uniform(10, 80, 2))]

    for image in range(1, images + 1):
        for _ in range(random.poisson(4)):
            one, category = box(), int(random.integers(1, CLASSES + 1))
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": one,
                    "area": one[2] * one[3],
                    "iscrowd": int(random.random() < 0.1),
                }
            )
            if random.random() < found:
                moved = [value + random.normal(0, 3) for value in one]
                rows.append(
                    {"image_id": image, "category_id": category, "bbox": moved, "score": float(random.beta(4, 2))}
                )
        for _ in range(random.poisson(3)):
            category = int(random.integers(1, CLASSES + 1))
            rows.append({"image_id": image, "category_id": category, "bbox": box(), "score": float(random.beta(2, 3))})
    content = {
        "images": [{"id": image, "width": SIDE, "height": SIDE} for image in range(1, images + 1)],
        "annotations": objects,
        "categories": [{"id": category, "name": f"class {category}"} for category in range(1, CLASSES + 1)],
    }
    return content, rows


def scores_of(content: dict[str, Any], rows: list[dict[str, Any]]) -> Scores:
    return coco_scores(content, rows, "bbox", [image["id"] for image in content["images"]])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_images_that_count_once_or_not_at_all_give_pycocotools_metrics(seed: int) -> None:
    content, rows = drawn(40, seed)
    resampled = Resampled(scores_of(content, rows).matches)
    random = np.random.default_rng(seed)
    for share in (1.0, 0.5, 0.1):
        kept = random.random(40) < share
        chosen = {image["id"] for image, keep in zip(content["images"], kept, strict=True) if keep}
        part = {
            "images": [image for image in content["images"] if image["id"] in chosen],
            "annotations": [one for one in content["annotations"] if one["image_id"] in chosen],
            "categories": content["categories"],
        }
        expected = scores_of(part, [row for row in rows if row["image_id"] in chosen]).metrics
        found = resampled(kept.astype(np.float64))
        assert set(found) == set(METRICS)
        for name, value in found.items():
            wanted = expected[name]
            assert np.isnan(value) if wanted is None else value == pytest.approx(wanted, abs=1e-9)


def test_an_image_that_counts_twice_is_two_of_it() -> None:
    """By hand: a right detection, a wrong one of a higher score in another image."""
    content, _ = drawn(2, 0)
    content["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0}
    ]
    rows = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "score": 0.5},
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 50, 50], "score": 0.9},
    ]
    resampled = Resampled(scores_of(content, rows).matches)
    for weights, ap in (([1, 1], 1 / 2), ([2, 1], 2 / 3), ([1, 2], 1 / 3), ([3, 0], 1.0)):
        assert resampled(np.array(weights, dtype=np.float64))["AP"] == pytest.approx(ap)
    assert np.isnan(resampled(np.array([0.0, 2.0]))["AP"])


def test_a_seed_draws_the_same_and_more_images_are_surer() -> None:
    few, many = (scores_of(*drawn(number, 5)).matches for number in (25, 400))
    first = intervals({"bbox": few}, resamples=100, seed=3)
    assert first == intervals({"bbox": few}, resamples=100, seed=3)
    assert first != intervals({"bbox": few}, resamples=100, seed=4)
    wide, narrow = (intervals({"bbox": matches}, resamples=100)["bbox"]["AP"] for matches in (few, many))
    assert (wide.upper - wide.lower) > 2 * (narrow.upper - narrow.lower)  # 16 times the images: a quarter, about


def test_a_difference_is_surer_than_its_parts() -> None:
    content, rows = drawn(60, 7)
    worse = [{**row, "score": row["score"] * 0.5} if place % 10 == 0 else row for place, row in enumerate(rows)]
    first, second = scores_of(content, rows), scores_of(content, worse)
    same = difference_intervals({"bbox": first.matches}, {"bbox": first.matches}, resamples=50)["bbox"]["AP"]
    assert same == (0, 0)
    alone = intervals({"bbox": first.matches}, resamples=200)["bbox"]["AP"]
    paired = difference_intervals({"bbox": first.matches}, {"bbox": second.matches}, resamples=200)["bbox"]["AP"]
    assert (paired.upper - paired.lower) < 0.7 * (alone.upper - alone.lower)


@pytest.mark.parametrize(("resamples", "seed", "cause"), [(19, 0, "at least 20"), (100, -1, "at least 0")])
def test_numbers_that_nothing_is_drawn_by_are_refused(resamples: int, seed: int, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        check_draws(resamples, seed)


def test_the_commands_tell_intervals(tmp_path: Path) -> None:
    content, rows = drawn(30, 1)
    worse = [row for place, row in enumerate(rows) if place % 4]
    files = {"a.json": rows, "b.json": worse, "truth.json": content}
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    truth, printed = str(tmp_path / "truth.json"), tmp_path / "printed.json"
    given = ["--results", tmp_path / "a.json", "--annotations", truth]
    ended = run("eval", *given, "--interval", "50", "--json", printed, "--report", tmp_path / "report.html")
    assert ended.code == 0, ended.err
    found = json.loads(printed.read_text())["box"]
    lower, upper = found["intervals"]["AP50"]
    assert f"box AP50 {found['figures']['AP50']:.3f} (95 %: {lower:.3f} to {upper:.3f})" in ended.out.splitlines()
    assert 'id="intervals"' in (tmp_path / "report.html").read_text()
    options = ["--annotations", truth, "--resamples", "50", "--json", printed]
    ended = run("compare", tmp_path / "a.json", tmp_path / "b.json", *options)
    assert ended.code == 0, ended.err
    row = json.loads(printed.read_text())["box"]["metrics"]["AP"]
    assert row["difference"] == pytest.approx(row["second"] - row["first"])
    assert row["lower"] <= row["upper"]
    assert f"(95 %: {row['lower']:+.3f} to {row['upper']:+.3f})" in ended.out
    refused = run("compare", tmp_path / "a.json", tmp_path / "none.json", *options)
    assert refused.code == 2
    assert "none.json" in refused.err
