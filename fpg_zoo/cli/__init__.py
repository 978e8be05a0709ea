"""The command `fpg-zoo`: parse and print, nothing else.

Exit codes: 0 done, 1 done but for what was reported, 2 refused, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from fpg_zoo.cli import benchmark as benchmarking
from fpg_zoo.cli import compare as comparing
from fpg_zoo.cli import data, demo, models, weights
from fpg_zoo.cli import eval as evaluating
from fpg_zoo.cli import export as exporting
from fpg_zoo.cli import predict as predicting
from fpg_zoo.cli import train as training
from fpg_zoo.cli.exit_codes import DONE, INTERRUPTED, REFUSED
from fpg_zoo.cli.printing import print_notice
from fpg_zoo.errors import FPGZooError, is_out_of_memory
from fpg_zoo.text import printable
from fpg_zoo.version import __version__

_MOST_OF_AN_ARGUMENT = 500  # characters of an error about the command line
_MOST_OF_A_WARNING = 1000  # which may be of any library


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `arguments` default to the process's. Returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    argv = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(argv, argparse.Namespace(argv=argv))  # which a report tells again
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell  # on one line, and without the place in our code
            code = int(options.run(options))
        if sys.stdout is not None:  # as under pythonw, or where it was closed
            sys.stdout.flush()  # here, where a reader that has gone is handled
        return code
    except FPGZooError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        _flush_or_drop()
        return DONE  # the reader (`head`, say) has what it wanted
    except OSError as error:
        _flush_or_drop()
        return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _refuse("not enough memory; give it less at a time, end other programs, or use a larger machine")
    except KeyboardInterrupt:
        print_notice("interrupted")
        return INTERRUPTED


def _flush_or_drop() -> None:
    """Empty standard output; what cannot be written goes nowhere, or Python would complain of it again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(message: Warning | str, *_: object, **__: object) -> None:
    print_notice(printable(" ".join(str(message).split()), _MOST_OF_A_WARNING))


def _refuse(message: str) -> int:
    print_notice(message)
    return REFUSED


class _Parser(argparse.ArgumentParser):
    """Errors quote what was typed, or what a shell made of a file's name."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message, _MOST_OF_AN_ARGUMENT))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; each command's `run` takes what it parsed and returns the exit code."""
    parser = _Parser(prog="fpg-zoo", description="The published Feature Pyramid Grids detectors.")
    parser.add_argument("--version", action="version", version=f"fpg-zoo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    parts = (models, weights, predicting, training, evaluating, comparing, exporting, benchmarking, data, demo)
    for part in parts:
        part.add_commands(commands)
    return parser
