"""Files written all or nothing, with clear errors, and their digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fpg_zoo.errors import ConfigError, StorageError
from fpg_zoo.progress import tqdm
from fpg_zoo.text import printable

TEMPORARY = ".tmp-"  # begins the names of files that are being written
FOLDER_ENDING = ".d"  # ends the names of folders of such files
_CHUNK = 1 << 20


def on_terminal() -> bool:
    """Whether somebody sees what is written to standard error, which a service or pythonw has none of."""
    return sys.stderr is not None and sys.stderr.isatty()


def open_regular(path: str | Path, *, max_bytes: int | None = None) -> BinaryIO:
    """Open a file to be read, if it is one that ends: no pipe, device or socket is opened or waited for.

    Args:
        path: a file, or a link to one.
        max_bytes: the size from which on it is refused; None for no limit.

    Raises:
        OSError: it cannot be opened, is not a regular file, or is larger; `strerror` says which.
    """
    # Without O_NONBLOCK, opening a pipe waits until somebody writes to it. Windows has neither.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if max_bytes is not None and status.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes, more than the {max_bytes} that are read", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path, *, max_bytes: int) -> bytes:
    """The content of a regular file.

    Args:
        path: a file, or a link to one.
        max_bytes: the size from which on it is refused.

    Raises:
        OSError: as of `open_regular`; or memory does not suffice, or it grows beyond `max_bytes` while it is read.
    """
    content = io.BytesIO()
    with open_regular(path, max_bytes=max_bytes) as stream:
        try:
            # In pieces: `read(max_bytes)` takes memory for as many bytes at once, however short the file is.
            while content.tell() <= max_bytes and (piece := stream.read(_CHUNK)):
                content.write(piece)
        except MemoryError:
            raise OSError(errno.ENOMEM, "not enough memory to read it", str(path)) from None
    if content.tell() > max_bytes:
        raise OSError(errno.EFBIG, f"more than the {max_bytes} bytes that are read", str(path))
    return content.getvalue()


def sha256_of(path: Path, description: str | None = None, *, max_bytes: int | None = None) -> str:
    """The file's SHA-256 in hex, read in pieces, with progress on a terminal.

    Raises:
        OSError: as of `open_regular`.
    """
    digest = hashlib.sha256()
    label, hidden = printable(description or path.name), not on_terminal()
    with (
        open_regular(path, max_bytes=max_bytes) as stream,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=label, disable=hidden, leave=False) as bar,
    ):
        while piece := stream.read(_CHUNK):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def check_writable(folder: Path) -> None:
    """Whether files can be written in a folder that is there or can be made, so as to say so before long work.

    Raises:
        ConfigError: they cannot.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{folder}: cannot be a folder, {existing} is a file; choose another place")
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"{folder}: {existing} cannot be written; choose another place")


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one that names the folder and the way out.

    Raises:
        StorageError: in place of any OSError in the block.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write in {folder}: {error.strerror or error}; make room or the folder writable, or choose another "
            "(FPG_ZOO_CACHE for the cache)"
        ) from error


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A new file beside `path`, of the same suffix, which takes its place when the block ends.

    Where the block raises, the new file is removed and what was at `path` stays.

    Args:
        path: the file to be; its folder is made if need be.

    Raises:
        StorageError: the folder cannot be made or written; or in place of any OSError in the block.
    """
    folder = path.parent
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Not mkstemp: its files are readable by their owner alone, and a cache may be shared.
        temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}{path.suffix}"
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(folder: Path, stem: str | None = None) -> Iterator[Path]:
    """An empty folder in `folder` (made if need be), removed at the end with all that was not renamed out of it.

    For writers that make temporary files of their own beside their target, which nobody would find after a kill.

    Args:
        folder: where.
        stem: of its name, for whoever holds a lock: what a killed process left is then removed first. A new name of
            its own if None.

    Raises:
        StorageError: the folder cannot be made or written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{TEMPORARY}{stem or uuid.uuid4().hex}{FOLDER_ENDING}"
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # a link that somebody put there is not followed
        path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
