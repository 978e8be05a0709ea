"""Every line of `benchmarks/gpu.py`, on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import environment
from conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.slow
def test_a_dry_run_goes_through_every_line_and_keeps_nothing(tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in RESULTS.glob("*.json")}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry-run"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "error=" not in ended.stdout
    assert "no time for" not in ended.stdout
    for part in ("gpu_parity", "gpu_throughput", "gpu_pipeline", "gpu_memory", "gpu_training_step"):
        assert f"{part}.json" in ended.stdout
    assert {file: file.read_bytes() for file in RESULTS.glob("*.json")} == before


@pytest.mark.slow
def test_a_part_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry-run", "speed"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=600)
    assert (ended.returncode, "speed: the parts are parity" in ended.stderr) == (2, True)
