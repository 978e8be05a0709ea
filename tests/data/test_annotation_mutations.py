"""Mutated annotation files at each door of the command: no traceback, no signal, no other metric."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import annotation_mutations
import pytest

PROGRAM = Path(annotation_mutations.__file__)


@pytest.mark.slow
@pytest.mark.parametrize(("door", "count"), [("results", 30), ("data", 20), ("train", 10)])
def test_whatever_an_annotation_file_holds_the_command_ends_well(door: str, count: int) -> None:
    ended = subprocess.run([sys.executable, PROGRAM, door, "7", str(count)], capture_output=True, text=True)
    outcomes, *faults = ended.stdout.splitlines()
    assert not any(faults), ended.stdout
    assert sum(number for outcome, number in json.loads(outcomes).items() if outcome.startswith("exit")) == count
