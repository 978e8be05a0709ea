"""The examples of docs/extending.md run, one after the other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.M | re.S)
    assert len(blocks) == 2
    script = tmp_path / "example.py"  # dataclasses look for the source of their module
    script.write_text("from __future__ import annotations\n" + "\n".join(blocks) + "\nassert len(detections) == 1\n")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
