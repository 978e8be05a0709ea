"""Text files that other tools wrote: their encodings, and JSON with an error that says what is wrong with a file."""

from __future__ import annotations

import codecs
import json
import os
import re
from pathlib import Path
from typing import Any

from fpg_zoo.errors import ConfigError
from fpg_zoo.files import read_regular

_WITHOUT_SYSCONF = 4 << 30  # bytes of JSON where the machine's memory is not known
# The longer marks first: UTF-32's in little-endian order begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Without a mark: the zero bytes of an ASCII character that is followed by another. JSON and XML both begin with two,
# but for JSON of a single digit, which nobody asks for here.
_ZEROS = (
    (re.compile(rb"[^\0]\0\0\0", re.DOTALL), "utf-32-le"),
    (re.compile(rb"\0\0\0[^\0]", re.DOTALL), "utf-32-be"),
    (re.compile(rb"[^\0]\0[^\0]\0", re.DOTALL), "utf-16-le"),
    (re.compile(rb"\0[^\0]\0[^\0]", re.DOTALL), "utf-16-be"),
)
# How files begin that are taken for JSON by mistake, with what to do about it.
_NOT_JSON = (
    (b"\x1f\x8b", "compressed by gzip; decompress it first (gunzip)"),
    (b"BZh", "compressed by bzip2; decompress it first (bunzip2)"),
    (b"\xfd7zXZ\0", "compressed by xz; decompress it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; decompress it first (unzstd)"),
    (b"PK\x03\x04", "a zip archive; unpack it and name the file in it"),
    (b"version https://git-lfs.github.com/", "a Git LFS pointer in place of the file; fetch it (git lfs pull)"),
    (b"/annex/objects/", "a git-annex pointer in place of the file; fetch it (git annex get)"),
)


def unicode_encoding(content: bytes) -> tuple[str | None, int]:
    """Which encoding of Unicode a file's first bytes tell of.

    Args:
        content: of a file that begins with two ASCII characters, after the byte order mark if it has one.

    Returns:
        The encoding's name in Python, and the length of the byte order mark. UTF-8 is only known by its mark; (None, 0)
        without one, where each of the two characters is one byte.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding, len(mark)
    return next((encoding for zeros, encoding in _ZEROS if zeros.match(content)), None), 0


def decode_text(content: bytes, errors: str = "strict") -> str:
    """Text in UTF-8, UTF-16 or UTF-32, without its byte order mark.

    Raises:
        UnicodeDecodeError: it is in none of them. `errors` is as of `bytes.decode`.
    """
    encoding, begin = unicode_encoding(content)
    return str(memoryview(content)[begin:], encoding or "utf-8", errors)


def max_json_bytes() -> int:
    """The size up to which JSON is read: half of the machine's memory, as its content takes several times as much."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # Windows, or a system that does not say
        return _WITHOUT_SYSCONF


def read_json(file: str | Path, expected: str = "a JSON file") -> Any:
    """The content of a JSON file, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Of a key that is there twice the last value counts. NaN and Infinity are read as numbers.

    Args:
        file: to read; no pipe or device.
        expected: what should be named instead, to end an error message.

    Raises:
        ConfigError: it is not there, no regular file, larger than `max_json_bytes`, too large for the memory, nested
            too deeply, or not JSON.
    """
    try:
        content = read_regular(file, max_bytes=max_json_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; name {expected}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{file}: cannot be read ({reason}); name {expected}") from None
    for beginning, what in _NOT_JSON:
        if content.startswith(beginning):
            raise ConfigError(f"{file}: {what}")
    try:
        text = decode_text(content, "surrogatepass")
        del content  # its text takes as much memory, and more is to come
        if text[:100].lstrip().startswith("<"):
            raise ConfigError(f"{file}: HTML or XML, not JSON, as of a web page; download the file itself")
        return json.loads(text)
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not JSON ({error}); save it in UTF-8, or name {expected}") from None
    except RecursionError:
        raise ConfigError(f"{file}: not JSON that can be read (nested too deeply); name {expected}") from None
    except MemoryError:
        raise ConfigError(f"{file}: not enough memory for its content; split it, or use a larger machine") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}: not JSON ({error}); name {expected}") from None
    except ValueError:  # Python bounds the digits that it turns into a number
        raise ConfigError(f"{file}: holds a number of thousands of digits; name {expected}") from None
