"""How hostile checkpoint files are written: pickles and files by hand, and tables of the functions that do it."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Hostile(NamedTuple):
    """A hostile file.

    Args:
        write: writes it; would its code be run, it would make a folder of the second path.
        cause: what the message has to say, a regular expression.
        unsafe: whether it is worse than damaged.
    """

    write: Callable[[Path, Path], None]
    cause: str
    unsafe: bool


ONES = struct.pack("<4f", 1, 1, 1, 1)
MEGABYTE = 2**20

MakesPickle = Callable[[str], bytes]
WritesFile = Callable[[Path], None]


class Table(dict[str, Hostile]):
    """Hostile files by the names of the functions that make them; their docstrings give the reason to refuse them."""

    def pickle(self, cause: str, *, unsafe: bool = True, legacy: bool = False) -> Callable[[MakesPickle], MakesPickle]:
        """Enter a function that gives the object's pickle, from the path of the folder that its code would make."""

        def enter(make: MakesPickle) -> MakesPickle:
            write = write_legacy if legacy else write_zip
            self[make.__name__] = Hostile(lambda path, trap: write(path, make(str(trap))), cause, unsafe)
            return make

        return enter

    def file(self, cause: str, *, unsafe: bool = True) -> Callable[[WritesFile], WritesFile]:
        """Enter a function that writes the whole file."""

        def enter(write: WritesFile) -> WritesFile:
            self[write.__name__] = Hostile(lambda path, trap: write(path), cause, unsafe)
            return write

        return enter


# Pickles by hand


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(full: str, *arguments: bytes) -> bytes:
    return name(full) + tuple_of(*arguments) + b"R"


def whole_tuple(values: tuple[int, ...]) -> bytes:
    return tuple_of(*(whole(value) for value in values))


def storage(count: int, kind: str = "FloatStorage", key: str = "0", legacy: bool = False) -> bytes:
    view = (b"N",) if legacy else ()
    told = (text("storage"), name(f"torch.{kind}"), text(key), text("cpu"), whole(count), *view)
    return tuple_of(*told) + b"Q"


def tensor(
    size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, stored: bytes | None = None
) -> bytes:
    hooks = call("collections.OrderedDict")
    arguments = (stored or storage(4), whole(offset), whole_tuple(size), whole_tuple(stride), b"\x89", hooks)
    return call("torch._utils._rebuild_tensor_v2", *arguments)


def checkpoint(meta: bytes = b"}", weight: bytes | None = None, state: bytes | None = None) -> bytes:
    """A checkpoint's pickle, good but for what is given."""
    state = state or b"}" + text("weight") + (weight or tensor()) + b"s"
    return b"\x80\x02}(" + text("state_dict") + state + text("meta") + meta + b"u."


# Files by hand

RECORDS = {"byteorder": b"little", "data/0": ONES, "version": b"3\n"}


def write_zip(
    path: Path, pickle: bytes | None = None, more: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED
) -> None:
    """A zip file, good but for what is given; records of `more` are named in full if they begin with `=`."""
    with zipfile.ZipFile(path, "w", kind) as file:
        for record, data in {"data.pkl": pickle or checkpoint(), **RECORDS, **(more or {})}.items():
            file.writestr(record[1:] if record.startswith("=") else f"archive/{record}", data)


def write_legacy(
    path: Path, pickle: bytes, storages: bytes = struct.pack("<q", 4) + ONES, keys: bytes | None = None
) -> None:
    """A legacy file, good but for what is given."""
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    sizes = b"\x80\x02}."
    keys = keys or b"\x80\x02](" + text("0") + b"e."
    path.write_bytes(magic + b"\x80\x02M\xe9\x03." + sizes + pickle + keys + storages)


def legacy_checkpoint(count: int = 4) -> bytes:
    return checkpoint(weight=tensor(stored=storage(count, legacy=True)))
