"""The processes that work together, as torchrun starts them."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from fpg_zoo.errors import ConfigError, FPGZooError, StorageError, WorkerError
from fpg_zoo.files import storage_errors
from fpg_zoo.locks import LockedError, file_lock
from fpg_zoo.text import printable, quoted

_Value = TypeVar("_Value")
# In what torch says when another process has gone.
_LEFT_ALONE = ("closed by peer", "Connection reset", "NCCL", "Broken pipe")
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
# A fork of a killed process, as a worker at its last batch, holds the lock until it ends, too.
_PATIENCE_SECONDS = 3.0
_FIRST_PORT, _PORTS = 20_000, 20_000  # of jobs of SLURM, each of which takes the one of its number


@dataclass(frozen=True)
class Processes:
    """This process among those that work together.

    Attributes:
        rank: its number, 0 for the one that writes files and progress.
        world_size: how many there are.
        local_rank: its number on this machine, which is its GPU's.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Until all are here."""
        if self.world_size > 1:
            dist.barrier()

    def broadcast_module(self, module: nn.Module) -> None:
        """Give everyone the main process's parameters and buffers."""
        if self.world_size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def all_gather(self, value: int) -> list[int]:
        """The value of each process, by rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: _Value) -> _Value:
        """What the main process gives here; what the others give is not looked at."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: _Value) -> list[_Value]:
        """In the main process the value of each, by rank; in the others nothing."""
        if self.world_size == 1:
            return [value]
        values: list[_Value] | None = [value] * self.world_size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def on_main(self, function: Callable[[], _Value]) -> _Value:
        """What a function gives that the main process calls for all.

        Raises:
            FPGZooError: raised by the function; in every process, so that none waits for the others.
        """
        value: _Value | None = None
        error: FPGZooError | None = None
        if self.is_main:
            try:
                value = function()
            except FPGZooError as raised:
                error = raised
        value, error = self.broadcast((value, error))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    @contextlib.contextmanager
    def exclusive(self, lock: Path, subject: str) -> Iterator[None]:
        """Keep other runs out, by a lock file that the main process holds for all and removes at the end.

        The lock ends with the main process, however that ends. Where the file system has no locks, the run goes on
        without one, with a warning.

        Args:
            lock: the file; its folder is made if need be.
            subject: what it guards, for people.

        Raises:
            StorageError: another run has the lock, or the file cannot be written; in every process.
        """
        with contextlib.ExitStack() as held:
            self.on_main(lambda: held.enter_context(_exclusive(lock, subject)))
            yield


@contextlib.contextmanager
def _exclusive(lock: Path, subject: str) -> Iterator[None]:
    end = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.ExitStack() as held:
        with storage_errors(lock.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    held.enter_context(file_lock(lock, wait=False))
                    break
                except LockedError:
                    if time.monotonic() > end:
                        raise StorageError(
                            f"{subject}: another process writes it and holds {lock}; wait until that has ended, or "
                            "choose another place"
                        ) from None
                    time.sleep(0.1)
                except OSError as error:
                    if error.errno not in _NO_LOCKS:
                        raise
                    warnings.warn(
                        f"{lock.parent}: its file system has no locks ({error.strerror}); see to it that no other "
                        f"process writes {subject}",
                        stacklevel=2,
                    )
                    break
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file
                lock.unlink()


def device_of_process(name: str | None) -> torch.device:
    """The device to compute on: of several GPUs, this process's own.

    Args:
        name: as `cpu` or `cuda:1`; None for `cuda` if there is one, else `cpu`.

    Raises:
        ConfigError: no such device, or not on this machine.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    local = _launched().get("LOCAL_RANK")
    if name == "cuda" and local and torch.cuda.is_available():
        name = f"cuda:{int(local) % torch.cuda.device_count()}"  # SLURM may show each process its own GPU alone
    return usable_device(name)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Join the group that torchrun's or srun's variables describe; alone where there are none.

    A group that the caller has joined is taken as it is, and stays.

    Args:
        device: what is computed on: nccl connects GPUs, gloo everything else.

    Raises:
        ConfigError: the variables are incomplete.
        WorkerError: another of the processes has stopped, in place of what torch raises in the block.
    """
    launched = _launched()
    if dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size(), int(launched.get("LOCAL_RANK", "0")))
        return
    count = int(launched.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in launched]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {count} and {', '.join(missing)} not set: start with torchrun or srun, or unset it"
        )
    processes = Processes(int(launched["RANK"]), count, int(launched["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The others wait while the main process computes metrics and writes, which may take long.
    backend, patience = "nccl" if device.type == "cuda" else "gloo", datetime.timedelta(hours=2)
    if launched is os.environ:
        dist.init_process_group(backend, timeout=patience)
    else:
        place = f"tcp://{launched['MASTER_ADDR']}:{launched['MASTER_PORT']}"
        dist.init_process_group(backend, init_method=place, rank=processes.rank, world_size=count, timeout=patience)
    try:
        yield processes
    except RuntimeError as error:
        if isinstance(error, FPGZooError) or not any(sign in str(error) for sign in _LEFT_ALONE):
            raise
        time.sleep(1)  # the message of the process that stopped is to come first
        raise WorkerError("another process has stopped; its own message says why") from None
    finally:
        dist.destroy_process_group()


def _launched() -> Mapping[str, str]:
    """torchrun's variables; made of srun's where it started several processes without torchrun."""
    found = os.environ
    if "WORLD_SIZE" in found or int(found.get("SLURM_STEP_NUM_TASKS", "1")) == 1 or "SLURM_PROCID" not in found:
        return found
    port = _FIRST_PORT + (int(found["SLURM_JOB_ID"]) + int(found.get("SLURM_STEP_ID", "0"))) % _PORTS
    return {
        "WORLD_SIZE": found["SLURM_STEP_NUM_TASKS"],
        "RANK": found["SLURM_PROCID"],
        "LOCAL_RANK": found["SLURM_LOCALID"],
        "MASTER_ADDR": found.get("MASTER_ADDR") or _first_node(found["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": found.get("MASTER_PORT") or str(port),
    }


def _first_node(nodes: str) -> str:
    """The first machine of SLURM's list of them: `gpu03` of `gpu[03-05,7],login1`."""
    found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    if found is None:
        raise ConfigError(
            f"SLURM_STEP_NODELIST={quoted(nodes)}: no list of machines; set MASTER_ADDR to the first one's"
        )
    return "".join(part or "" for part in found.groups())


def usable_device(device: str) -> torch.device:
    """The device, if this machine has it.

    Raises:
        ConfigError: no such device, or not on this machine.
    """
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).fill_(0)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = printable(str(error).splitlines()[0])
        raise ConfigError(f"device {quoted(device)} cannot be used here ({reason}): choose cpu, cuda or mps") from None
    if chosen.type == "meta":
        raise ConfigError("device 'meta' holds no values: choose cpu, cuda or mps")
    return chosen
