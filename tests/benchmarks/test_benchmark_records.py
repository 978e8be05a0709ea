"""The committed records of benchmarks are whole, and the README says what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from json_schema import violations
from table.readme import END, README, SCATTER, Metrics, scatter, table_text, with_table
from table.text import as_csv, results_rows

RESULTS = ROOT / "benchmarks" / "results"
RECORDS = sorted(RESULTS.rglob("*.json"))
SCHEMA = json.loads((ROOT / "benchmarks" / "schema.json").read_text(encoding="utf-8"))
BESIDE_FIGURES = {"input", "environment"}  # of a row


def read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def test_there_are_records() -> None:
    assert {path.stem for path in RECORDS} >= {"download", "loading", "memory", "startup", "table"}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_as_the_schema_says(path: Path) -> None:
    record = read(path)
    assert violations(record, SCHEMA) == []
    numbers = {
        name
        for row in record["rows"]
        for name, value in row.items()
        if isinstance(value, (int, float, dict)) and not isinstance(value, bool) and name not in BESIDE_FIGURES
    }
    assert numbers == record["units"].keys()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_tells_what_was_measured_where(path: Path) -> None:
    record = read(path)
    script = record["command"].split()[1]
    assert (ROOT / script).is_file()
    if path.parent == RESULTS:
        # NAME.py writes NAME.json, or NAME_*.json if it is asked for something else.
        assert f"{path.stem}_".startswith(f"{Path(script).stem}_")
    else:
        assert script == "benchmarks/reproduce_table.py"
    environments = [record["environment"], *(row["environment"] for row in record["rows"] if "environment" in row)]
    assert not any(one["commit"].endswith("-dirty") or one["commit"] == "unknown" for one in environments)
    assert all(row.get("within_limit", True) for row in record["rows"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda record: record.pop("units"), "record: no units"),
        (lambda record: record.update(rows=[]), "record.rows: 0 items"),
        (lambda record: record.update(more=1), "record: more is not known"),
        (lambda record: record["environment"].pop("threads"), "record.environment: no threads"),
        (lambda record: record["environment"].update(threads=0), "record.environment.threads: 0 is less than 1"),
        (lambda record: record["environment"].update(threads=True), "True is no integer"),
        (lambda record: record["input"].update(shape=[1, 3, 640]), "record.input.shape: 3 items"),
        (lambda record: record["input"].update(dtype="int8"), "'int8' is none of"),
        (lambda record: record["rows"][0].update(seconds={"median": 1.0, "runs": "many"}), "none of what is allowed"),
    ],
)
def test_the_schema_refuses_another_record(change: Callable[[dict[str, Any]], object], complaint: str) -> None:
    record = read(RESULTS / "startup.json")
    change(record)
    (told,) = violations(record, SCHEMA)
    assert complaint in told


def test_the_readme_and_the_picture_are_of_the_committed_results() -> None:
    found = Metrics(read(RESULTS / "table" / "table.json"))
    readme = README.read_text(encoding="utf-8")
    assert readme == with_table(readme, table_text(found)), "run python benchmarks/readme_table.py"
    assert SCATTER.read_text(encoding="utf-8") == scatter(found), "run python benchmarks/readme_table.py"


def test_the_results_of_each_device_have_the_table_of_this_one() -> None:
    found = read(RESULTS / "table" / "table.json")
    machine = f"{found['environment']['processor']}, {found['environment']['threads']} threads"
    heads, *rows = as_csv(results_rows(found["rows"], machine), "").splitlines()
    lines = (RESULTS / "table" / "results.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == heads
    assert set(rows) <= set(lines)


def test_ap_of_each_data_set_stands_in_a_section_of_its_own() -> None:
    section = ""
    for line in README.read_text(encoding="utf-8").partition(END)[0].splitlines():
        section = line if line.startswith("AP on ") else section
        if line.startswith("| `"):
            assert section == ("AP on fpg_zoo.data.shapes val:" if "_nano_" in line else "AP on COCO val2017:")


def test_the_readme_gives_the_recorded_ratio_of_loading() -> None:
    ratios = [row["ratio"]["median"] for row in read(ROOT / "benchmarks" / "results" / "loading.json")["rows"]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"in {min(ratios):.1f} to {max(ratios):.1f} times what reading its file" in readme
