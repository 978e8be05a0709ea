"""What others wrote, on one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fpg_zoo.errors import ConfigError
from fpg_zoo.files import open_regular, read_regular
from fpg_zoo.text import printable


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ("собака 🐶", "собака 🐶"),
        ("\x1b]0;PWNED\x07\x1b[2J", "\\x1b]0;PWNED\\x07\\x1b[2J"),
        ("a\nfpg-zoo: good", "a\\nfpg-zoo: good"),
        ("right\u202eleft\u2028", "right\\u202eleft\\u2028"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 197 + "..."),
        ("\x1b" * 100, "\\x1b" * 49 + "\\..."),
    ],
)
def test_control_characters_are_escaped_and_length_bounded(given: str, printed: str) -> None:
    assert printable(given) == printed
    assert printable(printed) == printed


def test_every_error_is_one_line() -> None:
    assert str(ConfigError("no\x1b[2J such\nmodel")) == "no\\x1b[2J such\\nmodel"


def test_what_never_ends_is_not_opened(tmp_path: Path) -> None:
    pipe, sparse, whole = tmp_path / "pipe", tmp_path / "sparse", tmp_path / "whole"
    os.mkfifo(pipe)
    with sparse.open("wb") as stream:
        stream.truncate(1 << 40)
    whole.write_bytes(b"content")
    link = tmp_path / "link"
    link.symlink_to("/dev/zero")
    for path in (pipe, link):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="1099511627776 bytes, more than the 1000 that are read"):
        read_regular(sparse, max_bytes=1000)
    assert read_regular(whole, max_bytes=7) == b"content"
