"""What the environment decides: where the cache is, which mirror serves, whether the network may be used."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fpg_zoo.errors import DownloadError, StorageError
from fpg_zoo.http_client import masked
from fpg_zoo.weights.manifest import load_manifest

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # of more than the one letter of a Windows drive
_MIRROR_SCHEMES = ("http", "https", "file")


def cache_folder() -> Path:
    """`FPG_ZOO_CACHE`, or `fpg_zoo` in the user's cache folder.

    Raises:
        StorageError: it is below a home folder, and there is none.
    """
    chosen = os.environ.get("FPG_ZOO_CACHE")
    folder = os.path.expanduser(
        chosen or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "fpg_zoo")
    )
    # A user number without an entry, as in `docker run --user`, has none; a folder named "~" is not what was meant.
    if folder.startswith("~"):
        setting = f"FPG_ZOO_CACHE={chosen}" if chosen else "the cache"
        raise StorageError(
            f"{setting}: no home folder is known, as HOME is not set and the user has no entry in the system's list; "
            "set FPG_ZOO_CACHE to a folder's absolute path"
        )
    return Path(folder)


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids the network, with the values that huggingface_hub takes for yes."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def mirrored(url: str) -> str:
    """`url`, with its host replaced by `FPG_ZOO_MIRROR` if that is set and the host is one of the manifest's.

    Raises:
        DownloadError: that is no URL, or one of another kind than http:, https: and file:.
    """
    mirror = os.environ.get("FPG_ZOO_MIRROR")
    hosts = [host for host in (load_manifest().host, load_manifest().backbone_host) if host and url.startswith(host)]
    if not mirror or not hosts:
        return url
    scheme, masked_mirror = _SCHEME.match(mirror), masked(mirror)
    if scheme is None:
        uri = "file:///..." if masked_mirror != mirror else Path(os.path.expanduser(mirror)).absolute().as_uri()
        raise DownloadError(
            f"FPG_ZOO_MIRROR={masked_mirror}: no URL; for a folder set it to {uri}, for a server to what begins with https://"
        )
    if scheme.group(1).lower() not in _MIRROR_SCHEMES:
        raise DownloadError(
            f"FPG_ZOO_MIRROR={masked_mirror}: a mirror is one of http:, https: or file:; set it to such a URL"
        )
    return mirror.rstrip("/") + url[len(hosts[0]) :]
