"""JSON of other tools is read in any encoding of Unicode; what is not JSON is refused in one line that says so."""

from __future__ import annotations

import codecs
import gzip
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from command import python

from fpg_zoo.data.text_files import max_json_bytes, read_json
from fpg_zoo.errors import ConfigError

CONTENT: dict[str, Any] = {"images": [{"id": 1, "file_name": "猫 é 🐶.jpg"}], "annotations": [], "x": 1.5}
TEXT = json.dumps(CONTENT, ensure_ascii=False)


def _refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_json(file, "an annotation file")
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    assert len(message) < len(str(file)) + 250
    return message


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32-le"),
        TEXT.encode("utf-32-be"),
        codecs.BOM_UTF8 + TEXT.replace(",", ",\r\n").encode(),
        codecs.BOM_UTF16_LE + f"\r\n{TEXT}\r\n".encode("utf-16-le"),
    ],
)
def test_json_in_any_encoding_of_unicode(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") == CONTENT


def test_what_json_leaves_open(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1, "b": [NaN, -Infinity], "a": 2}')
    read = read_json(tmp_path / "a.json")
    assert read["a"] == 2  # the last of two values
    assert math.isnan(read["b"][0])
    assert read["b"][1] == -math.inf


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "not JSON (Expecting value"),
        (b"\0" * 100, "not JSON (Expecting value"),
        (b"{'images': []}", "not JSON (Expecting property name"),
        (TEXT[:-9].encode(), "not JSON ("),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b"}", "a number of thousands of digits"),
        (TEXT.encode("gb18030"), "save it in UTF-8"),
        ('{"name": "é"}'.encode("latin-1"), "save it in UTF-8"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")[:-1], "save it in UTF-8"),
        (gzip.compress(TEXT.encode(), mtime=0), "compressed by gzip; decompress it first"),
        (b"BZh91AY&SY", "compressed by bzip2; decompress it first"),
        (b"\xfd7zXZ\0\0\4", "compressed by xz; decompress it first"),
        (b"\x28\xb5\x2f\xfd\x04\x58", "compressed by zstd; decompress it first"),
        (b"PK\x03\x04\x14\0", "a zip archive; unpack it"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n",
            "a Git LFS pointer in place of the file; fetch it (git lfs pull)",
        ),
        (b"/annex/objects/SHA256E-s31--5a.json\n", "a git-annex pointer in place of the file; fetch it"),
        (b"<!DOCTYPE html><html></html>", "HTML or XML, not JSON"),
        (codecs.BOM_UTF8 + b"\r\n  <html>", "HTML or XML, not JSON"),
        (codecs.BOM_UTF16_LE + "<annotation/>".encode("utf-16-le"), "HTML or XML, not JSON"),
    ],
)
def test_what_is_not_json_says_what_it_is(content: bytes, cause: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    if cause == "a number of thousands of digits" and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python reads numbers of any length")
    assert cause in _refusal(tmp_path / "a.json")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    with (tmp_path / "sparse.json").open("wb") as stream:
        stream.truncate(max_json_bytes() + 1)
    for name in ("pipe", "zero"):
        assert "cannot be read (not a regular file)" in _refusal(tmp_path / f"{name}.json")
    for name in ("folder", "loop"):
        assert "cannot be read (" in _refusal(tmp_path / f"{name}.json")
    assert f"cannot be read ({max_json_bytes() + 1} bytes, more than the" in _refusal(tmp_path / "sparse.json")
    assert "no such file; name an annotation file" in _refusal(tmp_path / "none.json")
    assert "cannot be read (" in _refusal(tmp_path / ("a" * 300))


@pytest.mark.slow
def test_memory_that_does_not_suffice_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(b"[" + b"[]," * 10_000_000 + b"[]]")
    code = f"""
import resource
from fpg_zoo.data.text_files import read_json
from fpg_zoo.errors import ConfigError
resource.setrlimit(resource.RLIMIT_AS, (600 << 20,) * 2)  # the lists alone take more
try:
    read_json({str(tmp_path / "large.json")!r})
except ConfigError as error:
    print(error)
"""
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "large.json: not enough memory for its content" in done.stdout
