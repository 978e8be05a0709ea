"""Files written all or nothing, with clear errors, and their digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from fpg_zoo.errors import StorageError

TEMPORARY = ".tmp-"  # begins the names of files that are being written
_CHUNK = 1 << 20


def sha256_of(path: Path, description: str | None = None) -> str:
    """The file's SHA-256 in hex, read in pieces, with progress on a terminal."""
    digest = hashlib.sha256()
    label = description or path.name
    with (
        path.open("rb") as stream,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=label, disable=None, leave=False) as bar,
    ):
        while piece := stream.read(_CHUNK):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
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
def aside(folder: Path, suffix: str) -> Iterator[Path]:
    """A new empty file in `folder` (made if need be), removed at the end unless it was renamed.

    Raises:
        StorageError: the folder cannot be made or written.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Not mkstemp: its files are readable by their owner alone, and a cache may be shared.
        path = folder / f"{TEMPORARY}{uuid.uuid4().hex}{suffix}"
        path.touch(exist_ok=False)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors laid out in a row each, copied where they share memory, which the format has no notion of."""
    taken: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if memory in taken else tensor.contiguous()
        taken.add(memory)
    return apart


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors over the file `path`, which keeps its permissions, and flush them to the disk.

    Raises:
        StorageError: the file cannot be written, or the disk is full.
    """
    with explained(path.parent):
        mode = path.stat().st_mode
        try:
            save_file(_apart(tensors), path, dict(metadata))
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from error
        path.chmod(mode)  # safetensors replaces the file by one that its owner alone can read
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
