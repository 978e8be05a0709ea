"""One file over HTTP(S) (or from a `file:` mirror), hashed while it streams in."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fpg_zoo.errors import DownloadError
from fpg_zoo.files import explained
from fpg_zoo.version import __version__

TIMEOUT_SECONDS = 30.0
_CHUNK = 1 << 20
_REMEDY = "check the network, or set FPG_ZOO_MIRROR to a mirror's base URL"


def download(url: str, target: Path, *, description: str) -> str:
    """Stream `url` into the file `target`, with progress on a terminal.

    Returns:
        The SHA-256 of what was written, in hex.

    Raises:
        DownloadError: the server refuses, cannot be reached, stalls, or closes before the announced length.
        StorageError: `target` cannot be written.
    """
    request = urllib.request.Request(url, headers={"User-Agent": f"fpg-zoo/{__version__}"})
    digest, received = hashlib.sha256(), 0
    with _open(url, request) as response:
        announced = response.headers.get("Content-Length")
        total = int(announced) if announced and announced.isdigit() else None
        with (
            explained(target.parent),
            target.open("wb") as stream,
            tqdm(total=total, unit="B", unit_scale=True, desc=description, disable=None) as bar,
        ):
            while piece := _read(url, response, received):
                stream.write(piece)
                digest.update(piece)
                received += len(piece)
                bar.update(len(piece))
    if total is not None and received != total:
        raise DownloadError(f"{url}: the connection closed after {received} of {total} bytes; try again")
    return digest.hexdigest()


def _open(url: str, request: urllib.request.Request) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url}: the server answered {error.code} {error.reason}; {_REMEDY}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(f"{url}: {_reason(error)}; {_REMEDY}") from None


def _read(url: str, response: Any, received: int) -> bytes:
    try:
        piece: bytes = response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: {_reason(error)} after {received} bytes; {_REMEDY}") from None
    return piece


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)
