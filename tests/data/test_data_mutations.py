"""Whatever becomes of annotation files and folders: an error of one line, or all of what was not touched."""

from __future__ import annotations

import json
from pathlib import Path

import data_mutations
import pytest
from command import environment, python
from conftest import ROOT


@pytest.mark.slow
def test_mutated_folders_and_entries() -> None:
    support = Path(data_mutations.__file__).parent
    paths = environment(PYTHONPATH=f"{ROOT}:{support}")
    done = python(data_mutations.__file__, "0", "40", "20", env=paths, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    counts = json.loads(done.stdout)
    assert {name: sum(one.values()) for name, one in counts.items()} == {"folders": 40, "entries": 20}
    assert {outcome for one in counts.values() for outcome in one} <= {"read", "ConfigError"}
    assert counts["folders"]["read"] > 20  # most faults of one file leave the others
