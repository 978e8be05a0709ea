"""Reading checkpoint files of the reference's family, and only ever as data."""

from __future__ import annotations

import os
import pickle
import re
import threading
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from fpg_zoo.checkpoints.pickle_audit.interpreter import PickleAudit
from fpg_zoo.checkpoints.pickle_audit.policy import Value
from fpg_zoo.checkpoints.pickle_audit.torch_zip import (
    Budget,
    check_legacy_storages,
    damaged,
    is_tar,
    is_zip,
    unsafe,
    zip_records,
)
from fpg_zoo.checkpoints.plain_names import with_plain_names
from fpg_zoo.checkpoints.safetensors_files import MAX_WEIGHTS_BYTES
from fpg_zoo.errors import CheckpointError
from fpg_zoo.files import open_regular
from fpg_zoo.text import printable, quoted

# A legacy file begins with these two numbers, a pickle each.
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

# mmengine's EMA hook leaves the averaged weights in state_dict and the raw ones in ema_state_dict, so the latter counts
# only where it is all there is.
_PLACES = ("state_dict", "model", "model_state_dict", "ema_state_dict")
_OTHER = object()

_TORCH_REASON = re.compile(r"WeightsUnpickler error:\s*(\S.*)")

# torch keeps one set of admitted names for the whole process, Python one list of filters of warnings.
_ADMITTING = threading.Lock()


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors under the reference's names, and the plain data that it says about itself.

    Attributes:
        meta_classes: the names of the classes it was trained on, or what is wrong with them; None if it tells none.
    """

    state_dict: dict[str, Tensor]
    meta: dict[str, Any]
    meta_classes: tuple[str, ...] | str | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes it was trained on, if it tells: `CLASSES`, or `dataset_meta` of newer files.

        Raises:
            CheckpointError: it tells something that is no names.
        """
        if isinstance(self.meta_classes, str):
            raise CheckpointError(self.meta_classes)
        return self.meta_classes


class Placeholder:
    """Stands for every object of a class that torch does not know: takes anything and keeps nothing."""

    __slots__ = ()

    asks_for: ClassVar[str] = ""

    def __new__(cls, *_: object) -> Placeholder:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file written by torch.save, zip or legacy serialisation, on the CPU, with the safe unpickler alone.

    Its pickle is gone through before torch sees it (`PickleAudit`). Objects of classes that torch does not know are
    replaced by placeholders, and nothing of theirs is imported.

    Args:
        path: a dict with the tensors under `state_dict`, `model` or `ema_state_dict` (and `meta` beside it), or a
            plain dict of tensors.

    Returns: the tensors, under the names they have without wrappers, and without the raw weights that an EMA hook
        stores beside the averaged ones.

    Raises:
        UnsafeCheckpointError: its pickle asks for what could run code or exhaust the memory, or for its tensors to be
            objects of foreign classes.
        CheckpointError: it cannot be opened, is no torch file, is damaged, or holds no tensors.
    """
    if os.path.isdir(path):
        raise CheckpointError(f"{path}: a folder, not a checkpoint file; local-dir:{path} reads a model's folder")
    try:
        # One open file, so that what torch reads is what was gone through.
        with open_regular(path, max_bytes=MAX_WEIGHTS_BYTES) as file:
            foreign = _audit(file, path)
            file.seek(0)
            content = _load(file, foreign)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # Not the whole of torch's message, which advises to read the file unsafely.
        reason = _TORCH_REASON.search(str(error))
        raise unsafe(path, f"torch's safe reader says: {printable(reason[1] if reason else 'no')}") from None
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); name a file of weights") from None
    except MemoryError:
        raise CheckpointError(f"{path}: not enough memory to read it") from None
    except Exception as error:  # damaged files make the safe unpickler raise nearly anything
        raise damaged(path, f"{type(error).__name__}: {printable(str(error).strip().partition(chr(10))[0])}") from None
    return _parse(path, content)


def _audit(file: BinaryIO, path: Path) -> set[str]:
    """Go through everything that torch would read but the tensors' values, and give the foreign names."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(512)
    if not head:
        raise damaged(path, "the file is empty")
    budget = Budget(path, size)
    if is_zip(head):
        records = zip_records(file, path, size, budget)
        begin, length = records["data.pkl"]
        sizes = {
            name.removeprefix("data/"): record.size for name, record in records.items() if name.startswith("data/")
        }
        audit = PickleAudit(file, budget, sizes.get)
        file.seek(begin)
        audit.run(begin + length)
        return audit.foreign
    if is_tar(head):
        raise unsafe(path, "it is a tar file as torch wrote before 2018, which cannot be read safely")
    audit = PickleAudit(file, budget, None)
    file.seek(0)
    if audit.run(size) != _LEGACY_MAGIC or audit.run(size) != _LEGACY_VERSION:
        raise damaged(path, "it begins like none")
    audit.run(size)  # the sizes of C's types
    audit.run(size)
    listed = audit.run(size)
    keys = [key for key in listed.items if isinstance(key, str)] if isinstance(listed, Value) else []
    check_legacy_storages(file, path, size, keys, audit.storages)
    return audit.foreign


def _load(file: BinaryIO, foreign: Collection[str]) -> object:
    # torch warns of other protocols than 2, of which nothing follows.
    with _ADMITTING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = {_full_name(admitted) for admitted in torch.serialization.get_safe_globals()}
        placeholders: list[Any] = [
            (type("Placeholder", (Placeholder,), {"asks_for": name, "__slots__": ()}), name)
            for name in sorted(set(foreign) - own)
        ]
        with torch.serialization.safe_globals(placeholders):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)


def _full_name(admitted: Any) -> str:
    """The name under which torch knows what a user admitted with add_safe_globals."""
    return str(admitted[1]) if isinstance(admitted, tuple) else f"{admitted.__module__}.{admitted.__qualname__}"


def _parse(path: Path, content: object) -> Checkpoint:
    if asked := _asks_for(content):
        raise unsafe(path, f"it is an object of {asked}, not a checkpoint's dict of tensors")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint's dict of tensors")
    place = next((place for place in _PLACES if place in content and not isinstance(content[place], Tensor)), None)
    weights = content if place is None else content[place]
    if asked := _asks_for(weights):
        raise unsafe(path, f"its {place} is an object of {asked}, not a dict of tensors")
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path}: no tensors under {place or 'state_dict'}")
    tensors = {_name(path, name): _tensor(path, name, value) for name, value in weights.items()}
    meta = content.get("meta") if place is not None else None
    if not isinstance(meta, dict):
        return Checkpoint(with_plain_names(tensors), {})
    plain = _plain(meta)
    assert isinstance(plain, dict)
    return Checkpoint(with_plain_names(tensors), plain, _meta_classes(meta))


def _meta_classes(meta: dict[Any, Any]) -> tuple[str, ...] | str | None:
    """The names of the classes that a file's meta tells, or what is wrong with them; None if it tells none."""
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, dict) else {}
    places = (("CLASSES", meta), ("CLASSES of its dataset_meta", dataset), ("classes of its dataset_meta", dataset))
    for place, holder in places:
        value = holder.get(place.partition(" ")[0])
        if value is not None:
            names = _in_order(value)
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return tuple(names)
            return f"its {place} is no list of names but {_described(value)}; pass class_names"
    return None


def _in_order(value: object) -> object:
    """What class names are written as, as a list of them; anything else as it is."""
    if isinstance(value, str):  # CLASSES = ("cell") is the well-known slip for ("cell",)
        return [value]
    if isinstance(value, dict) and all(isinstance(key, (str, int)) for key in value):
        numbers, values = range(len(value)), list(value.values())
        if sorted(map(str, value)) == sorted(map(str, numbers)) and all(isinstance(name, str) for name in values):
            return [name for _, name in sorted(value.items(), key=lambda entry: int(entry[0]))]
        if all(type(index) is int for index in values) and sorted(values) == list(numbers):
            return sorted(value, key=lambda name: value[name])
    return list(value) if isinstance(value, (tuple, list)) else value


def _described(value: object) -> str:
    """The kind of a value for a message; of a list, also that of the first entry which is no text."""
    if asked := _asks_for(value):
        return f"an object of {quoted(asked)}"
    kind = type(value).__name__
    if isinstance(value, (tuple, list)):
        odd = next(entry for entry in value if not isinstance(entry, str))
        return f"a {kind} that holds {_asks_for(odd) or type(odd).__name__}"
    return f"of the type {kind}"


def _name(path: Path, name: object) -> str:
    if not isinstance(name, str) or not name.isprintable():
        raise CheckpointError(f"{path}: {quoted(name)} is no name of a tensor; is this a checkpoint?")
    return name


def _tensor(path: Path, name: object, value: object) -> Tensor:
    """The tensor alone, without gradient or hooks."""
    if asked := _asks_for(value):
        raise unsafe(path, f"its {quoted(name)} is no tensor but an object of {asked}")
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{path}: {quoted(name)} is a {type(value).__name__}, a checkpoint holds named tensors")
    if value.is_nested or value.is_meta or value.is_quantized or value.layout != torch.strided:
        raise CheckpointError(
            f"{path}: {printable(name)} is no plain tensor ({value.layout}, {value.device}, {value.dtype})"
        )
    return value.detach()


def _asks_for(value: object) -> str:
    """The foreign name behind a value, be it of an object or of the class itself; empty if there is none."""
    kind = value if isinstance(value, type) else type(value)
    return printable(kind.asks_for) if issubclass(kind, Placeholder) else ""


def _plain(value: object) -> object:
    """The value if it is made of numbers and texts alone, with the other entries of its dicts left out, else _OTHER.

    So that what the optimizer or a hook left in there does not live on in the result. The audit has bounded its depth.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    if isinstance(value, dict):
        plain = {key: _plain(entry) for key, entry in value.items() if isinstance(key, (str, int))}
        return {key: entry for key, entry in plain.items() if entry is not _OTHER}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return _OTHER if any(item is _OTHER for item in items) else type(value)(items)
    return _OTHER
