"""What huggingface_hub raises, as errors of ours: one line that names what was asked, the cause and the remedy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from fpg_zoo.errors import DownloadError, FPGZooError, StorageError
from fpg_zoo.text import printable
from fpg_zoo.weights.environment import is_offline


def check_online(what: str) -> None:
    """Refuse what needs the network where HF_HUB_OFFLINE is set now.

    Raises:
        DownloadError: it is set.
    """
    if is_offline():
        raise DownloadError(f"{what}: HF_HUB_OFFLINE forbids the network: unset it")


@contextlib.contextmanager
def hub_errors(what: str, repo: str, token: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into errors of ours, without the token.

    Raises:
        FPGZooError: in place of any other exception in the block.
    """
    try:
        yield
    except FPGZooError:
        raise
    except Exception as error:
        # Of all kinds: its HTTP library differs by version, and a server may send nonsense that nothing foresees.
        raise _translated(what, repo, error, token) from None


def _translated(what: str, repo: str, error: BaseException, token: str | None) -> FPGZooError:
    from huggingface_hub import constants, errors

    cause = error.__cause__
    if cause is not None and isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)):
        return _translated(what, repo, cause, token)
    access = "log in with `hf auth login` or set HF_TOKEN"
    # Some versions raise such an error without a response.
    status = getattr(error.response, "status_code", None) if isinstance(error, errors.HfHubHTTPError) else None
    anonymous = _token(token) is None
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(f"{what}: its owner grants access on request: ask for it at its page, and {access}")
    if anonymous and (status == 401 or isinstance(error, errors.RepositoryNotFoundError)):
        return DownloadError(
            f"{what}: no such repository, or not without a token, and you sent none: check the name, or {access}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(
            f"{what}: no such repository, or your token has no access to it: check the name, and with "
            "`hf auth whoami` who you are"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{what}: {repo} has no such revision: check the name of the branch, tag or commit")
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        forbidden = "HF_HUB_OFFLINE forbids the network: unset it"
        if not is_offline() and constants.HF_HUB_OFFLINE:
            forbidden = (
                "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbade the network when huggingface_hub was imported, which "
                "it goes by until Python is started anew without them: do so"
            )
        if what.startswith("push"):
            return DownloadError(f"{what}: {forbidden}")
        return DownloadError(
            f"{what}: not whole in the cache {constants.HF_HUB_CACHE}, and {forbidden}, or load it once while online"
        )
    if isinstance(error, errors.HfHubHTTPError):
        remedies = {401: access, 403: f"{access}, with a token that has the right", 429: "wait, and try again"}
        said = one_line(error.server_message or error, token)
        return DownloadError(
            f"{what}: the hub answered {status} ({said}): {remedies.get(status or 0, 'try again later')}"
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return StorageError(
            f"{what}: {error.filename}: {error.strerror}; make room or the folder writable, or set HF_HOME to another"
        )
    said = one_line(error, token).partition(" Please retry")[0]  # with an argument that we do not have
    return DownloadError(f"{what}: {type(error).__name__}: {said}; check the network, and HF_ENDPOINT if it is set")


def one_line(said: object, token: str | None = None) -> str:
    """What was said, on one line, without the token or a password in a URL."""
    text, secret = " ".join(str(said).split()), _token(token)
    text = text.replace(secret, "***") if secret else text
    return printable(re.sub(r"hf_\w{8,}|(?<=//)[^/@\s]+(?=@)", "***", text))


def _token(token: str | None) -> str | None:
    from huggingface_hub import get_token

    try:
        return token or get_token()
    except OSError:
        return None  # as none is sent, if its file cannot be read
