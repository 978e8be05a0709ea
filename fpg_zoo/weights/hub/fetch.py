"""Models on the Hugging Face hub: fetched, verified and pinned.

huggingface_hub fetches, caches, resumes and finds the token, as its variables say (HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE). It compares sizes only; the digests that the hub states are compared here, once, and pinned.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fpg_zoo.errors import CheckpointError, ConfigError, DigestError, DownloadError, StorageError
from fpg_zoo.files import TEMPORARY, atomic_write, open_regular, read_regular, sha256_of
from fpg_zoo.text import printable, quoted
from fpg_zoo.version import __version__
from fpg_zoo.weights.download import MAX_BYTES
from fpg_zoo.weights.environment import cache_folder, is_offline
from fpg_zoo.weights.hub.errors import check_online, hub_errors
from fpg_zoo.weights.store import Verdict

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf-hub:"
# As in safetensors_files, which imports torch; fetching does without.
CONFIG, WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPO = re.compile(r"(?!.*(?:--|\.\.|\.git$))\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?", re.ASCII)
# What git allows in the name of a branch or tag; the hub's cache makes a path of it.
_REVISION = re.compile(
    r"(?![-/])(?!.*(?:\.\.|//|/\.|@\{|\.lock(?:/|$)))[^\x00-\x20\x7f~^:?*\[\\.][^\x00-\x20\x7f~^:?*\[\\]*(?<![/.])"
)
_MAX_JSON_BYTES = 16 << 20  # of a config and of a record of ours, which have a few thousand
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class _Seen:
    """What is pinned of a file: its SHA-256, and the size and time that tell whether it is the one that was hashed."""

    sha256: str
    size: int
    modified_ns: int


def fetch(spec: str) -> Path:
    """A model's folder, with `config.json` and `model.safetensors` of one and the same commit.

    Args:
        spec: OWNER/REPO or OWNER/REPO@REVISION; a revision is a branch, a tag or a commit hash.

    Returns: The snapshot folder in huggingface_hub's cache. When they were last written, both files had the digests
        that the hub states and those pinned at the first fetch of the commit. A file that has not been written since is
        not hashed again. Offline, or when the hub cannot be reached, it is what the cache has of the revision.

    Raises:
        ConfigError: `spec` is not of that form.
        DownloadError: the hub refuses, cannot be reached, or has not both files.
        DigestError: a file is not the one that the hub states or that was pinned; it has been removed from the cache.
        CheckpointError: the repository holds another kind of model.
        StorageError: a cache cannot be written.
    """
    repo, revision = _parsed(spec)
    what = PREFIX + spec
    cache_folder()  # so that it is known before anything is fetched
    _hub_cache(what)
    if revision is not None and _COMMIT.fullmatch(revision):
        commit = revision
    else:
        # Asks once which commit it is, as a branch may move between two requests.
        with hub_errors(what, repo):
            # huggingface_hub reads HF_HUB_OFFLINE when it is imported, and the variable may have been set since.
            commit = Path(
                hub_api().snapshot_download(
                    repo, revision=revision, allow_patterns=[CONFIG], local_files_only=is_offline()
                )
            ).name
    record = _record_path(repo, commit)
    known = _read_record(record)[2] if record.exists() else {}
    seen = {}
    for name in (CONFIG, WEIGHTS):
        file = _downloaded(what, repo, commit, name)
        seen[name] = _verified(what, repo, commit, file, known.get(name), record)
        if name == CONFIG:
            _refuse_other_files(what, file)
    if seen != known:
        try:
            _write_record(record, repo, commit, seen)
        except StorageError:
            # Where only the times differ, as in a copy of the caches that cannot be written, it is hashed each time.
            if {name: one.sha256 for name, one in seen.items()} != {name: one.sha256 for name, one in known.items()}:
                raise
    return file.parent


def verify() -> Iterator[Verdict]:
    """Hash every pinned file of the hub again that is still in huggingface_hub's cache, and compare it with its pin."""
    from huggingface_hub import try_to_load_from_cache

    for record in sorted((cache_folder() / "hub").glob("*/*.json")):
        if record.name.startswith(TEMPORARY):
            continue
        try:
            repo, commit, known = _read_record(record)
        except StorageError as error:
            yield Verdict(record, "altered", str(error))
            continue
        for name, seen in known.items():
            cached = try_to_load_from_cache(repo, name, revision=commit)
            if not isinstance(cached, str):
                continue
            path = Path(cached).resolve()
            try:
                digest = sha256_of(path, name, max_bytes=MAX_BYTES)
            except FileNotFoundError:
                continue  # it has been removed meanwhile
            except OSError as error:
                yield Verdict(path, "altered", f"cannot be read ({error.strerror}); make it readable, or delete it")
                continue
            if digest == seen.sha256:
                yield Verdict(path, "good", f"{name} of {PREFIX}{repo}@{commit}")
            else:
                detail = f"{name} of {PREFIX}{repo}@{commit}: expected SHA-256 {seen.sha256}, found {digest}"
                yield Verdict(path, "altered", f"{detail}; delete it to fetch it again")


def check_spec(spec: str) -> None:
    """Whether `spec` is one that `fetch` takes, without asking the hub.

    Raises:
        ConfigError: it is not of that form.
    """
    _parsed(spec)


def hub_api(token: str | None = None) -> HfApi:
    """huggingface_hub's client, which tells the hub which library asks; the token it finds itself if None."""
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="fpg_zoo", library_version=__version__)


def is_repository(name: str) -> bool:
    """Whether `name` is of the form OWNER/REPO."""
    return _REPO.fullmatch(name) is not None


def is_branch(name: str) -> bool:
    """Whether `name` can be a branch's; a commit hash is none."""
    return _REVISION.fullmatch(name) is not None and not _COMMIT.fullmatch(name)


def _parsed(spec: str) -> tuple[str, str | None]:
    repo, at, revision = spec.partition("@")
    if not _REPO.fullmatch(repo) or (at and not _REVISION.fullmatch(revision)):
        raise ConfigError(
            f"{quoted(PREFIX + spec)}: the form is {PREFIX}OWNER/REPO or {PREFIX}OWNER/REPO@REVISION, where REVISION "
            "is a branch, a tag or a commit hash"
        )
    return repo, revision if at else None


def _downloaded(what: str, repo: str, commit: str, name: str) -> Path:
    """A file of a commit in huggingface_hub's cache; no request is made for one that is there."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with hub_errors(what, repo):
        try:
            file = Path(hub_api().hf_hub_download(repo, name, revision=commit, local_files_only=is_offline()))
        except LocalEntryNotFoundError:
            raise  # the hub could not be reached
        except EntryNotFoundError:
            raise DownloadError(
                f"{what} has no {name}{_instead(repo, commit)}; the zoo loads repositories with {CONFIG} and "
                f"{WEIGHTS}, which `fpg-zoo push` makes"
            ) from None
    if file.parent.name != commit:
        raise DigestError(f"{what}: asked for commit {commit}, the hub answered with {file.parent.name}; try again")
    return file


def _instead(repo: str, commit: str) -> str:
    try:
        names = hub_api().list_repo_files(repo, revision=commit)
        pickles = [printable(name) for name in names if name.endswith(_PICKLES)]
    except Exception:  # it is a detail of another error, and that one is to be told
        return ""
    return f", only pickles ({', '.join(pickles[:3])}), which are not loaded from a hub" if pickles else ""


def _refuse_other_files(what: str, file: Path) -> None:
    """Look at the config before the weights are fetched, which may be large and of anything."""
    try:
        data = json.loads(read_regular(file, max_bytes=_MAX_JSON_BYTES))
        ours = isinstance(data, dict) and {"schema_version", "architecture", "config"} <= data.keys()
    except (ValueError, RecursionError):
        ours = False
    except OSError as error:
        raise _unreadable(what, file, error) from None
    if not ours:
        raise CheckpointError(f"{what}: its {CONFIG} describes no model of the zoo; check the repository's name")


def _verified(what: str, repo: str, commit: str, file: Path, known: _Seen | None, record: Path) -> _Seen:
    """What there is to pin of a file that is as pinned or, for want of a pin, as the hub states."""
    try:
        status = file.stat()
        if known and (known.size, known.modified_ns) == (status.st_size, status.st_mtime_ns):
            return known
        digest = sha256_of(file, f"{repo}, {file.name}", max_bytes=MAX_BYTES)
    except OSError as error:
        raise _unreadable(what, file, error) from None
    if known:
        expected, origin, compared = known.sha256, f"pinned in {record} when it was first fetched", digest
    else:
        expected, origin, compared = _stated(what, repo, commit, file), "as the hub states", digest
        if _COMMIT.fullmatch(expected):  # stored in git itself, whose digest is of a heading and the content
            compared = _git_sha1(file)
    if expected != compared:
        kind = "SHA-256" if _SHA256.fullmatch(expected) else "git SHA-1" if _COMMIT.fullmatch(expected) else "ETag"
        remedy = "it has been removed from the cache, try again" if _removed(file) else f"delete {file.resolve()}"
        raise DigestError(
            f"{what}, commit {commit}: {file.name}: expected {kind} {expected} ({origin}), found {compared}; it was "
            f"altered on its way or on the disk; {remedy}"
        )
    return _Seen(digest, status.st_size, status.st_mtime_ns)


def _unreadable(what: str, file: Path, error: OSError) -> StorageError:
    return StorageError(f"{what}: {file}: cannot be read ({error.strerror or error}); delete it to fetch it again")


def _git_sha1(file: Path) -> str:
    with open_regular(file) as stream:
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _stated(what: str, repo: str, commit: str, file: Path) -> str:
    """The digest that the hub states: the SHA-256 of a large file, git's SHA-1 of another."""
    if file.is_symlink() and file.readlink().parent.name == "blobs":
        return file.readlink().name  # huggingface_hub names a file after it
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    check_online(what)
    with hub_errors(what, repo):
        return get_hf_file_metadata(hf_hub_url(repo, file.name, revision=commit)).etag or "none"


def _removed(file: Path) -> bool:
    """Remove a file of huggingface_hub's cache and what it links to there; whether that could be done."""
    cache = _hub_cache(file.name).resolve()
    try:
        while cache in (place := file.parent.resolve() / file.name).parents:
            target = place.readlink() if place.is_symlink() else None
            place.unlink(missing_ok=True)
            if target is None:
                break
            file = place.parent / target
    except OSError:
        return False
    return True


def _hub_cache(what: str) -> Path:
    """Where huggingface_hub keeps its files.

    Raises:
        StorageError: below a home folder, and there is none; huggingface_hub would make a folder named "~".
    """
    from huggingface_hub import constants

    folder = os.path.expanduser(constants.HF_HUB_CACHE)
    if folder.startswith("~"):
        raise StorageError(
            f"{what}: no home folder is known for huggingface_hub's cache; set HF_HOME to a folder's absolute path "
            "before Python starts"
        )
    return Path(folder)


def _record_path(repo: str, commit: str) -> Path:
    return cache_folder() / "hub" / repo.replace("/", "--") / f"{commit}.json"


def _read_record(record: Path) -> tuple[str, str, dict[str, _Seen]]:
    """Repository, commit and what is pinned of each file.

    Raises:
        StorageError: the record cannot be read.
    """
    try:
        data = json.loads(read_regular(record, max_bytes=_MAX_JSON_BYTES))
        repo, commit = data["repo"], data["commit"]
        seen = {name: _Seen(**fields) for name, fields in data["files"].items()}
        if record != _record_path(repo, commit) or not seen.keys() <= {CONFIG, WEIGHTS}:
            raise ValueError("it is of another repository or commit")
        if not all(_SHA256.fullmatch(one.sha256) for one in seen.values()):
            raise ValueError("no SHA-256")
        return repo, commit, seen
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise StorageError(f"{record}: unreadable ({reason}); delete it to pin the files anew") from None


def _write_record(record: Path, repo: str, commit: str, seen: Mapping[str, _Seen]) -> None:
    data = {"repo": repo, "commit": commit, "files": {name: asdict(one) for name, one in seen.items()}}
    with atomic_write(record) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
