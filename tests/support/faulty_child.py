"""Processes that fetch into a cache and may be killed anywhere: without torch, and forked, so that hundreds are quick.

Run as a script, this is a lane: it reads one job a line, forks the processes of it, which all begin at once, kills them
when told, and answers with how they ended. `Lane` is the other side of it, in the test.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from command import environment
from serving import entry_of

from fpg_zoo.weights.manifest import load_manifest
from fpg_zoo.weights.store import Store

_PIECE = 50_000
_LONGEST_SECONDS = 60  # after which a process that hangs is ended, and its test fails
_STEPS = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "shutil.rmtree",
)  # the audit events of what changes a folder


@dataclass(frozen=True)
class Job:
    """Fetch one file.

    Attributes:
        url, sha256, folder: what, and into which cache.
        processes: how many do it at once.
        kill_after: seconds after which they are killed.
        kill_at_step: the first step of the file system in the cache that is not done any more, counted from 1.
    """

    url: str
    sha256: str
    folder: str
    processes: int = 1
    kill_after: float | None = None
    kill_at_step: int | None = None


def copied(file: Path, origin: Mapping[str, str], target: Path) -> None:
    """In place of the conversion: the same bytes, piece by piece, so that it can be killed in between."""
    with file.open("rb") as source, target.open("wb") as sink:
        while piece := source.read(_PIECE):
            sink.write(piece)
            sink.flush()
            time.sleep(0.002)


class Lane:
    """A running lane, which works on one job at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, job: Job) -> None:
        self._tell(json.dumps(asdict(job)))

    def kill(self) -> list[int]:
        """Kill all processes of the job, which has no `kill_after`; returns their exit codes."""
        self._tell("kill")
        return self.ended()

    def wait(self) -> list[int]:
        """The exit codes of a job that has no `kill_after`."""
        self._tell("wait")
        return self.ended()

    def ended(self) -> list[int]:
        """The exit codes: 0 where the file is the good one, -9 for a killed process."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


@contextlib.contextmanager
def lane(**changes: str) -> Iterator[Lane]:
    """A lane with these changes of the environment."""
    command = [sys.executable, __file__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(**changes)
    ) as process:
        yield Lane(process)  # which ends, and kills what still runs, when its standard input is closed


def _die_at_step(folder: str, last: int) -> None:
    steps = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal steps
        if event in _STEPS and str(arguments[0]).startswith(folder):
            steps += 1
            if steps == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def _fetch(job: Job) -> bool:
    if job.kill_at_step is not None:
        _die_at_step(job.folder, job.kill_at_step)
    path = Store(Path(job.folder)).obtain(entry_of("some_model", job.url, sha256=job.sha256), copied)
    return hashlib.sha256(path.read_bytes()).hexdigest() == job.sha256


def _forked(job: Job) -> list[int]:
    """The processes of a job; none begins before all are there."""
    reading, writing = os.pipe()
    processes = []
    for _ in range(job.processes):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                signal.alarm(_LONGEST_SECONDS)
                os.close(writing)
                os.read(reading, 1)  # ends when the lane, too, has closed the other side
                code = 0 if _fetch(job) else 3
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        processes.append(process)
    os.close(reading)
    os.close(writing)
    return processes


def main() -> None:
    load_manifest()  # once for all
    for line in iter(sys.stdin.readline, ""):
        job = Job(**json.loads(line))
        processes = _forked(job)
        if job.kill_after is None:
            kill = sys.stdin.readline().strip() != "wait"
        else:
            time.sleep(job.kill_after)
            kill = True
        for process in processes:
            if kill:
                os.kill(process, signal.SIGKILL)  # not yet waited for, so it is still this process's number
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
