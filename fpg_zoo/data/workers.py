"""Worker processes that compute ahead of the loop, in order, and hand over what they have through a pipe each.

torch's DataLoader puts tensors into shared memory from a thread of the worker, and nobody hears that thread's errors.
Where /dev/shm is small, as in a container, or open files are few, the loop waits without end. A pipe takes as long (11
ms for 10 MB), needs neither, and closes when the process at its other end dies. Whatever goes wrong in a worker goes
wrong in its one thread, and comes as a value in place of the result.
"""

from __future__ import annotations

import collections
import io
import math
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fpg_zoo.errors import FPGZooError, WorkerError

_MOST_WORKERS = 8
TIMEOUT_SECONDS = 600.0  # without an answer, from which on a worker counts as hung
_CAUSES = {
    "SIGKILL": ", as the system does when memory runs out",
    "SIGBUS": ", as the system does when shared memory is full (docker run --shm-size 1g gives a container more)",
}

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_workers() -> int:
    """Processes to read images: as many as the processors that this process may use, but for its own."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    return min(max(usable // local - 1, 1), _MOST_WORKERS)


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """The function's result for each item, in the order of the items; each worker is one item ahead.

    Args:
        function: computes on the CPU. Where processes are spawned and not forked, it must be picklable.
        items: small values; may be endless.
        workers: processes; 0 computes in this one.

    Returns:
        A generator, which ends the workers when it is closed.

    Raises:
        WorkerError: a worker cannot be started, dies, hangs, or has no memory for a result.
        FPGZooError: raised by the function.
        RuntimeError: the function raised anything else in a worker; the message has its traceback.
    """
    if workers == 0:
        yield from map(function, items)
        return
    remaining = iter(items)
    pool: list[_Worker[Item, Result]] = []
    busy: collections.deque[_Worker[Item, Result]] = collections.deque()
    try:
        for _, item in zip(range(workers), remaining, strict=False):
            worker = _Worker(function)
            pool.append(worker)
            worker.submit(item)
            busy.append(worker)
        while busy:
            worker = busy.popleft()
            result = worker.result()
            for item in remaining:
                worker.submit(item)
                busy.append(worker)
                break
            yield result
    finally:
        for worker in pool:
            worker.close()


class _Worker(Generic[Item, Result]):
    """A process that answers each item with the function's result."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        try:
            self._connection, theirs = multiprocessing.Pipe()
            with theirs:  # closed on this side, so that it ends with the process
                arguments = (function, theirs, self._connection)
                self._process = multiprocessing.Process(target=_serve, args=arguments, daemon=True)
                self._process.start()
        except OSError as error:
            raise WorkerError(
                f"cannot start a process that reads images ({error.strerror or error}): use fewer --workers, or "
                "--workers 0, or raise the limit (ulimit -n for open files, ulimit -u for processes)"
            ) from None

    def submit(self, item: Item) -> None:
        """Give it an item; the one before must have been answered."""
        try:
            self._connection.send(item)
        except OSError:
            raise WorkerError(self._death()) from None

    def result(self) -> Result:
        """The answer to the item that it has."""
        try:
            if not self._connection.poll(TIMEOUT_SECONDS):
                raise WorkerError(
                    f"a process that reads images has not answered for {TIMEOUT_SECONDS:g} seconds: see whether the "
                    "disk or network that they are on answers, or use --workers 0"
                )
            answer: Result | Exception = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise WorkerError(self._death()) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, whatever it is at."""
        if sys.is_finalizing():  # it has been ended with the others, and modules may be gone
            return
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _death(self) -> str:
        self._process.join(10)
        code = self._process.exitcode
        cause = f"it ended with code {code}"
        if code is not None and code < 0:
            name = next((one.name for one in signal.Signals if one == -code), str(-code))
            cause = f"it was killed by {name}{_CAUSES.get(name, '')}"
        return f"a process that reads images has died ({cause}): use smaller batches, fewer --workers, or --workers 0"


def _serve(function: Callable[[Any], Any], connection: Connection, parents: Connection) -> None:
    """Answer until the parent's end of the pipe is closed."""
    parents.close()  # a fork has a copy of it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and ends this process
    torch.set_num_threads(1)
    try:
        while True:
            item = connection.recv()
            connection.send_bytes(_answer(function, item))
    except (EOFError, OSError):
        return


def _answer(function: Callable[[Any], Any], item: Any) -> memoryview:
    try:
        return _pickled(function(item))
    except (FPGZooError, OSError) as error:
        return _pickled(error)
    except MemoryError:
        return _pickled(WorkerError("not enough memory for a batch: use smaller batches, or fewer --workers"))
    except Exception:  # an error in the code, which is to be seen where it was made
        return _pickled(RuntimeError(f"in a process that reads images:\n{traceback.format_exc()}"))


def _pickled(value: object) -> memoryview:
    stream = io.BytesIO()
    _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return stream.getbuffer()


class _Pickler(pickle.Pickler):
    """Tensors as plain bytes, bool ones eight to a byte."""

    def reducer_override(self, value: object) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        array = value.numpy()
        if array.dtype == np.bool_:
            return _unpacked, (np.packbits(array), array.shape)
        return torch.from_numpy, (array,)


def _unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits, count=math.prod(shape)).reshape(shape).view(np.bool_))
