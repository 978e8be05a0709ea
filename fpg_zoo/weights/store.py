"""The cache of weights: files fetched, verified, converted once, and kept as safetensors.

What the cache promises: a file under its final name is complete (it is written aside and renamed), came from a download
whose SHA-256 agreed with the published digits, and has the digest that its pin (`NAME.pin.json` beside it) records.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from fpg_zoo.errors import CheckpointError, DigestError, DownloadError, StorageError
from fpg_zoo.files import TEMPORARY, aside, explained, sha256_of, write_safetensors
from fpg_zoo.weights.download import download
from fpg_zoo.weights.manifest import Published, load_manifest


@dataclass(frozen=True)
class Pin:
    """What is known of a cached file: its source with the full SHA-256, and its own SHA-256."""

    source_url: str
    source_sha256: str
    sha256: str


@dataclass(frozen=True)
class Verdict:
    """What hashing a file again said of it; `detail` gives the digests or the origin."""

    path: Path
    state: Literal["good", "altered", "foreign"]
    detail: str


_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGITS_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")


def cache_folder() -> Path:
    """`FPG_ZOO_CACHE`, or `fpg_zoo` in the user's cache folder."""
    chosen = os.environ.get("FPG_ZOO_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fpg_zoo"


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids the network, with the values that huggingface_hub takes for yes."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def mirrored(url: str) -> str:
    """`url`, with the published host replaced by `FPG_ZOO_MIRROR` if that is set."""
    mirror = os.environ.get("FPG_ZOO_MIRROR")
    host = load_manifest().host
    return mirror.rstrip("/") + url[len(host) :] if mirror and url.startswith(host) else url


def pin_path(path: Path) -> Path:
    """Where the pin of a converted file is."""
    return path.with_suffix(".pin.json")


class Store:
    """The cache folder. Nothing is created before something is to be kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder()

    def path(self, entry: Published) -> Path:
        """Where the converted file is or will be; another digest in the manifest means another name."""
        return self.folder / f"{entry.name}-{entry.sha256[:8]}.safetensors"

    def pin(self, path: Path) -> Pin | None:
        """What is recorded of a cached file; None if nothing is.

        Raises:
            StorageError: the record cannot be read.
        """
        record = pin_path(path)
        if not record.is_file():
            return None
        try:
            pin = Pin(**json.loads(record.read_text(encoding="utf-8")))
            for digest in (pin.source_sha256, pin.sha256):
                if not _SHA256.fullmatch(digest):
                    raise ValueError(f"{digest!r} is no SHA-256")
            return pin
        except (OSError, ValueError, TypeError) as error:
            raise StorageError(
                f"{record}: unreadable ({error}); delete it and {path.name} to fetch both again"
            ) from None

    def cached(self, entry: Published) -> Path | None:
        """The converted file, if it is there."""
        path = self.path(entry)
        return path if path.is_file() else None

    @contextlib.contextmanager
    def fetched(self, entry: Published) -> Iterator[tuple[Path, str]]:
        """Download a published file aside and verify it; the file is gone when the block ends, however it ends.

        Yields:
            Its path and its full SHA-256.

        Raises:
            DownloadError: it could not be fetched whole, or the network is forbidden.
            DigestError: it is not the file that was published, or not the one that was pinned before.
            StorageError: the cache folder cannot be written.
        """
        if is_offline():
            raise DownloadError(
                f"{entry.name} is not in the cache {self.folder} and HF_HUB_OFFLINE forbids the network: unset it, run "
                f"`fpg-zoo download {entry.name}` while online, or point FPG_ZOO_CACHE to a cache that has it"
            )
        pinned = self.pin(self.path(entry))
        with aside(self.folder, ".part") as part:
            url = mirrored(entry.url)
            found = download(url, part, description=entry.name)
            expectations = [(entry.sha256, "as published")]
            if pinned:
                expectations.append((pinned.source_sha256, "pinned at the first download"))
            for expected, origin in expectations:
                if not found.startswith(expected):
                    dots = "" if len(expected) == 64 else "..."
                    raise DigestError(
                        f"{url}: expected SHA-256 {expected}{dots} ({origin}), found {found}; the file "
                        "was altered or damaged on its way and has been deleted. Try again or another mirror"
                    )
            yield part, found

    def keep(
        self, entry: Published, tensors: Mapping[str, Tensor], source_sha256: str, metadata: Mapping[str, str]
    ) -> Path:
        """Write converted tensors under the final name, all or nothing, with their origin in the file's metadata.

        Raises:
            StorageError: the cache folder cannot be written, or the disk is full.
        """
        final = self.path(entry)
        origin = {
            "source_url": entry.url,
            "source_sha256": source_sha256,
            "tag": entry.tag,
            "licence": entry.licence,
            **metadata,
        }
        with aside(self.folder, ".safetensors") as temporary:
            write_safetensors(tensors, temporary, origin)
            pin = Pin(source_url=entry.url, source_sha256=source_sha256, sha256=sha256_of(temporary))
            with aside(self.folder, ".json") as record, explained(self.folder):
                record.write_text(json.dumps(asdict(pin), indent=1) + "\n", encoding="utf-8")
                # The pin goes first: a file without a pin would count as foreign, a pin without its file is harmless.
                record.replace(pin_path(final))
                temporary.replace(final)
        return final

    def verify(self) -> Iterator[Verdict]:
        """Hash every file of the cache again and compare it with its pin."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            if not path.name.startswith(TEMPORARY):
                yield self.judge(path)

    def judge(self, path: Path) -> Verdict:
        """Hash one converted file again and compare it with its pin."""
        try:
            pin = self.pin(path)
        except StorageError as error:
            return Verdict(path, "foreign", str(error))
        if pin is None:
            return Verdict(path, "foreign", "nothing is recorded of its origin; delete it if you do not know it")
        found = sha256_of(path)
        if found == pin.sha256:
            return Verdict(path, "good", f"from {pin.source_url}")
        return Verdict(path, "altered", f"expected SHA-256 {pin.sha256}, found {found}; delete it to fetch it again")


def verify_file(path: Path) -> Verdict:
    """Hash one file and compare it with its pin, or with the digits that end its name, as published files have them.

    Raises:
        CheckpointError: no such file, or nothing to compare it with.
    """
    if not path.is_file():
        what = "a folder; name a file, or set FPG_ZOO_CACHE to it and name none" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {what}")
    store = Store(path.parent)
    if path.suffix == ".safetensors" and pin_path(path).is_file():
        return store.judge(path)
    named = _DIGITS_IN_NAME.search(path.name)
    if named is None:
        raise CheckpointError(
            f"{path}: nothing to compare it with, neither a pin beside it nor SHA-256 digits at the end of its name"
        )
    expected, found = named.group(1), sha256_of(path)
    if not found.startswith(expected):
        return Verdict(path, "altered", f"expected SHA-256 {expected}..., found {found}")
    known = [entry.name for entry in load_manifest().checkpoints if entry.sha256 == expected]
    return Verdict(path, "good", f"SHA-256 {found}" + (f", published as {known[0]}" if known else ""))
