"""Locks between processes that end with their process.

It is the kernel's own lock of an open file, and nothing takes its place. A lock that is a file stays behind when its
holder is killed. Another process then waits for ever, or takes the lock from a holder that is alive and slow. Libraries
fall back to such files where the kernel refuses, each release in another way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
_POLL_SECONDS = 0.05


class LockedError(Exception):
    """Another process or thread has the lock."""


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a file, against other processes and other threads; it ends with the block or the process.

    Args:
        path: made if need be, empty and writable for all, as a group may share it; it stays. No link is followed.
        wait: until another holder lets go.

    Raises:
        LockedError: it is held, and `wait` is false.
        OSError: it cannot be made or opened, or the file system has no locks; `strerror` says which.
    """
    while True:
        descriptor = _opened(path)
        try:
            while not _taken(descriptor):
                if not wait:
                    raise LockedError(path)
                time.sleep(_POLL_SECONDS)
            # Somebody may have removed it meanwhile; then the next process would make and lock another.
            if _is_at(path, descriptor):
                yield
                return
        finally:
            # Closing frees it, but for copies of the descriptor in forked processes.
            with contextlib.suppress(OSError):
                _free(descriptor)
            os.close(descriptor)


def _opened(path: Path) -> int:
    # Without O_NONBLOCK, a pipe could be waited for. Windows has neither of these two.
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        # Another process may make it at the same time. It is the one at `path` that counts, see above.
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
        if sys.platform != "win32":
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, 0o666)  # whatever the umask
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "a link, which is not followed", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def _taken(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def _free(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
