"""All that the command says goes through here, so that no file, server or name writes to the terminal itself."""

from __future__ import annotations

import sys

from fpg_zoo.text import printable


def print_line(line: object = "", *, to_stderr: bool = False, flush: bool = False) -> None:
    """Print one line; what is not printable in it is escaped, line breaks included.

    What others wrote is bounded where it is put into the line (`printable`), as a line of ours may be of any length.
    """
    if (stream := sys.stderr if to_stderr else sys.stdout) is not None:  # as under pythonw, or where it was closed
        print(printable(line, max_length=None), file=stream, flush=flush)


def print_lines(text: str, *, to_stderr: bool = False) -> None:
    """Print a text of several lines, each as of `print_line`."""
    for line in text.split("\n"):
        print_line(line, to_stderr=to_stderr)


def print_notice(message: object) -> None:
    """Print an error or a warning to standard error, on one line that begins with the command's name."""
    print_line(f"fpg-zoo: {message}", to_stderr=True)
