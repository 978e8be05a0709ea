"""Locks: one holder at a time, none left behind, and none where the kernel has none."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from command import environment

from fpg_zoo.locks import LockedError, file_lock

fcntl = pytest.importorskip("fcntl", reason="how the kernel's locks fail is simulated for systems with flock")

HOLDER = """
import sys, time
from pathlib import Path
from fpg_zoo.locks import file_lock
with file_lock(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".some.lock"


def is_free(path: Path) -> bool:
    try:
        with file_lock(path, wait=False):
            return True
    except LockedError:
        return False


def test_threads_exclude_each_other(path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with file_lock(path, wait=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert is_free(path)


def test_it_is_held_until_the_block_ends_however_it_ends(path: Path) -> None:
    with file_lock(path, wait=False):
        assert not is_free(path)
    assert is_free(path)
    with contextlib.suppress(KeyError), file_lock(path, wait=False):
        raise KeyError
    assert is_free(path)
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (0, 0o666)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_killed_holder_leaves_it_free(end: signal.Signals, path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not is_free(path)
        holder.send_signal(end)
        holder.wait(timeout=30)
    assert is_free(path)


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EIO", "EINVAL", "EPERM"])
@pytest.mark.parametrize("wait", [True, False])
def test_what_the_kernel_refuses_is_refused_at_once(
    wait: bool, code: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, code), "refused by the test")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with pytest.raises(OSError, match="refused by the test") as caught, file_lock(path, wait=wait):
            pytest.fail("there is no lock")
        assert caught.value.errno == getattr(errno, code)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    monkeypatch.undo()
    assert is_free(path)


@pytest.mark.parametrize("content", [b"4242\nsome-host\n", b"1\n", b"\x00" * 100])
def test_what_a_lock_of_another_kind_left_in_the_file_is_no_lock(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert is_free(path)
    assert path.read_bytes() == content


def test_nothing_is_locked_or_emptied_through_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    for target in ("precious", "not there", "/dev/null"):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        with pytest.raises(OSError, match="link"), file_lock(path, wait=True):
            pytest.fail("it follows a link")
    assert (tmp_path / "precious").read_text() == "content"
    assert not (tmp_path / "not there").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
def test_what_is_no_file_is_refused(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, 0o140666)
    with pytest.raises(OSError), file_lock(path, wait=True):  # noqa: PT011 # the system words it
        pytest.fail("it is no file")


def test_a_lock_that_was_removed_while_it_was_awaited_is_made_anew(path: Path) -> None:
    held, leave = threading.Event(), threading.Event()

    def wait() -> None:
        with file_lock(path, wait=True):
            held.set()
            leave.wait(timeout=30)

    waiting = threading.Thread(target=wait)
    with file_lock(path, wait=True):
        waiting.start()
        time.sleep(0.2)  # long enough for it to have opened the file
        path.unlink()
    assert held.wait(timeout=30)
    assert path.is_file()
    assert not is_free(path)  # and not of a file that has no name any more
    leave.set()
    waiting.join()


def test_a_forked_process_that_stays_does_not_keep_it(path: Path) -> None:
    script = """
        import os, sys, time
        from pathlib import Path
        from fpg_zoo.locks import file_lock
        with file_lock(Path(sys.argv[1]), wait=True):
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
        print("left", flush=True)
        time.sleep(30)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        stdout=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"left\n"
            assert is_free(path)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
