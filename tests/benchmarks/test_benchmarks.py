"""What benchmarks measure with: records that are added to, random models with work to do, clocked stages."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import latency
import memory
import pytest
import throughput
import torch
from conftest import ROOT
from harness import measure as harness
from harness.models import at_random, batch_of, draw_files, model_with, whose
from harness.options import named
from harness.stages import clocked
from json_schema import violations
from latency import from_file
from table import scatter
from throughput import draw_folder
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.evaluation.benchmark import RANDOM
from fpg_zoo.evaluation.timing import in_a_process
from fpg_zoo.inference import predictor

pytestmark = pytest.mark.usefixtures("one_thread")
SCHEMA = json.loads((ROOT / "benchmarks" / "schema.json").read_text(encoding="utf-8"))
GIVEN = {"what": "nothing"}
UNITS = {"fps": "images/s", "batch": "images"}


def write(rows: list[dict[str, Any]], command: str = "python benchmarks/latency.py") -> dict[str, Any]:
    target = harness.write(
        "latency", command, rows, device="cpu", inputs=GIVEN, units=UNITS, identified_by=("model", "batch")
    )
    return json.loads(target.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_rows_of_what_was_not_run_again_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    write([{"model": "a", "batch": 1, "fps": 1.0}, {"model": "b", "batch": 1, "fps": 2.0}])
    content = write([{"model": "b", "batch": 1, "fps": 3.0}], "python benchmarks/latency.py b")
    assert content["rows"] == [
        # Where it differs, a row that stays says where it is from.
        {"command": "python benchmarks/latency.py", "model": "a", "batch": 1, "fps": 1.0},
        {"model": "b", "batch": 1, "fps": 3.0},
    ]
    assert content["command"] == "python benchmarks/latency.py b"
    assert content["units"] == UNITS


def test_a_figure_has_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="figures without a unit: area, spread"):
        write([{"model": "a", "batch": 1, "good": True, "area": 3, "spread": {"median": 1.0}}])
    assert not list(tmp_path.iterdir())


def test_a_function_has_a_process_of_its_own() -> None:
    assert in_a_process(max, 2, 3) == 3
    with pytest.raises(ZeroDivisionError):
        in_a_process(divmod, 1, 0)


@pytest.mark.parametrize("name", ["mask_rcnn_nano_fpg", "retinanet_nano_fpg"])
@pytest.mark.slow
def test_random_weights_give_as_many_detections_as_trained_ones_may(name: str) -> None:
    model = at_random(name)
    images, sizes = batch_of(name, 1)
    (found,) = model.detect(images, sizes)
    assert len(found) == 100
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    again = at_random(name).detect(images, sizes)[0]
    assert torch.equal(found.boxes, again.boxes)
    optimized = fpg_zoo.optimize(model, dtype=torch.bfloat16)
    assert len(optimized.detect(images.bfloat16(), sizes)[0]) == 100


def test_published_weights_are_taken_where_they_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert whose("retinanet_nano_fpg") == "shapes"
    assert len(model_with("retinanet_nano_fpg", "shapes").class_names) == 10
    assert whose("retinanet_r50_fpn") == RANDOM
    assert len(model_with("retinanet_nano_fpg", RANDOM).class_names) == 80


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("mask_rcnn_nano_fpg", {"backbone", "neck", "RPN", "proposals", "selection", "box head", "mask head"}),
        ("retinanet_nano_fpg", {"backbone", "neck", "dense head", "selection"}),
    ],
)
@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.slow
def test_the_stages_add_up_to_the_whole(name: str, stages: set[str], optimized: bool, tmp_path: Path) -> None:
    model = fpg_zoo.create_model(name, pretrained=True)
    model = fpg_zoo.optimize(model) if optimized else model
    files = draw_files(tmp_path, 320, 2)
    whole, seconds = from_file(model, files, runs=2)
    assert seconds.keys() == stages | {"reading", "preprocessing", "pasting"}
    assert 0.7 * whole.median < sum(seconds.values()) < 1.1 * whole.median


def test_clocks_are_taken_off(tmp_path: Path) -> None:
    model = fpg_zoo.create_model("retinanet_nano_fpg", pretrained=True)
    read, select = predictor.read_image, model.select
    with clocked(model) as seconds:
        assert predictor.read_image is not read
        start = time.perf_counter()
        fpg_zoo.Predictor(model)(draw_files(tmp_path, 64, 1))
        took = time.perf_counter() - start
    assert predictor.read_image is read
    assert model.select is select
    assert "forward" not in vars(model.backbone)
    assert 0 < sum(seconds.values()) < took


def test_files_are_drawn_as_a_folder_that_evaluation_reads(tmp_path: Path) -> None:
    files = draw_folder(tmp_path, 64, 2)
    dataset = CocoDataset.from_folder(tmp_path, "val", masks=False, training=False)
    assert [dataset.image_info(index).file.name for index in range(len(dataset))] == [file.name for file in files]
    assert dataset[0].image.shape == (3, 48, 64)


def test_the_scatter_is_a_picture_with_every_model_in_it() -> None:
    points = [scatter.Point("A", "FPN", 38.0, 4.0), scatter.Point("B", "FPG", 42.0, 1.0)]
    text = scatter.drawn([scatter.Panel("speed & more", "fps", points), scatter.Panel("memory", "MB", [])], "a note")
    root = xml.etree.ElementTree.fromstring(text)
    shown = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"speed & more", "FPN", "FPG", "fps", "not measured yet", "a note"} <= set(shown)
    # 0 to 4 over 350 pixels from 52 on: 1 is at 139.5; AP from 37 to 43 over 270 up from 334: 42 is at 109.
    square = next(root.iter("{http://www.w3.org/2000/svg}rect"))
    square = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if rect.get("class") == "m1"][1]
    assert float(square.get("x", 0)) + 4.5 == pytest.approx(52 + 350 / 4, abs=0.1)
    assert float(square.get("y", 0)) + 4.5 == pytest.approx(334 - 270 * 5 / 6, abs=0.1)


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 1.7, 6, [0, 0.5, 1, 1.5, 2]),
        (37.4, 43.5, 8, [37, 38, 39, 40, 41, 42, 43, 44]),
        (0, 970, 6, [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, most: int, expected: list[float]) -> None:
    assert scatter.ticks(low, high, most) == expected


@pytest.mark.slow
def test_an_exported_file_is_measured_as_a_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fpg_zoo.export(tiny_model("retinanet_nano_fpg"), tmp_path / "model.torchscript", size=(128, 128)).path
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    rows = {}
    for script in (latency, throughput):
        monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", str(file), "--runs", "2", "--device", "cpu"])
        script.main()
        content = json.loads((tmp_path / f"{script.__name__}.json").read_text(encoding="utf-8"))
        assert violations(content, SCHEMA) == []
        rows[script] = content["rows"]
        assert {(row["model"], row["weights"], row["form"]) for row in rows[script]} == {(str(file), *["exported"] * 2)}
    (row,) = rows[latency]
    assert row["input"]["shape"] == [1, 3, 128, 128]
    assert row["stages"].keys() == {"reading", "preprocessing", "network", "pasting"}
    assert row["detections"] == 100
    assert [row["path"] for row in rows[throughput]] == ["call", "call", "stream", "stream", "eval"]
    monkeypatch.setattr("sys.argv", ["memory.py", "--inference", str(file)])
    with pytest.raises(SystemExit, match="2"):
        memory.main()
    assert "model.torchscript: exported files are for latency.py, throughput.py" in capsys.readouterr().err


def test_models_of_ones_own_are_measured_too(tmp_path: Path) -> None:
    fpg_zoo.create_model("retinanet_nano_fpg", pretrained=True).save_pretrained(tmp_path / "saved")
    (tmp_path / "own.toml").write_text('base = "retinanet_nano_fpg"\n[neck]\nout_channels = 24\n')
    names = named([f"local-dir:{tmp_path / 'saved'}", str(tmp_path / "own.toml"), "mask_rcnn_nano*"])
    assert [(whose(name), model_with(name, whose(name)).config.neck.out_channels) for name in names] == [
        ("saved", 48),
        (RANDOM, 24),
        ("shapes", 48),
    ]
