"""Programs of `torch.export`, read without running what a stranger may have put into them.

torch's reader falls back to unpickling whatever a file holds, calls any function of torch that a graph names, and
evaluates the expressions of sizes. Each of the three would run a hostile file's code, so the file is looked at first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from fpg_zoo.errors import ExportError
from fpg_zoo.text import printable, quoted

_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_UNFORCED = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_MOST_OF_A_GRAPH = 1 << 28  # bytes of its JSON
_lock = threading.Lock()

_FUNCTIONS = re.compile(
    r"torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|or_|pow|sub|truediv)"
    r"|math\.(ceil|floor|sqrt|trunc)"
    r"|torch\.sym_(float|int|ite|max|min|not|sum)"
)
_NAME = re.compile(r"'[a-z]+[0-9]+'")  # of a size that is not known, as sympy writes it
_EXPRESSION = re.compile(r"[\w\s+\-*/%(),.<>=&|~!]*")
_ATTRIBUTE = re.compile(r"[A-Za-z_)\]]\s*\.|__")  # sympy evaluates an expression as Python


def load(path: Path, extra_files: dict[str, str]) -> ExportedProgram:
    """`torch.export.load` of a file that holds a graph and tensors, and nothing else.

    Args:
        path: of a regular file.
        extra_files: filled as by `torch.export.load`.

    Raises:
        ExportError: it holds anything else.
    """
    _check(path)
    with _tensors_only():
        return torch.export.load(path, extra_files=extra_files)


def _check(path: Path) -> None:
    place = printable(path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ExportError(f"{place}: no file of torch.export ({printable(error)}); export it again") from error
    with archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".json"):
                continue
            if entry.file_size > _MOST_OF_A_GRAPH:
                raise ExportError(
                    f"{place}: {printable(entry.filename)} has {entry.file_size:,} bytes, which is too much"
                )
            try:
                content = json.loads(archive.read(entry))
            except (ValueError, RecursionError, zipfile.BadZipFile) as error:
                raise ExportError(f"{place}: {printable(entry.filename)} cannot be read; export it again") from error
            _check_graph(content, place)


def _check_graph(content: Any, place: str) -> None:
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            target, expression = one.get("target"), one.get("expr_str")
            # A call has inputs; a parameter's place in the model is called a target, too.
            if isinstance(target, str) and "inputs" in one and not _FUNCTIONS.fullmatch(target):
                raise ExportError(
                    f"{place}: its graph calls {quoted(target)}, which is no arithmetic; it is not opened"
                )
            if isinstance(expression, str) and not _is_arithmetic(expression):
                raise ExportError(f"{place}: a size in its graph is {quoted(expression)}; it is not opened")
            waiting += one.values()


def _is_arithmetic(expression: str) -> bool:
    without_names = _NAME.sub("", expression)
    return bool(_EXPRESSION.fullmatch(without_names)) and not _ATTRIBUTE.search(without_names)


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """While it holds, torch unpickles tensors and plain data only; the two variables are torch's own switch."""
    with _lock:
        before = {name: os.environ.get(name) for name in (_FORCED, _UNFORCED)}
        os.environ[_FORCED] = "1"
        os.environ.pop(_UNFORCED, None)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
