"""The processes that work together, as torchrun starts them."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from fpg_zoo.errors import ConfigError
from fpg_zoo.prediction_files import usable_device

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Processes:
    """This process among those that work together.

    Attributes:
        rank: its number, 0 for the one that writes files and progress.
        count: how many there are.
        local_rank: its number on this machine, which is its GPU's.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def alike(self, module: nn.Module) -> None:
        """Give everyone the leader's parameters and buffers."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def told(self, value: int) -> list[int]:
        """The value of each process, by rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def shared(self, value: _Value) -> _Value:
        """What the leader gives here; what the others give is not looked at."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def gathered(self, value: _Value) -> list[_Value]:
        """For the leader the value of each process, by rank; for the others nothing."""
        if self.count == 1:
            return [value]
        values: list[_Value] | None = [value] * self.count if self.leads else None
        dist.gather_object(value, values)
        return values or []


def device_of_process(name: str | None) -> torch.device:
    """The device to compute on: of several GPUs, this process's own.

    Args:
        name: as `cpu` or `cuda:1`; None for `cuda` if there is one, else `cpu`.

    Raises:
        ConfigError: no such device, or not on this machine.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    local = os.environ.get("LOCAL_RANK")
    return usable_device(f"{name}:{local}" if name == "cuda" and local else name)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the group that torchrun's variables describe; alone where there are none.

    Args:
        device: what is computed on: nccl connects GPUs, gloo everything else.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {count} and {', '.join(missing)} not set: start with torchrun, or unset it")
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(processes.local_rank)
    # The others wait while the leader reckons figures and writes, which may take long.
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(hours=2))
    try:
        yield processes
    finally:
        dist.destroy_process_group()
