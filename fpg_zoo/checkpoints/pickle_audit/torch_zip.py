"""Where everything lies in a file of torch.save, read so strictly that torch can find nothing else there."""

from __future__ import annotations

import os
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fpg_zoo.errors import CheckpointError, UnsafeCheckpointError
from fpg_zoo.text import quoted

REMEDY = "Save it again with the tensors alone: torch.save({'state_dict': model.state_dict()}, path)"

_LOCAL, _ENTRY, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
_END64, _LOCATOR64 = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF  # a field that is full leaves its value to one of zip64
_ENCRYPTED = 0x2041  # bits 0, 6 and 13 of a record's flags

_RECORD_COST = 350  # bytes that Python takes for a record's name and place
_SMALL_RECORD = 1024  # versions, byte order and the like: torch's own are of 40 bytes at most

# What reading may take beyond the file's own size: the objects of the pickle of a few thousand small tensors.
_ALLOWANCE = 12 * 2**20


class Record(NamedTuple):
    """Where a record's bytes begin in the file, and how many they are."""

    offset: int
    size: int


class Budget:
    """The memory that reading a file may take on top of the file itself."""

    def __init__(self, path: Path, file_size: int) -> None:
        self.path = path
        self.left = file_size + _ALLOWANCE
        self.most_values = file_size + 2**20  # met in going through the content; a pickle makes one with each byte

    def spend(self, cost: int) -> None:
        """Raises: UnsafeCheckpointError: this is more than the file may take."""
        self.left -= cost
        if self.left < 0:
            raise unsafe(
                self.path, "its pickle makes so many objects that they would take far more memory than the file"
            )


def unsafe(path: Path, reason: str) -> UnsafeCheckpointError:
    """The error about what could run code or exhaust the memory."""
    return UnsafeCheckpointError(f"{path}: refused, {reason}. {REMEDY}")


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error about what torch.save did not write like this."""
    return CheckpointError(f"{path}: no checkpoint that torch.save wrote, or a damaged one ({reason}); fetch it again")


def is_zip(head: bytes) -> bool:
    """Whether torch takes a file with these first bytes for a zip file."""
    return head.startswith(b"PK\x03\x04")


def is_tar(head: bytes) -> bool:
    """Whether torch takes a file with these first 512 bytes for one of the tar files of its first versions."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def zip_records(file: BinaryIO, path: Path, size: int, budget: Budget) -> dict[str, Record]:
    """The records of a zip file, by their names inside its one folder.

    Python's zipfile and torch's own reader forgive different faults, so that one file could show each of them
    different records. Here the directory has to be where both look for it, without gaps, and says one thing.

    Raises:
        UnsafeCheckpointError: compressed, encrypted, overlapping, duplicate or path-like records, or TorchScript.
        CheckpointError: the directory is cut or damaged.
    """
    try:
        count, start, end = _directory(file, path, size)
        budget.spend(count * _RECORD_COST)
        file.seek(start)
        headers = [_entry(file, path) for _ in range(count)]
        if file.tell() != end:
            raise damaged(path, "its zip directory has a gap")
        folder = headers[0][1].partition("/")[0] if headers else ""
        records: dict[str, Record] = {}
        names: set[str] = set()
        taken = 0
        for head, name, length in sorted(headers):
            inner = name.removeprefix(f"{folder}/")
            if inner in ("", name):
                raise unsafe(path, f"its record {quoted(name)} lies outside of its folder {quoted(folder)}")
            if inner.lower() in names:  # torch looks records up without regard to case
                raise unsafe(path, f"it holds the record {quoted(name)} twice")
            if head < taken or (head and not records):
                raise unsafe(path, f"its record {quoted(name)} overlaps another or hides one, as in a zip bomb")
            offset = _data_offset(file, path, name, head)
            taken = offset + length
            if taken > start:
                raise unsafe(path, f"its record {quoted(name)} overlaps its zip directory, as in a zip bomb")
            _check_purpose(path, inner, length)
            names.add(inner.lower())
            records[inner] = Record(offset, length)
    except struct.error:
        raise damaged(path, "its zip directory is cut") from None
    if "data.pkl" not in records:
        raise damaged(path, "a zip file without the record data.pkl")
    return records


def _directory(file: BinaryIO, path: Path, size: int) -> tuple[int, int, int]:
    """How many records the zip file has, where its directory begins, and where it ends."""
    end = size - _END.size
    sign, _, _, here, count, length, start, comment = _fields(file, end, _END)
    if sign != b"PK\x05\x06" or comment:
        raise damaged(path, "a zip file that does not end with its directory")
    mark, _, place, _ = _fields(file, end - _LOCATOR64.size, _LOCATOR64)
    if mark == b"PK\x06\x07":
        end -= _LOCATOR64.size + _END64.size
        narrow = (here, count, length, start)
        sign, _, _, _, _, _, here, count, length, start = _fields(file, end, _END64)
        if sign != b"PK\x06\x06" or place != end:
            raise damaged(path, "its zip64 directory is not where it says")
        wide = ((here, _FULL_16), (count, _FULL_16), (length, _FULL_32), (start, _FULL_32))
        if any(one not in pair for one, pair in zip(narrow, wide, strict=True)):
            raise unsafe(path, "it has two zip directories that disagree")
    if here != count or start + length != end or count * _ENTRY.size > length:
        raise damaged(path, "its zip directory is not where it says")
    return count, start, end


def _entry(file: BinaryIO, path: Path) -> tuple[int, str, int]:
    """The next entry of the directory: where the record's header is, its name, its number of bytes."""
    fields = _ENTRY.unpack(file.read(_ENTRY.size))
    sign, flags, method = fields[0], fields[3], fields[4]
    packed, size, name_length, extra_length, comment_length = fields[8:13]
    head = fields[16]
    if sign != b"PK\x01\x02":
        raise damaged(path, "its zip directory is damaged")
    name = _checked_name(path, file.read(name_length))
    extra = file.read(extra_length)
    file.read(comment_length)
    if _FULL_32 in (packed, size, head):
        wide = iter(_wide_fields(extra))
        size, packed, head = (next(wide, -1) if field == _FULL_32 else field for field in (size, packed, head))
    if flags & _ENCRYPTED:
        raise unsafe(path, f"its record {quoted(name)} is encrypted, which torch.save never does")
    if method or packed != size:
        raise unsafe(path, f"its record {quoted(name)} is compressed, which torch.save never does and zip bombs do")
    if size < 0 or head < 0:
        raise damaged(path, "its zip directory is damaged")
    return head, name, size


def _wide_fields(extra: bytes) -> tuple[int, ...]:
    """The numbers of a directory entry's zip64 block, in their order."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            return struct.unpack_from(f"<{length // 8}Q", extra, 4)
        extra = extra[4 + length :]
    return ()


def _checked_name(path: Path, raw: bytes) -> str:
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        name = ""
    if not name.isprintable() or not name:
        raise damaged(path, f"its zip record {quoted(raw)} has no readable name")
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        raise unsafe(path, f"its record {quoted(name)} is named like a path to elsewhere, which torch.save never does")
    return name


def _data_offset(file: BinaryIO, path: Path, name: str, head: int) -> int:
    """Where the bytes of a record begin whose header is there, by that header."""
    sign, *_, name_length, extra_length = _fields(file, head, _LOCAL)
    if sign != b"PK\x03\x04" or file.read(name_length) != name.encode():
        raise damaged(path, f"its zip directory and the record {quoted(name)} disagree")
    return head + _LOCAL.size + int(name_length) + int(extra_length)


def _check_purpose(path: Path, inner: str, size: int) -> None:
    """Whether a checkpoint holds such a record."""
    if inner == "constants.pkl" or inner.startswith("code/"):
        raise unsafe(path, f"it is a TorchScript archive, whose record {quoted(inner)} holds code")
    if inner != "data.pkl" and inner.lower().endswith("data.pkl"):
        raise unsafe(path, f"it holds a second pickle, {quoted(inner)}")
    if inner != "data.pkl" and not inner.startswith("data/") and size > _SMALL_RECORD:
        raise unsafe(path, f"its record {quoted(inner)} of {size} bytes is none that torch.save writes")


def _fields(file: BinaryIO, offset: int, form: struct.Struct) -> tuple[Any, ...]:
    if offset < 0:
        raise struct.error("before the file's beginning")
    file.seek(offset)
    return form.unpack(file.read(form.size))


def check_legacy_storages(
    file: BinaryIO, path: Path, size: int, keys: list[str], storages: Mapping[str, tuple[int, int]]
) -> None:
    """See that the storages, which follow the pickles of a legacy file, are those that the pickle speaks of.

    Args:
        file: at the first of them.
        size: of the whole file, in bytes.
        keys: in the order in which the storages follow.
        storages: elements and bytes per element of each, by key.

    Raises:
        UnsafeCheckpointError: one is of another size than the pickle says, or missing, or there twice.
        CheckpointError: the file ends before they do.
    """
    if len(set(keys)) != len(keys) or set(keys) != set(storages):
        raise unsafe(path, "the storages that its tensors ask for are not those that it lists")
    for key in keys:
        count, width = storages[key]
        count_bytes = file.read(8)
        if len(count_bytes) < 8 or file.tell() + count * width > size:
            raise damaged(path, f"it ends before its storage {quoted(key)} of {quoted(count * width)} bytes does")
        if int.from_bytes(count_bytes, "little", signed=True) != count:
            raise unsafe(path, f"its storage {quoted(key)} is not of the {quoted(count)} elements that its pickle says")
        file.seek(count * width, os.SEEK_CUR)
