"""The cache of weights: files fetched, verified, converted once, and kept as safetensors.

`docs/weights.md` says what the cache promises. A file under its final name is complete, because it is written under
another name and renamed. The SHA-256 of its download agreed with the published digits. Its own digest is the one that
its pin, `NAME.pin.json` beside it, records. One process at a time makes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fpg_zoo.errors import CheckpointError, DigestError, DownloadError, StorageError
from fpg_zoo.files import (
    FOLDER_ENDING,
    TEMPORARY,
    on_terminal,
    open_regular,
    read_regular,
    sha256_of,
    storage_errors,
    temporary_folder,
)
from fpg_zoo.locks import LockedError, file_lock
from fpg_zoo.text import printable
from fpg_zoo.weights.download import MAX_BYTES, Partial, download
from fpg_zoo.weights.environment import cache_folder, is_offline, mirrored
from fpg_zoo.weights.manifest import Published, PublishedBackbone, load_manifest

# Takes a verified file, what its converted form is to say of its origin, and where to write that form, in a folder that
# is removed afterwards.
Convert = Callable[[Path, Mapping[str, str], Path], None]


@dataclass(frozen=True)
class Pin:
    """What is known of a cached file: its source with the full SHA-256, and its own SHA-256."""

    source_url: str
    source_sha256: str
    sha256: str

    def __str__(self) -> str:
        """The record's text, which ends in a digest of the rest so that a change of it is found."""
        fields = asdict(self)
        check = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
        return json.dumps({**fields, "check": check}, indent=1) + "\n"


@dataclass(frozen=True)
class Verdict:
    """What hashing a file again said of it; `detail` gives the digests or the origin."""

    path: Path
    state: Literal["good", "altered", "foreign"]
    detail: str


_MAX_PIN_BYTES = 1 << 16
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGITS_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")


Role = Literal["weights", "partial", "temporary", "foreign"]
PART_ENDING = ".pth.part"
HUB_FOLDER = "hub"


def role_of(path: Path) -> Role | None:
    """What something in a cache folder is, by its name and kind.

    Returns:
        `weights` with their pin; a `partial` download; a `temporary` file or folder of a process that works or was
        killed; a `foreign` file, or one that has gone away. None for what goes with others (pins, locks, records, the
        hub's folder) and for folders that nobody takes for weights.
    """
    name = path.name
    if not os.path.isfile(path):
        if name == HUB_FOLDER:
            return None
        if not os.path.isdir(path):
            return "foreign"
        if name.startswith(TEMPORARY) and name.endswith(FOLDER_ENDING) and not path.is_symlink():
            return "temporary"
        return "foreign" if path.suffix == ".safetensors" else None
    if name.startswith(TEMPORARY):
        return "temporary"
    if name.endswith(PART_ENDING):
        return "partial"
    if name.endswith((".pin.json", f"{PART_ENDING}.json")) or (name.startswith(".") and name.endswith(".lock")):
        return None
    return "weights" if path.suffix == ".safetensors" and pin_path(path).is_file() else "foreign"


def pin_path(path: Path) -> Path:
    """Where the pin of a converted file is."""
    return path.with_suffix(".pin.json")


class Store:
    """The cache folder. Nothing is created before something is to be kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder()

    def path(self, entry: Published | PublishedBackbone) -> Path:
        """Where the converted file is or will be; another digest in the manifest means another name."""
        return self.folder / f"{entry.name}-{entry.sha256[:8]}.safetensors"

    def partial(self, entry: Published | PublishedBackbone) -> Partial:
        """What has come so far of a download that was cut short."""
        return Partial(self.path(entry).with_suffix(PART_ENDING))

    def pin(self, path: Path) -> Pin | None:
        """What is recorded of a cached file; None if nothing is.

        Raises:
            StorageError: the record cannot be read, or was changed.
        """
        record = pin_path(path)
        if not record.exists():
            return None
        try:
            text = read_regular(record, max_bytes=_MAX_PIN_BYTES).decode("utf-8")
            pin = Pin(**{name: value for name, value in json.loads(text).items() if name != "check"})
            for digest in (pin.source_sha256, pin.sha256):
                if not _SHA256.fullmatch(digest):
                    raise ValueError(f"{digest!r} is no SHA-256")
            if text != str(pin):
                raise ValueError("not as it was written")
            return pin
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise StorageError(
                f"{record}: unreadable ({reason}); delete it and {path.name} to fetch both again"
            ) from None

    def obtain(self, entry: Published | PublishedBackbone, convert: Convert) -> Path:
        """The converted file: found, or else downloaded, verified, converted and kept, by one process at a time.

        Args:
            entry: the manifest's row.
            convert: makes the file that is kept; any error of it goes on to the caller, and nothing is kept then.

        Raises:
            DownloadError: it could not be fetched whole, or the network is forbidden. What has come is kept.
            DigestError: it is not the file that was published, or not the one that was pinned before; it is deleted.
            StorageError: the cache folder cannot be written or locked, or is full. What has come is kept.
        """
        final = self.path(entry)
        if final.is_file():
            return final
        if is_offline():
            raise DownloadError(
                f"{entry.name} is not in the cache {self.folder} and HF_HUB_OFFLINE forbids the network: unset it, run "
                f"`fpg-zoo download {entry.name}` while online, or point FPG_ZOO_CACHE to a cache that has it"
            )
        with self.alone(final, f"waiting for another process that fetches {entry.name}"):
            if not final.is_file():  # or else the process before made it
                self._fetch(entry, convert, final)
        return final

    def _fetch(self, entry: Published | PublishedBackbone, convert: Convert, final: Path) -> None:
        partial = self.partial(entry)
        source_sha256 = self._verified(entry, partial)
        origin = {
            "source_url": entry.url,
            "source_sha256": source_sha256,
            "tag": entry.tag,
            "licence": entry.license,
        }
        with temporary_folder(self.folder, final.stem) as workplace:
            converted, record = workplace / final.name, workplace / pin_path(final).name
            try:
                convert(partial.path, origin, converted)
            except CheckpointError:
                partial.discard()
                raise
            pin = Pin(source_url=entry.url, source_sha256=source_sha256, sha256=sha256_of(converted))
            with storage_errors(self.folder):
                record.write_bytes(str(pin).encode("utf-8"))
                # The pin goes first: a file without a pin would count as foreign, a pin without its file is harmless.
                record.replace(pin_path(final))
                converted.replace(final)
        partial.discard()

    def _verified(self, entry: Published | PublishedBackbone, partial: Partial) -> str:
        """Bring the partial file to its end; returns its SHA-256, which is the published and the pinned one."""
        expectations = [(entry.sha256, "as published")]
        pinned = self.pin(self.path(entry))
        if pinned:
            expectations.append((pinned.source_sha256, "pinned at the first download"))
        url = mirrored(entry.url)
        digest, resumed = download(url, partial, description=entry.name, copies=2)
        if resumed and not all(digest.startswith(expected) for expected, _ in expectations):
            # Its parts are of two files after all, or the machine went down before the first was on the disk.
            partial.discard()
            digest, _ = download(url, partial, description=entry.name, copies=2)
        for expected, origin in expectations:
            if not digest.startswith(expected):
                page = _is_page(partial.path)
                partial.discard()
                dots = "" if len(expected) == 64 else "..."
                cause = "it is a web page, of a login or an error perhaps" if page else "it was altered on its way"
                raise DigestError(
                    f"{url}: expected SHA-256 {expected}{dots} ({origin}), found {digest}; {cause}, and has been "
                    "deleted. Try again or another mirror (FPG_ZOO_MIRROR)"
                )
        return digest

    @contextlib.contextmanager
    def alone(self, path: Path, waiting: str | None) -> Iterator[None]:
        """Hold the lock of one file of the cache; another process that wants it waits, or fails at once.

        Args:
            path: the file, which need not be there.
            waiting: what to say on a terminal while another process has the lock; None not to wait.

        Raises:
            StorageError: the folder cannot be written, or its file system has no locks.
            LockedError: another process has the lock, and `waiting` is None.
        """
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f".{path.stem}.lock"
        with contextlib.ExitStack() as held:
            try:
                try:
                    held.enter_context(file_lock(place, wait=False))
                except LockedError:
                    if waiting is None:
                        raise
                    if on_terminal():
                        print(f"{waiting} ...", file=sys.stderr)
                    held.enter_context(file_lock(place, wait=True))
            except OSError as error:
                reason = error.strerror or error
                raise StorageError(
                    f"cannot write in {self.folder}, or its file system has no locks ({reason}); without them two "
                    "processes may spoil each other's files. Set FPG_ZOO_CACHE to a folder on a local disk"
                ) from None
            yield

    def listing(self) -> list[Path]:
        """What lies in the folder, in order of names; nothing if there is no folder.

        Raises:
            StorageError: it is a file, or cannot be read.
        """
        try:
            return sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            what = "a file, not a folder" if self.folder.exists() else "below a file"
            raise StorageError(f"{self.folder}: {what}; set FPG_ZOO_CACHE to a folder") from None
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot be read ({error.strerror or error}); set FPG_ZOO_CACHE to another folder"
            ) from None

    def verify(self) -> Iterator[Verdict]:
        """Hash every file of the cache again and compare it with its pin; what goes away meanwhile is passed over.

        Raises:
            StorageError: the folder is a file, or cannot be read.
        """
        for path in self.listing():
            role = role_of(path)
            if role in ("weights", "foreign"):
                with contextlib.suppress(FileNotFoundError):
                    yield self.judge(path) if role == "weights" else _foreign(path)

    def judge(self, path: Path) -> Verdict:
        """Hash one converted file again and compare it with its pin.

        Raises:
            FileNotFoundError: it has gone away.
        """
        try:
            pin = self.pin(path)
        except StorageError as error:
            return Verdict(path, "altered", str(error))
        if pin is None:
            return _foreign(path)
        digest = _hashed(path)
        if isinstance(digest, Verdict):
            return digest
        if digest == pin.sha256:
            return Verdict(path, "good", f"from {printable(pin.source_url)}")
        return Verdict(path, "altered", f"expected SHA-256 {pin.sha256}, found {digest}; delete it to fetch it again")


def _foreign(path: Path) -> Verdict:
    path.lstat()  # raises if it has gone away
    return Verdict(path, "foreign", "nothing is recorded of its origin; delete it if you do not know it")


def _hashed(path: Path) -> str | Verdict:
    """The file's SHA-256, or the verdict on one that cannot be read."""
    try:
        return sha256_of(path, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or error
        return Verdict(path, "altered", f"cannot be read ({reason}); make it readable, or delete it")


def _is_page(path: Path) -> bool:
    with storage_errors(path.parent), open_regular(path) as stream:
        return stream.read(64).lstrip().startswith(b"<")


def packaged_file(entry: Published) -> Path:
    """A file that comes with the zoo, after hashing it.

    Raises:
        CheckpointError: it is not there.
        DigestError: it was altered.
    """
    path = entry.packaged
    if path is None:
        raise ValueError(f"{entry.name} does not come with the zoo")
    if not path.is_file():
        raise CheckpointError(f"{path}: comes with fpg-zoo, and is not there; install it again")
    digest = _hashed(path)
    if digest != entry.sha256:
        detail = digest.detail if isinstance(digest, Verdict) else f"expected SHA-256 {entry.sha256}, found {digest}"
        raise DigestError(f"{path}: comes with fpg-zoo, and was altered ({detail}); install it again")
    return path


def verify_file(path: Path) -> Verdict:
    """Hash one file and compare it with its pin, with the digits that end its name, as published files have them, or
    with the manifest if it comes with the zoo.

    Raises:
        CheckpointError: no such file, or nothing to compare it with.
    """
    if not path.is_file():
        what = "no regular file, but a pipe or a device, perhaps" if os.path.lexists(path) else "no such file"
        what = "a folder; name a file, or set FPG_ZOO_CACHE to it and name none" if path.is_dir() else what
        raise CheckpointError(f"{path}: {what}")
    try:
        return _compared(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file any more") from None


def _compared(path: Path) -> Verdict:
    if path.suffix == ".safetensors" and pin_path(path).is_file():
        return Store(path.parent).judge(path)
    packaged = {entry.packaged: entry for entry in load_manifest().checkpoints if entry.packaged}
    if path.resolve() in packaged:
        try:
            packaged_file(packaged[path.resolve()])
        except DigestError as error:
            return Verdict(path, "altered", str(error))
        return Verdict(path, "good", "comes with fpg-zoo")
    named = _DIGITS_IN_NAME.search(path.name)
    if named is None:
        raise CheckpointError(
            f"{path}: nothing to compare it with, neither a pin beside it nor SHA-256 digits at the end of its name"
        )
    expected, digest = named.group(1), _hashed(path)
    if isinstance(digest, Verdict):
        return digest
    if not digest.startswith(expected):
        return Verdict(path, "altered", f"expected SHA-256 {expected}..., found {digest}")
    known = [entry.name for entry in load_manifest().downloads if entry.sha256 == expected]
    return Verdict(path, "good", f"SHA-256 {digest}" + (f", published as {known[0]}" if known else ""))
