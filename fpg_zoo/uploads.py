"""Tensors on their way to a device while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. CUDA takes it from pinned memory, and the program does not wait until it is there."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def small_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor, of some kilobytes, on a device. CUDA takes a copy of it at once, and the program does not wait.

    MPS might read it when it is gone, so there it is waited for.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def prefetch_to_device(
    batches: Iterable[Batch], tensors_of: Callable[[Batch], Sequence[Tensor]], device: torch.device
) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Batches with their tensors on a device.

    On CUDA the next batch is taken and its tensors go over while this one is computed, on a stream of their own.
    Elsewhere no batch is taken before it is asked for.

    Args:
        batches: of anything.
        tensors_of: a batch's tensors, on the CPU.
        device: where they are used.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, [to_device(tensor, device) for tensor in tensors_of(batch)]
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[Batch, list[Tensor], torch.cuda.Event] | None = None
    try:
        for batch in batches:
            with torch.cuda.stream(stream):
                moving = batch, [to_device(tensor, device) for tensor in tensors_of(batch)], stream.record_event()
            if waiting is not None:
                yield _arrived(*waiting, device)
            waiting = moving
    except Exception:  # what a batch raises counts when its turn comes
        if waiting is not None:
            yield _arrived(*waiting, device)
        raise
    if waiting is not None:
        yield _arrived(*waiting, device)


def _arrived(
    batch: Batch, tensors: list[Tensor], there: torch.cuda.Event, device: torch.device
) -> tuple[Batch, list[Tensor]]:
    """The batch, whose tensors may be used from here on: the device waits for them, and the program does not."""
    using = torch.cuda.current_stream(device)
    using.wait_event(there)
    for tensor in tensors:
        tensor.record_stream(using)  # their memory is not given away while it is used here
    return batch, tensors
