"""Checkpoint files whose outside is hostile: what zip and tar files can be made to do."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from pathlib import Path

from hostile_making import MEGABYTE, ONES, Hostile, Table, checkpoint, write_zip

ARCHIVES = Table()


# Zip files


@ARCHIVES.file("is compressed")
def a_zip_bomb(path: Path) -> None:
    """Makes 20 MB of 20 KB."""
    write_zip(path, more={"data/1": bytes(20 * MEGABYTE)}, kind=zipfile.ZIP_DEFLATED)


def _patched(path: Path, before: bytes, after: bytes, count: int = -1) -> None:
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after, count))


@ARCHIVES.file("overlaps another")
def overlapping_records(path: Path) -> None:
    """Two records share their bytes, as a thousand could."""
    write_zip(path, more={"data/1": ONES})
    data = path.read_bytes()
    first, second = (data.index(b"PK\x03\x04", data.index(key) - 40) for key in (b"archive/data/0", b"archive/data/1"))
    path.write_bytes(
        data.replace(struct.pack("<L", second) + b"archive/data/1", struct.pack("<L", first) + b"archive/data/1")
    )


@ARCHIVES.file("disagree|twice")
def duplicate_records(path: Path) -> None:
    """One reader takes the first, another the last."""
    write_zip(path, more={"data/1": ONES})
    _patched(path, b"archive/data/1", b"archive/data/0")


@ARCHIVES.file("holds the record 'archive/DATA/0' twice")
def records_that_differ_in_case(path: Path) -> None:
    """torch looks records up without regard to case."""
    write_zip(path, more={"DATA/0": bytes(16)})


for label, record in {
    "a_record_above": "=archive/../../evil",
    "a_record_at_the_root": "=/etc/evil",
    "a_record_of_windows": "=archive/..\\evil",
    "a_record_on_a_drive": "=C:/evil",
}.items():
    ARCHIVES[label] = Hostile(
        lambda path, trap, record=record: write_zip(path, more={record: b"1"}), "like a path", True
    )


@ARCHIVES.file("lies outside of its folder")
def two_folders(path: Path) -> None:
    """A pickle in either, for one reader each."""
    write_zip(path, more={"=other/data.pkl": checkpoint()})


@ARCHIVES.file("a second pickle")
def two_pickles(path: Path) -> None:
    """Another pickle further down."""
    write_zip(path, more={"inner/data.pkl": checkpoint()})


@ARCHIVES.file("a TorchScript archive")
def torchscript(path: Path) -> None:
    """torch.jit.load would run its code."""
    write_zip(path, more={"code/model.py": b"import os", "constants.pkl": b"\x80\x02)."})


@ARCHIVES.file("is encrypted")
def encrypted_records(path: Path) -> None:
    """Nobody can look into them."""
    write_zip(path)
    _patched(path, b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")


@ARCHIVES.file("does not end with its directory", unsafe=False)
def a_zip_file_after_another(path: Path) -> None:
    """One reader takes the first of two files, another the last."""
    write_zip(path)
    path.write_bytes(path.read_bytes() + b"PK\x05\x06")


@ARCHIVES.file("not where it says", unsafe=False)
def a_hidden_directory(path: Path) -> None:
    """Has bytes before the directory's end, which shift it for one reader alone."""
    write_zip(path)
    data = path.read_bytes()
    path.write_bytes(data[:-22] + bytes(100) + data[-22:])


@ARCHIVES.file("none that torch.save writes")
def a_large_byte_order(path: Path) -> None:
    """torch would show all of it in its message."""
    write_zip(path, more={"byteorder": b"x" * MEGABYTE})


@ARCHIVES.file("more memory than the file")
def sixty_thousand_records(path: Path) -> None:
    """Each takes more memory for its name than it has bytes."""
    write_zip(path, more={f"data/{number}": b"" for number in range(60_000)})


@ARCHIVES.file("a tar file")
def the_first_format(path: Path) -> None:
    """The format of torch's first versions, which is unpacked to the disk."""
    with tarfile.open(path, "w") as file:
        for member in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(member)
            entry.size = 3
            file.addfile(entry, io.BytesIO(b"abc"))
