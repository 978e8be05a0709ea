"""`fpg-zoo eval` of a model: shared among processes, killed and resumed, metric for metric what one process finds."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from command import run
from evaluating import NAME, frugal_model, kill, make_photographs, renamed, start
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_models import tiny_model
from training_runs import make_data, small_model

from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.evaluation.coco_metrics import METRICS
from fpg_zoo.evaluation.detect import detect_all, evaluate

pytestmark = pytest.mark.usefixtures("one_thread")
PICTURES = 44
IOU_TYPES = {"box": "bbox", "mask": "segm"}


class Alone(NamedTuple):
    """What one process makes of the photographs."""

    options: list[Any]
    truth: Path
    results: bytes
    figures: bytes


@pytest.fixture(scope="module")
def alone(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("photographs")
    frugal_model().save_pretrained(folder / "model.safetensors")
    options = ["eval", "--checkpoint", folder / "model.safetensors", "--batch-size", 3, "--device", "cpu"]
    first = run(*options, "--workers", 2, "--data", data_folder / "coco", "--save", folder / "first.json")
    assert first.code == 0, first.err
    made = make_photographs(data_folder / "coco", folder / "set", json.loads((folder / "first.json").read_text()))
    options += ["--data", made, "--workers", 0]
    done = run(*options, "--save", folder / "alone.json", "--json", folder / "figures.json")
    assert done.code == 0, done.err
    assert (folder / "alone.json").read_bytes() == (folder / "first.json").read_bytes()  # the truth is not looked at
    return Alone(
        options[1:],
        made / "annotations" / "instances_val2017.json",
        (folder / "alone.json").read_bytes(),
        (folder / "figures.json").read_bytes(),
    )


def _assert_as_alone(alone: Alone, folder: Path) -> None:
    assert (folder / "r.json").read_bytes() == alone.results
    assert (folder / "f.json").read_bytes() == alone.figures
    assert sorted(path.name for path in folder.iterdir()) == ["f.json", "r.json"]  # no parts


def _pycocotools(truth: Path, rows: list[dict[str, Any]], kind: str) -> tuple[list[float], dict[str, float]]:
    """Its metrics, and AP of the classes that have truth."""
    left_out = "segmentation" if kind == "bbox" else "bbox"  # or it would take an object's size from its box
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(truth))
        found = annotations.loadRes([{key: row[key] for key in row if key != left_out} for row in rows])
        judged = COCOeval(annotations, found, kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        figures = [float(value) for value in judged.stats]
        classes = {}
        for category in annotations.dataset["categories"]:
            judged.params.catIds = [category["id"]]
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
            if judged.stats[0] >= 0:
                classes[category["name"]] = float(judged.stats[0])
    return figures, classes


@pytest.mark.slow
def test_figures_are_those_of_pycocotools_of_each_class_too(alone: Alone) -> None:
    told = json.loads(alone.figures)
    assert list(told) == ["box", "mask"]
    for label, kind in IOU_TYPES.items():
        figures, classes = _pycocotools(alone.truth, json.loads(alone.results), kind)
        assert told[label]["figures"] == pytest.approx(dict(zip(METRICS, figures, strict=True)), abs=1e-9)
        assert 0.1 < told[label]["figures"]["AP"] < 0.9  # something to compare
        assert len(classes) > 5
        assert len(told[label]["classes"]) == 80
        with_truth = {name: value for name, value in told[label]["classes"].items() if value is not None}
        assert with_truth == pytest.approx(classes, abs=1e-9)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.slow
def test_several_processes_find_what_one_finds(processes: int, alone: Alone, tmp_path: Path) -> None:
    saved = ["--save", tmp_path / "r.json", "--json", tmp_path / "f.json"]
    report = tmp_path.with_name(f"{tmp_path.name}-report") / "report.html"
    told, errors = start(*alone.options, *saved, "--report", report, processes=processes).communicate(timeout=300)
    assert told.splitlines()[1].startswith("AP "), errors
    assert told.count("written:") == 3  # one process tells
    _assert_as_alone(alone, tmp_path)
    assert report.read_text(encoding="utf-8").count("data:image/jpeg") == 12


@pytest.mark.parametrize(("processes", "then"), [(1, 2), (3, 1)])
@pytest.mark.slow
def test_a_killed_run_goes_on_with_any_number_of_processes(
    processes: int, then: int, alone: Alone, tmp_path: Path
) -> None:
    saved = ["--save", tmp_path / "r.json", "--json", tmp_path / "f.json"]
    killed = start(*alone.options, *saved, processes=processes)
    _wait_for_lines(killed, tmp_path, 2 + 4 * processes)
    kill(killed)
    parts = sorted(tmp_path.glob("r.json.part-*.jsonl"))
    assert len(parts) == processes
    parts[-1].write_bytes(parts[-1].read_bytes()[:-20])  # as if killed within a line
    done = [image_id for part in parts for image_id in _images_in(part)]
    assert len(set(done)) == len(done)
    assert 0 < len(done) < PICTURES
    if then == 1:
        assert run("eval", *alone.options, *saved).code == 0
    else:
        told, errors = start(*alone.options, *saved, processes=then).communicate(timeout=300)
        assert "written:" in told, errors
    _assert_as_alone(alone, tmp_path)


def _wait_for_lines(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    end = time.monotonic() + 120
    while sum(part.read_bytes().count(b"\n") for part in folder.glob("r.json.part-*")) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def _images_in(part: Path) -> list[int]:
    lines = part.read_bytes().split(b"\n")[1:-1]
    return [image_id for line in lines for image_id, _ in json.loads(line)]


@pytest.mark.slow
def test_classes_are_mapped_by_name_whatever_their_order(alone: Alone, tmp_path: Path) -> None:
    content = json.loads(alone.truth.read_text())
    for entry in content["categories"]:
        entry["id"] = 1000 - entry["id"]
    for entry in content["annotations"]:
        entry["category_id"] = 1000 - entry["category_id"]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    (tmp_path / "val").symlink_to(alone.truth.parents[1] / "val2017")
    few = ["--limit", 6, "--save", tmp_path / "r.json"]
    done = run("eval", *alone.options, "--data", tmp_path, *few)  # the last --data counts
    assert done.code == 0, done.err
    first = {image["id"] for image in content["images"][:6]}
    expected = [row for row in json.loads(alone.results) if row["image_id"] in first]
    for row in expected:
        row["category_id"] = 1000 - row["category_id"]
    assert len(expected) > 6
    assert json.loads((tmp_path / "r.json").read_text()) == expected


# Data of one's own, and the procedural scenes


def _two_classes(folder: Path) -> Path:
    """A checkpoint for the classes of `make_data`."""
    small_model().save_pretrained(folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


def test_a_model_and_data_of_other_classes_are_refused_with_the_difference(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", pictures=2, split="val")
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 1, "name": "dark"}, {"id": 2, "name": "bright"}]
    file.write_text(json.dumps(content))
    ended = run("eval", "--checkpoint", _two_classes(tmp_path), "--data", folder, "--device", "cpu", "--workers", 0)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1] == (
        "fpg-zoo: the 2 classes of retinanet_nano_fpg are not the 2 of the data: only the model has 'light'; only the "
        "data has 'bright'; evaluate on data of the model's classes, under the same names"
    )


@pytest.mark.parametrize("precision", [(), ("--dtype", "bf16")])
def test_the_procedural_scenes(precision: tuple[str, ...], tmp_path: Path) -> None:
    shapes = ShapesDataset("val", num_images=3)
    model = renamed(tiny_model("retinanet_nano_fpg"), shapes.class_names)
    model.save_pretrained(tmp_path / "model.safetensors")
    options = ["--checkpoint", tmp_path / "model.safetensors", "--data", "shapes", "--limit", 3, "--device", "cpu"]
    saved = ["--json", tmp_path / "f.json", "--save", tmp_path / "r.json"]
    done = run("eval", *options, "--workers", 0, *precision, *saved)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-2:] == [f"written: {tmp_path / 'f.json'}", f"written: {tmp_path / 'r.json'}"]
    if precision:
        model = model.to(torch.bfloat16)
    expected = detect_all(model, shapes, shapes.category_ids, batch_size=8)
    assert len(expected) > 10
    assert json.loads((tmp_path / "r.json").read_text()) == expected
    figures = evaluate(model, shapes, shapes.category_ids, batch_size=8)
    found = json.loads((tmp_path / "f.json").read_text())["box"]["figures"]
    assert {f"box_{name}": value for name, value in found.items()} == figures


def test_an_annotation_file_and_its_images_apart(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", pictures=3, split="val")
    truth = tmp_path / "elsewhere" / "truth.json"
    truth.parent.mkdir()
    (folder / "annotations" / "instances_val.json").rename(truth)
    options = ["--checkpoint", _two_classes(tmp_path), "--device", "cpu", "--workers", 0]
    apart = run("eval", *options, "--annotations", truth, "--images", folder / "val", "--save", tmp_path / "r.json")
    assert apart.code == 0, apart.err
    (folder / "annotations" / "instances_val.json").write_bytes(truth.read_bytes())
    together = run("eval", *options, "--data", folder, "--save", tmp_path / "s.json")
    assert together.code == 0, together.err
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "s.json").read_bytes()
    assert apart.out.replace("r.json", "s.json") == together.out


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((), "nothing to evaluate: give --model NAME"),
        (("--model", NAME), "no images: give --data DIR"),
        (("--model", "mask_rcnn", "--data", "shapes"), "no model 'mask_rcnn' in the zoo"),
        (("--model", NAME, "--data", "shapes", "--limit", "0"), "--limit 0: it takes at least 1"),
        (("--model", NAME, "--data", "shapes", "--batch-size", "0"), "--batch-size 0: it takes at least 1"),
        (("--model", NAME, "--data", "shapes", "--workers", "-1"), "--workers -1: it takes at least 0"),
        (("--model", NAME, "--data", "shapes", "--device", "tpu"), "device 'tpu' cannot be used here"),
        (("--model", NAME, "--data", "shapes", "--split", "val"), "split 'val': the procedural scenes have none"),
        (("--model", NAME, "--data", "nowhere"), "nowhere: no such folder; name the one of the data set"),
        (("--model", NAME, "--data", "shapes", "--save", "."), ".: a folder; name the file to write"),
        (("--model", NAME, "--data", "shapes", "--json", "."), ".: a folder; name the file to write"),
        (("--checkpoint", "none.safetensors", "--data", "shapes"), "none.safetensors"),
        (("--results", "r.json"), "no --annotations: --results RESULTS and --annotations F go together"),
        (("--annotations", "a.json"), "nothing to evaluate: give --model NAME"),
        (("--model", NAME, "--annotations", "a.json"), "a.json: no such file; name an annotation file"),
        (("--results", "r", "--annotations", "a", "--limit", "3", "--model", NAME), "--results and --model, --limit"),
    ],
)
def test_eval_refuses_in_one_line(
    arguments: tuple[str, ...], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("eval", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert cause in ended.err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_what_was_begun_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", pictures=3, split="val")
    picture = folder / "val" / "003.png"
    good = picture.read_bytes()
    picture.write_bytes(b"nothing")
    options = ["--checkpoint", _two_classes(tmp_path), "--data", folder, "--device", "cpu"]
    options += ["--workers", 0, "--batch-size", 1, "--save", tmp_path / "r.json"]
    ended = run("eval", *options)
    assert ended.code == 2
    assert "003.png: not an image in a format that is read" in ended.err.splitlines()[-1]
    part = tmp_path / "r.json.part-0.jsonl"
    kept = part.read_bytes()
    assert _images_in(part) == [1, 2]
    for other, cause in ((("--limit", 2), "number of images 3, now 2"), (("--dtype", "bf16"), "precision float32")):
        ended = run("eval", *options, *other)
        assert ended.code == 2
        line = ended.err.splitlines()[-1]
        assert f"{part}: begun with another" in line
        assert cause in line
        assert "or remove" in line
        assert part.read_bytes() == kept
    assert not (tmp_path / "r.json").exists()
    picture.write_bytes(good)
    assert run("eval", *options).code == 0
    assert (tmp_path / "r.json").is_file()
    assert not part.exists()
