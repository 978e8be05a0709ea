"""benchmarks/reproduce_table.py: verdicts, exit codes, what is not measured again, what goes on after a failure."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accuracy
import pytest
import torch
from conftest import ROOT
from harness.measure import Row, record, save
from harness.models import unavailable
from json_schema import violations
from table import cells as table_cells
from table import reproduce as reproduce_table
from table.readme import Metrics, table_text

import fpg_zoo
from fpg_zoo.config.catalog import ARCHITECTURES
from fpg_zoo.data.shapes import ShapesDataset, write_coco
from fpg_zoo.errors import DigestError
from fpg_zoo.evaluation.benchmark import RANDOM
from fpg_zoo.evaluation.detect import evaluate
from fpg_zoo.evaluation.timing import processor
from fpg_zoo.weights.manifest import Manifest, load_manifest

NANO = ("mask_rcnn_nano_fpg.shapes", "retinanet_nano_fpg.shapes", "faster_rcnn_nano_fpg.shapes")
CELLS = ROOT / "benchmarks" / "results" / "table" / "cells"
SCHEMA = json.loads((ROOT / "benchmarks" / "schema.json").read_text(encoding="utf-8"))


class Measuring:
    """Stands for `measure_cell`: AP as published plus what `off` says, round numbers for the rest."""

    def __init__(self) -> None:
        self.measured: list[tuple[str, str]] = []
        self.off: dict[str, float] = {}
        self.failing: tuple[str, str] | None = None

    def __call__(self, cell: table_cells.Cell, run: table_cells.Run, *, alone: bool = True) -> Row:
        name = cell.entry.name
        self.measured.append((name, cell.column))
        if (name, cell.column) == self.failing:
            raise RuntimeError("the roof came down\nand more")
        rows: list[Row]
        if cell.column == "ap":
            published = {"box AP": cell.entry.box_ap, "mask AP": cell.entry.mask_ap}
            off = self.off.get(name, 0.0)
            rows = [{"figure": figure, "measured": ap + off} for figure, ap in published.items() if ap is not None]
        elif cell.column == "memory":
            rows = [{"needed_mb": 250.0}]
        else:
            rows = [{"form": form, "fps": fps} for form, fps in (("plain", 2.0), ("optimized", 4.0))]
        for row in rows:
            row.update(model=name, weights=cell.weights)
        made = record(run.command, rows, device=run.device, inputs={"what": "none"}, units=table_cells.UNITS)
        made["settings"] = cell.settings
        made["environment"]["seconds"] = 1.0
        save(made, cell.file)
        return made


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    """Nothing is measured nor fetched."""
    made = Measuring()
    monkeypatch.setattr(reproduce_table, "measure_cell", made)
    packaged = {entry.name for entry in load_manifest().checkpoints if entry.packaged}
    monkeypatch.setattr(reproduce_table, "unavailable", lambda name: None if name in packaged else "no network")
    monkeypatch.setattr(sys, "argv", ["reproduce_table.py"])  # the record has the command, which pytest's is not
    return made


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: Any) -> tuple[int, str, str]:
        code = reproduce_table.main(["--device", "cpu", "--output", str(tmp_path), *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.fixture
def another_manifest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Changes what was published of a checkpoint."""

    def change(name: str, **fields: Any) -> None:
        true = load_manifest()
        entries = tuple(
            dataclasses.replace(entry, **fields) if entry.name == name else entry for entry in true.checkpoints
        )
        changed = Manifest(true.host, true.recipes, entries)
        monkeypatch.setattr(table_cells, "load_manifest", lambda: changed)

    return change


def table(folder: Path) -> dict[tuple[str, str], Row]:
    rows = json.loads((folder / "table.json").read_text(encoding="utf-8"))["rows"]
    return {(row["model"], row["figure"]): row for row in rows}


def results(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").open(encoding="utf-8")))


def test_published_stands_beside_measured(
    measuring: Measuring,
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    another_manifest: Callable[..., None],
) -> None:
    another_manifest(NANO[0], box_ap=55.0, mask_ap=48.0)
    measuring.off = {NANO[0]: 0.1}  # at the tolerance, which 55.1 - 55.0 is beyond in floating point
    code, out, err = run("--quick")
    assert (code, err) == (0, "")
    assert "4 of 4 verdicts met, 0 cells failed" in out
    rows = table(tmp_path)
    assert {name for name, _ in rows} == set(NANO)
    box = rows[NANO[0], "box AP"]
    assert (box["published"], box["measured"], box["difference"]) == (55.0, 55.1, 0.1)
    assert (box["tolerance"], box["verdict"], box["weights"], box["unit"]) == (0.1, "met", "shapes", "percent")
    fps = rows[NANO[0], "fps optimized"]
    assert (fps["published"], fps["measured"], fps["verdict"]) == (None, 4.0, None)
    assert violations(json.loads((tmp_path / "table.json").read_text()), SCHEMA) == []
    lines = {line["model"]: line for line in results(tmp_path)}
    assert lines.keys() == set(NANO)
    line = lines[NANO[0]]
    assert [line[f"shapes_{kind}_ap"] for kind in ("box", "mask")] == ["55.1", "48.1"]
    assert (line["shapes_box_ap_published"], line["coco_box_ap"], line["coco_box_ap_published"]) == ("55.0", "", "")
    assert (line["params_m"], line["gflops"], line["img_size"], line["fps"]) == ("2.23", "7.2", "384x384", "2.0")
    assert line["device"] == f"{processor()}, {torch.get_num_threads()} threads"
    assert (
        "| `mask_rcnn_nano_fpg.shapes` | 55.0 | 55.10 | +0.10 | met | 48.0 | 48.10 | +0.10 | met | 2.00 | 4.00 |" in out
    )
    assert out.startswith("mask_rcnn_nano_fpg.shapes") or "box AP 55.10, mask AP 48.10 (shapes weights; 1 s)" in out


def test_results_of_other_devices_stay(
    measuring: Measuring, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "results.csv").write_text(f"model,device,fps\n{NANO[0]},Abacus 3000,0.1\n", encoding="utf-8")
    for _ in range(2):
        run("--quick")
        lines = [line for line in results(tmp_path) if line["model"] == NANO[0]]
        assert [(line["device"] == "Abacus 3000", line["fps"], line["params_m"]) for line in lines] == [
            (True, "0.1", ""),
            (False, "2.0", "2.23"),
        ]


def test_a_missed_verdict_is_told_by_the_exit_code(
    measuring: Measuring, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    measuring.off = {NANO[1]: -0.11}
    code, out, _ = run("--quick")
    assert code == 1
    assert "3 of 4 verdicts met" in out
    assert table(tmp_path)[NANO[1], "box AP"]["verdict"] == "missed"


def test_what_is_there_is_not_measured_again(
    measuring: Measuring,
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    another_manifest: Callable[..., None],
) -> None:
    run("--quick", "--columns", "ap")
    assert sorted(measuring.measured) == sorted((name, "ap") for name in NANO)
    measuring.measured.clear()
    run("--quick")
    assert {column for _, column in measuring.measured} == {"memory", "fps"}
    measuring.measured.clear()
    code, out, _ = run("--quick", "--columns", "fps")
    assert (code, measuring.measured) == (0, [])
    assert "4 of 4 verdicts met" in out  # AP is known, though not asked for
    run("--quick", "--columns", "ap", "--limit", 3)
    assert sorted(measuring.measured) == sorted((name, "ap") for name in NANO)
    rows = table(tmp_path)
    assert (rows[NANO[0], "box AP"]["verdict"], rows[NANO[0], "box AP"]["difference"]) == (None, None)
    measuring.measured.clear()
    another_manifest(NANO[2], sha256="0" * 64)
    run("--quick")
    assert {name for name, _ in measuring.measured} == {NANO[2]}
    measuring.measured.clear()
    run("--quick", "--columns", "memory", "--force")
    assert sorted(measuring.measured) == sorted((name, "memory") for name in NANO)


def test_a_file_that_was_spoilt_is_measured_again(
    measuring: Measuring, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    run("--quick", "--columns", "ap")
    measuring.measured.clear()
    for spoilt, name in zip(("", "[]", '{"settings": {}}'), NANO, strict=True):
        (file,) = (tmp_path / "cells").glob(f"{name}.ap.*.json")
        file.write_text(spoilt)
    assert run("--quick", "--columns", "ap")[0] == 0
    assert sorted(measuring.measured) == sorted((name, "ap") for name in NANO)


def test_the_rest_goes_on_after_a_failure(
    measuring: Measuring, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    measuring.failing = NANO[1], "memory"
    code, out, err = run("--quick")
    assert code == 1
    assert err == f"reproduce_table.py: {NANO[1]}, memory: the roof came down\n"
    assert "4 of 4 verdicts met, 1 cells failed" in out
    rows = table(tmp_path)
    memory = rows[NANO[1], "inference memory"]
    assert (memory["measured"], memory["note"]) == (None, "failed: the roof came down")
    assert rows[NANO[2], "inference memory"]["measured"] == 250
    measuring.failing = None
    measuring.measured.clear()
    assert run("--quick")[0] == 0
    assert measuring.measured == [(NANO[1], "memory")]


def test_what_cannot_be_had_is_blank_or_random_and_said(
    measuring: Measuring, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    write_coco(tmp_path / "data", "val", 1, size=(32, 32))
    code, _, err = run("--data", tmp_path / "data", "--models", "retinanet_r50_fp*", "*.coco_2021")
    assert code == 0
    assert err.count("retinanet_r50_fpn.coco: weights not available: no network") == 1
    rows = table(tmp_path)
    assert {name for name, _ in rows} == set(NANO) | {
        "faster_rcnn_r50_fpg.coco_2021",
        "faster_rcnn_r50_fpg_chn128.coco_2021",
        "mask_rcnn_r50_fpg.coco_2021",
        "retinanet_r50_fpg.coco_2022",
        "retinanet_r50_fpg_chn128.coco_2022",
        "retinanet_r50_fpn.coco",
    }
    ap = rows["retinanet_r50_fpn.coco", "box AP"]
    assert (ap["published"], ap["measured"], ap["verdict"], ap["note"]) == (37.9, None, None, "weights not available")
    fps = rows["retinanet_r50_fpn.coco", "fps"]
    # Published for a V100 and another size, so that there is nothing to compare.
    assert (fps["published"], fps["measured"], fps["difference"], fps["weights"]) == (22.9, 2.0, None, "random")


def test_without_data_ap_on_coco_is_blank(
    measuring: Measuring,
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reproduce_table, "unavailable", lambda _: None)
    assert run("--models", "mask_rcnn_r50_fpn", "--columns", "ap")[0] == 0
    ap = table(tmp_path)["mask_rcnn_r50_fpn.coco_2022", "mask AP"]
    assert (ap["published"], ap["measured"], ap["note"]) == (35.6, None, "no data given")


def test_weights_that_are_not_the_published_ones_are_a_failure(
    measuring: Measuring, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        if name == NANO[0]:
            raise DigestError("altered")

    monkeypatch.setattr(reproduce_table, "unavailable", refuse)
    code, _, err = run("--quick", "--columns", "ap")
    assert (code, err) == (1, f"reproduce_table.py: {NANO[0]}, ap: altered\n")
    assert len(measuring.measured) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--columns", "ap,speed"), "no column 'speed': known are ap, memory, fps"),
        (("--models", "yolo*"), "nothing matches 'yolo*': known are faster_rcnn_nano_fpg,"),
        (("--models", "retinanet*.v9"), "nothing matches 'retinanet*.v9': known are faster_rcnn_r50_fpg.coco_2022,"),
        (("--quick", "--models", "retina*"), "leave out --data and --models"),
        (("--limit", "0"), "--limit 0: it takes at least 1"),
        (("--limit", "few"), "invalid int value: 'few'"),
        (("--device", "abacus"), "device 'abacus' cannot be used here"),
        (("--data", "nowhere"), "nowhere"),
        (("--fast",), "unrecognized arguments: --fast"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    measuring: Measuring,
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
    assert not list(tmp_path.iterdir())


def test_the_committed_ap_of_the_small_models_is_that_of_the_manifest(
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    another_manifest: Callable[..., None],
) -> None:
    monkeypatch.setattr(reproduce_table, "measure_cell", lambda cell, *_, **__: pytest.fail(f"not there: {cell.file}"))
    shutil.copytree(CELLS, tmp_path / "cells")
    code, out, _ = run("--quick", "--columns", "ap")
    assert code == 0, out
    assert "4 of 4 verdicts met" in out
    entry = load_manifest().find("faster_rcnn_nano_fpg", "shapes")
    assert entry.box_ap is not None
    another_manifest(entry.name, box_ap=entry.box_ap + 1)
    code, out, _ = run("--quick", "--columns", "ap")
    assert code == 1
    assert "3 of 4 verdicts met" in out


@pytest.mark.slow
def test_ap_on_a_folder_is_that_of_the_evaluation(tmp_path: Path, one_thread: None) -> None:
    name = "retinanet_nano_fpg"
    write_coco(tmp_path / "data", "val", 4)
    options: dict[str, Any] = {"device": "cpu", "workers": 0}
    found = accuracy.average_precision(f"{name}.shapes", tmp_path / "data", limit=3, parts=tmp_path / "a", **options)
    assert len(list((tmp_path / "a").iterdir())) == 1
    scenes = ShapesDataset("val", 3)
    model = fpg_zoo.create_model(name, pretrained=True)
    expected = evaluate(model, scenes, scenes.category_ids, batch_size=8)["box_AP"]
    assert expected is not None
    assert found == {"box": pytest.approx(100 * expected, abs=1e-9)}
    drawn = accuracy.average_precision(f"{name}.shapes", None, limit=3, parts=None, **options)
    assert drawn == pytest.approx(found, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("column", ["ap", "memory"])
def test_a_cell_is_measured_in_a_process_of_its_own(tmp_path: Path, one_thread: None, column: str) -> None:
    entry = load_manifest().find("retinanet_nano_fpg", "shapes")
    run = table_cells.Run(None, None, 2, "cpu", tmp_path, 2, "python benchmarks/reproduce_table.py")
    cell = table_cells.cell_of(entry, column, entry.tag, run)
    made = table_cells.measure_cell(cell, run)
    assert violations(made, SCHEMA) == []
    assert cell.known() == json.loads(cell.file.read_text(encoding="utf-8")) == json.loads(json.dumps(made))
    assert [file.name for file in (tmp_path / "cells").iterdir()] == [cell.file.name]
    (row,) = made["rows"]
    if column == "ap":
        assert 0 < row["measured"] <= 100
        return
    # A map of 24 channels at half of 384 x 384 pixels at least comes with the pass, the weights with the model.
    assert row["pass_mb"] > 24 * 192 * 192 * 4 / 1e6
    weights = sum(tensor.nbytes for tensor in fpg_zoo.create_model(entry.name).state_dict().values()) / 1e6
    assert weights < table_cells.metrics_of(column, made["rows"])["inference memory"] < 500


def test_fps_are_of_each_form(tmp_path: Path, one_thread: None) -> None:
    rows, given = table_cells._fps("retinanet_nano_fpg.shapes", "shapes", "cpu", 2, 1)
    assert given["shape"] == [1, 3, 384, 384]
    figures = table_cells.metrics_of("fps", rows)
    assert figures.keys() == {"fps", "fps optimized", "fps optimized_bf16"}
    assert all(row["fps"] == pytest.approx(1 / row["seconds"]["median"], abs=1e-3) for row in rows)


def test_an_architecture_without_published_weights_has_its_row(
    measuring: Measuring,
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = dataclasses.replace(ARCHITECTURES["retinanet_nano_fpg"], name="retinanet_r50_new")
    monkeypatch.setitem(ARCHITECTURES, named.name, named)
    code, _, _ = run("--models", named.name, "--output", str(tmp_path))
    rows = table(tmp_path)
    name = f"{named.name}.{RANDOM}"
    assert (code, unavailable(named.name)) == (0, "none was published")
    assert (rows[name, "box AP"]["measured"], rows[name, "box AP"]["published"]) == (None, None)
    assert rows[name, "fps"]["measured"] is not None
    lines = table_text(Metrics(json.loads((tmp_path / "table.json").read_text(encoding="utf-8")))).splitlines()
    (line,) = (line for line in lines if named.name in line)
    cells = line.split(" | ")
    assert cells[:8] == [f"| `{named.name}`", "RetinaNet", "FPG-nano", "", "", "", "", ""]
    assert cells[8:14] == ["250", "19", "1.8", "3.8", "5.8", "2.00"]
