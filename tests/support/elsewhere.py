"""A second device without one: tensors that say they are on `cuda`, are computed on the CPU, and mix with no others.

What a GPU would wait for is counted: values that a program looks at, and sizes that depend on values. What is copied on
a stream of its own may not be used before that has been waited for.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import traceback
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA = torch.device("cuda", 0)
_MOVES = {"_to_copy", "copy_", "set_"}
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "nms"}


class MixedDevicesError(RuntimeError):
    """An operation of tensors of both devices."""


class NotThereError(RuntimeError):
    """An operation of a tensor that may still be on its way."""


class Elsewhere:
    """What is on the second device.

    Attributes:
        waits: how often a GPU would have been waited for, by the operation and the line of the package.
        copies: how many tensors went over on a stream of their own.
    """

    def __init__(self) -> None:
        self.waits: collections.Counter[str] = collections.Counter()
        self.copies = 0
        self._side = False
        self._coming: set[int] = set()  # storages
        self._there: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def has(self, tensor: Tensor) -> bool:
        found = self._there.get(tensor.untyped_storage()._cdata)
        return found is not None and found() is not None

    def put(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if not self.has(tensor):
            self._there[key] = weakref.ref(storage)
            tensor._elsewhere = storage  # type: ignore[attr-defined]  # the wrapper lives as long as the tensor
        return tensor

    def bring(self, tensor: Tensor) -> Tensor:
        """As `put`, of what comes from the CPU."""
        if self._side:
            self._coming.add(tensor.untyped_storage()._cdata)
            self.copies += 1
        return self.put(tensor)

    def check_there(self, tensors: list[Tensor]) -> None:
        if not self._side and any(one.untyped_storage()._cdata in self._coming for one in tensors):
            raise NotThereError(str([tuple(one.shape) for one in tensors]))

    def take(self, tensor: Tensor) -> Tensor:
        self._there.pop(tensor.untyped_storage()._cdata, None)
        return tensor

    def put_module(self, module: nn.Module) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            self.put(tensor)

    def wait(self, name: str) -> None:
        lines = [one for one in traceback.extract_stack() if "/fpg_zoo/" in one.filename]
        place = f"{lines[-1].filename.rpartition('/fpg_zoo/')[2]}:{lines[-1].lineno}" if lines else "elsewhere"
        self.waits[f"{name} at {place}"] += 1

    @contextlib.contextmanager
    def active(self) -> Iterator[Elsewhere]:
        main = _Stream(self)
        with (
            mock.patch.object(torch.cuda, "Stream", functools.partial(_Stream, self)),
            mock.patch.object(torch.cuda, "stream", lambda stream: stream.used()),
            mock.patch.object(torch.cuda, "current_stream", return_value=main),
            mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor),
            mock.patch.object(Tensor, "record_stream", lambda tensor, stream: stream.keep(tensor)),
            _Operations(self),
            _Functions(self),
        ):
            yield self


class _Stream:
    """A stream of the second device; its events are the storages that were on their way."""

    def __init__(self, elsewhere: Elsewhere, device: object = None) -> None:
        self.elsewhere = elsewhere
        self._waited: set[int] = set()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        self.elsewhere._side = True
        yield
        self.elsewhere._side = False

    def record_event(self) -> set[int]:
        return set(self.elsewhere._coming)

    def wait_event(self, event: set[int]) -> None:
        self._waited |= event

    def keep(self, tensor: Tensor) -> None:
        """Stands for `Tensor.record_stream`."""
        self.elsewhere._coming -= self._waited & {tensor.untyped_storage()._cdata}


class _Operations(TorchDispatchMode):
    def __init__(self, elsewhere: Elsewhere) -> None:
        super().__init__()
        self.elsewhere = elsewhere

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [one for one in tree_flatten((args, kwargs or {}))[0] if isinstance(one, Tensor)]
        there = [one for one in tensors if self.elsewhere.has(one)]
        here = [one for one in tensors if one.ndim and not self.elsewhere.has(one)]
        name = func.__name__.partition(".")[0]
        self.elsewhere.check_there(there)
        if there and here and name not in _MOVES:
            raise MixedDevicesError(f"{func}: {[tuple(one.shape) for one in here]} on the CPU, others on {CUDA}")
        if there:
            masked = name in ("index", "index_put", "index_put_") and any(
                one is not None and one.dtype == torch.bool for one in args[1]
            )
            if name in _WAITS or masked:
                self.elsewhere.wait(name)
        result = func(*args, **(kwargs or {}))
        if there:
            tree_map_only(Tensor, self.elsewhere.put, result)
        return result


class _Functions(TorchFunctionMode):
    def __init__(self, elsewhere: Elsewhere) -> None:
        super().__init__()
        self.elsewhere = elsewhere

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.device:
            return CUDA if self.elsewhere.has(args[0]) else func(*args)
        if name in ("tolist", "numpy") and self.elsewhere.has(args[0]):
            self.elsewhere.wait(name)
        if name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return self._moved(name, func, args, kwargs)
        if name == "new_tensor" and self.elsewhere.has(args[0]):
            self.elsewhere.wait("copy to")
            return self.elsewhere.put(func(*args, **kwargs))
        device = kwargs.get("device")
        if name in ("tensor", "as_tensor") and device is not None and torch.device(device).type == "cuda":
            self.elsewhere.wait("copy to")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = "cpu"
            return tree_map_only(Tensor, self.elsewhere.put, func(*args, **kwargs))
        return func(*args, **kwargs)

    def _moved(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        source, *rest = args
        target: torch.device | None = {"cpu": torch.device("cpu"), "cuda": CUDA}.get(name)
        plain: list[Any] = []
        for one in rest:
            if isinstance(one, Tensor):
                target = CUDA if self.elsewhere.has(one) else torch.device("cpu")
                plain.append(one.dtype)
            elif isinstance(one, (str, torch.device)):
                target = torch.device(one)
            else:
                plain.append(one)
        if kwargs.get("device") is not None:
            target = torch.device(kwargs.pop("device"))
        kwargs.pop("device", None)
        waits = not kwargs.pop("non_blocking", False)  # a small copy to a GPU is staged; one from it is not
        result: Tensor = source.to(*plain, **kwargs) if name == "to" and (plain or kwargs) else source
        if target is None or (target.type == "cuda") == self.elsewhere.has(source):
            return result
        copied = result.clone()
        if target.type == "cuda":
            if waits:
                self.elsewhere.wait("copy to")
            return self.elsewhere.bring(copied)
        self.elsewhere.wait("cpu")
        return self.elsewhere.take(copied)
