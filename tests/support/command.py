"""Runs `fpg-zoo`, in this process or in one of its own, and keeps what it said."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from typing import Any, NamedTuple

from fpg_zoo.cli import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def run(*arguments: Any) -> Ended:
    """The command in this process, its output no terminal; warnings count as error output, as they would appear there.

    Raises:
        AssertionError: anything looks like a traceback.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)  # as Python does by default
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ending:  # argparse's way out
            code = int(ending.code or 0)
    warned = "".join(f"{warning.category.__name__}: {warning.message}\n" for warning in told)
    ended = Ended(code, out.getvalue(), err.getvalue() + warned)
    assert "Traceback" not in ended.out + ended.err
    return ended


def environment(**changes: str) -> dict[str, str]:
    """This process's, with output buffered as Python does by default, and one thread, which is enough here."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return kept | {"OMP_NUM_THREADS": "1"} | changes


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment(), "timeout": 60} | options
    return subprocess.run([sys.executable, *arguments], check=False, text=True, **options)
