"""Tensors that share memory, made to be tensors of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def with_own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors none of whose values lies in the memory of another: a change of one changes no other.

    A file may hold one tensor under several names, views of one storage, or one value that is expanded to many.

    Args:
        tensors: by name, on any devices.

    Returns:
        The same tensors in their order. Copied are those that overlap with another that stays, or have values in one
        place or gaps between them.
    """
    own = {
        name: tensor if _is_dense(tensor) else tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    ends: dict[torch.device, int] = {}  # of the memory that is taken so far
    for name in sorted(own, key=lambda name: own[name].data_ptr()):
        tensor = own[name]
        begin = tensor.data_ptr()
        if not tensor.numel():
            continue
        if begin < ends.get(tensor.device, 0):
            own[name] = tensor.clone()
        else:
            ends[tensor.device] = begin + tensor.nbytes
    return own


def _is_dense(tensor: Tensor) -> bool:
    """Whether its values fill one piece of memory, each in a place of its own."""
    if tensor.is_contiguous() or not tensor.numel():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
