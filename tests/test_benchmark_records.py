"""The committed records of benchmarks are whole, and the README says what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
FACTS = {"date", "commit", "fpg_zoo", "python", "torch", "torchvision", "platform", "processor", "device", "threads"}


def read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def test_there_are_records() -> None:
    assert {path.stem for path in RECORDS} >= {"download", "loading", "memory", "startup"}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_tells_what_was_measured_where(path: Path) -> None:
    record = read(path)
    assert record["command"] == f"python benchmarks/{path.stem}.py"
    assert record["environment"].keys() >= FACTS
    assert not record["environment"]["commit"].endswith("-dirty")
    assert record["rows"]
    assert all(row.get("within_limit", True) for row in record["rows"])


def test_the_readme_gives_the_recorded_ratio_of_loading() -> None:
    ratios = [row["ratio"]["median"] for row in read(ROOT / "benchmarks" / "results" / "loading.json")["rows"]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"in {min(ratios):.1f} to {max(ratios):.1f} times what reading its file" in readme
