"""What lies in the cache folder, and which of it may go."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fpg_zoo.files import TEMPORARY, storage_errors
from fpg_zoo.locks import LockedError
from fpg_zoo.weights.download import Partial
from fpg_zoo.weights.manifest import load_manifest
from fpg_zoo.weights.store import HUB_FOLDER, PART_ENDING, Store, pin_path, role_of

Kind = Literal["weights", "superseded", "foreign", "partial", "temporary"]
_STALE_SECONDS = 3600.0  # for what has no lock


@dataclass(frozen=True)
class Item:
    """A file of the cache, or a folder of files.

    Attributes:
        path: where it is.
        kind: `weights` are in the manifest, `superseded` ones no longer. `foreign` files were not put there by the zoo.
            A download may be `partial`. A `temporary` file or folder is of a process that works or was killed.
        size: in bytes, a folder's files together.
    """

    path: Path
    kind: Kind
    size: int


def contents(store: Store) -> list[Item]:
    """The files of the cache by name, but for the small ones that go with them (pins, locks).

    Raises:
        StorageError: the folder is a file, or cannot be read.
    """
    listed = {store.path(entry) for entry in load_manifest().downloads}
    items = []
    for path in store.listing():
        kind = _kind(path, path in listed)
        if kind:
            with contextlib.suppress(FileNotFoundError):  # its process has ended meanwhile
                items.append(Item(path, kind, _size(path)))
    return items


def _kind(path: Path, listed: bool) -> Kind | None:
    role = role_of(path)
    return "superseded" if role == "weights" and not listed else role


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder.

    Raises:
        FileNotFoundError: it has gone away.
    """
    if _is_folder(path):
        return sum(_size(inner) for inner in path.iterdir())
    return path.stat().st_size if os.path.isfile(path) else path.lstat().st_size


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def prune(store: Store) -> Iterator[Item]:
    """Remove partial downloads, temporary files and superseded weights, but for what another process works on.

    Yields:
        What was removed.

    Raises:
        StorageError: the folder cannot be read or written.
    """
    for item in contents(store):
        if item.kind not in ("partial", "temporary", "superseded"):
            continue
        final = store.folder / f"{_stem(item.path)}.safetensors"
        try:
            with store.alone(final, waiting=None), storage_errors(store.folder):
                if item.kind == "partial":
                    Partial(item.path).discard()
                elif _is_folder(item.path):
                    shutil.rmtree(item.path)
                else:
                    item.path.unlink(missing_ok=True)
                if item.kind == "superseded":
                    pin_path(item.path).unlink(missing_ok=True)
        except LockedError:
            continue
        yield item
    # Pins of the hub's files are written without a lock.
    for path in sorted((store.folder / HUB_FOLDER).glob(f"*/{TEMPORARY}*")):
        try:
            status = path.lstat()
            if time.time() - status.st_mtime < _STALE_SECONDS:
                continue
            with storage_errors(store.folder):
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
        yield Item(path, "temporary", status.st_size)


def _stem(path: Path) -> str:
    """The name, without ending, of the weights that a file belongs to."""
    name = path.name.removeprefix(TEMPORARY)
    return name.removesuffix(PART_ENDING) if name.endswith(PART_ENDING) else name.rpartition(".")[0]
