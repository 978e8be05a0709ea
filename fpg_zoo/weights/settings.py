"""What the environment decides: where the cache is, which mirror serves, whether the network may be used."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fpg_zoo.errors import DownloadError
from fpg_zoo.http_client import masked
from fpg_zoo.weights.manifest import load_manifest

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # of more than the one letter of a Windows drive


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
    """`url`, with the published host replaced by `FPG_ZOO_MIRROR` if that is set.

    Raises:
        DownloadError: that is no URL.
    """
    mirror = os.environ.get("FPG_ZOO_MIRROR")
    host = load_manifest().host
    if not mirror or not url.startswith(host):
        return url
    if not _SCHEME.match(mirror):
        shown = masked(mirror)
        uri = "file:///..." if shown != mirror else Path(os.path.expanduser(mirror)).absolute().as_uri()
        raise DownloadError(
            f"FPG_ZOO_MIRROR={shown}: no URL; for a folder set it to {uri}, for a server to what begins with https://"
        )
    return mirror.rstrip("/") + url[len(host) :]
