"""The notebooks run from top to bottom, and print what they are kept with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command import python
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
_MOST_BYTES = 100_000  # of a notebook with its images
_RUNTIMES = {"export": "onnxruntime"}


def _printed(cell: dict[str, Any]) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z_]+", text)  # numbers differ from machine to machine


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_is_kept_with(notebook: Path, tmp_path: Path) -> None:
    if notebook.stem in _RUNTIMES:
        pytest.importorskip(_RUNTIMES[notebook.stem])
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "notebook.py").write_text("\n\n".join("".join(cell["source"]) for cell in cells))
    ended = python("notebook.py", cwd=tmp_path, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert _words(ended.stdout) == _words("".join(map(_printed, cells))), "python tools/run_notebooks.py"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_as_it_was_run_and_small(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.stat().st_size < _MOST_BYTES
