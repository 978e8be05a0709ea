"""What a checkpoint's pickle would do, worked out without doing it.

torch's safe unpickler runs no code, but it lets a file name anything, call constructors with any size and nest without
end. `PickleAudit` goes through the same opcodes over stand-ins for the values, before torch does, and refuses what a
checkpoint of weights has no use for.
"""

from __future__ import annotations

import _compat_pickle
import pickletools
import struct
from collections.abc import Callable, Collection
from typing import BinaryIO

from fpg_zoo.checkpoints.pickle_audit.policy import (
    CALLED,
    DICT_COST,
    FILLED_COST,
    ITEM_COST,
    ITEM_SIZES,
    OBJECT_COST,
    Value,
    call,
    check_key,
    described,
    judge,
    refused,
)
from fpg_zoo.checkpoints.pickle_audit.torch_zip import Budget, damaged, unsafe
from fpg_zoo.errors import CheckpointError
from fpg_zoo.text import printable, quoted

_MOST_NAMES = 100  # torch goes through them at every call
_LONGEST_NAME = 500
_NEWEST_PROTOCOL = 3  # of those that torch's safe reader knows, in part
_MOST_NESTED = 100
_SHORT = 1000  # texts up to here are kept
_NARROW = bytes(range(0xC4))  # UTF-8 without other bytes is of characters that take one byte each in memory

# Bytes that Python takes, like those of the calls.
_SLOT_COST, _MEMO_COST, _LIST_COST, _STORAGE_COST = 10, 100, 150, 400

_EMPTY = Value("tuple")
_DICTS = ("dict", "OrderedDict", "Counter")


class PickleAudit:
    """Goes through the pickles of one file, `run` for each, and gathers what it learns.

    Args:
        file: at a pickle's first byte.
        budget: what its values may take.
        record_size: the bytes stored under a key, None if there are none; None for a legacy file, which tells later.
    """

    def __init__(self, file: BinaryIO, budget: Budget, record_size: Callable[[str], int | None] | None) -> None:
        self.foreign: set[str] = set()  # as the file and as today's Python spell them
        self.storages: dict[str, tuple[int, int]] = {}  # elements and bytes per element, by key
        self._file, self._budget, self._record_size = file, budget, record_size
        self._denied: dict[str, None] = {}  # in the order of the file
        self._names: dict[str, Value] = {}
        self._handlers: dict[bytes, Callable[[], None]] = {
            b"(": self._mark,
            b")": lambda: self._stack.append(_EMPTY),
            b"K": lambda: self._stack.append(self._take(1)[0]),
            b"M": lambda: self._push(self._whole(2), 32),
            b"J": lambda: self._push(self._whole(4, signed=True), 32),
            b"G": lambda: self._push(struct.unpack(">d", self._take(8))[0], 32),
            b"N": lambda: self._stack.append(None),
            b"Q": self._persistent_id,
            b"R": self._reduce,
            b"U": lambda: self._text(self._take(1)[0]),
            b"X": lambda: self._text(self._whole(4)),
            b"]": lambda: self._push(Value("list", items=[], open=True), _LIST_COST),
            b"a": lambda: self._append([self._stack.pop()]),
            b"b": self._build,
            b"c": self._global,
            b"e": lambda: self._append(self._to_mark()),
            b"h": lambda: self._get(self._take(1)[0]),
            b"j": lambda: self._get(self._whole(4)),
            b"q": lambda: self._put(self._take(1)[0]),
            b"r": lambda: self._put(self._whole(4)),
            b"s": lambda: self._set_items([self._stack.pop(), self._stack.pop()][::-1]),
            b"t": lambda: self._tuple(self._to_mark()),
            b"u": lambda: self._set_items(self._to_mark()),
            b"}": lambda: self._push(Value("dict", open=True), DICT_COST),
            b"\x80": lambda: self._start(self._take(1)[0]),
            b"\x81": self._new,
            b"\x85": lambda: self._tuple([self._stack.pop()]),
            b"\x86": lambda: self._tuple([self._stack.pop() for _ in range(2)][::-1]),
            b"\x87": lambda: self._tuple([self._stack.pop() for _ in range(3)][::-1]),
            b"\x88": lambda: self._stack.append(True),
            b"\x89": lambda: self._stack.append(False),
            b"\x8a": self._long,
            b"\x8f": lambda: self._push(Value("set"), FILLED_COST),
        }

    def run(self, end: int) -> object:
        """Go through one pickle, from where the file is, and give the stand-in for its value.

        Args:
            end: the file's position that it may not reach beyond.

        Raises:
            UnsafeCheckpointError: it asks for what could run code or take any amount of memory.
            CheckpointError: it is no pickle, or a damaged one.
        """
        self._left = end - self._file.tell()
        self._stack: list[object] = []
        self._below: list[list[object]] = []
        self._memo: dict[int, object] = {}
        self._started = False
        try:
            self._go_through()
            result = self._stack.pop()
        except (CheckpointError, IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
            self._raise_denied()
            if isinstance(error, CheckpointError):
                raise
            raise damaged(self._budget.path, f"its pickle is broken: {type(error).__name__}") from None
        self._raise_denied()
        return result

    def _go_through(self) -> None:
        read, handlers, budget = self._file.read, self._handlers, self._budget
        while (code := read(1)) != b".":  # some 100,000 times, so spelt out
            self._left -= 1
            budget.left -= _SLOT_COST
            if self._left < 0 or budget.left < 0 or code not in handlers:
                raise self._stopped(code)
            handlers[code]()
        if self._left < 1:
            raise damaged(self._budget.path, "its pickle is cut")

    def _raise_denied(self) -> None:
        if self._denied:
            names = printable(", ".join(self._denied))
            raise unsafe(self._budget.path, f"its pickle asks for {names}; reading it could run code")

    def _stopped(self, code: bytes) -> CheckpointError:
        """Why it goes no further at this opcode."""
        self._budget.spend(0)
        if self._left < 0 or not code:
            return damaged(self._budget.path, "its pickle is cut")
        known = next((op.name for op in pickletools.opcodes if op.code == code.decode("latin-1")), None)
        if known is None or not self._started:  # what does not begin like a pickle may be anything
            return damaged(self._budget.path, f"{quoted(code)} is no opcode of its pickle")
        return refused(self._budget, f"uses {known}, which torch's safe reader does not know")

    # Reading

    def _take(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise damaged(self._budget.path, "its pickle is cut, or a text in it longer than all the rest")
        return self._file.read(count)

    def _whole(self, count: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(count), "little", signed=signed)

    def _line(self) -> str:
        line = self._file.readline(_LONGEST_NAME)
        self._left -= len(line)
        if self._left < 0 or not line.endswith(b"\n"):
            raise damaged(self._budget.path, "its pickle is cut, or a name in it is too long")
        return line[:-1].decode()

    # Values

    def _push(self, value: object, cost: int) -> None:
        self._budget.spend(cost)
        self._stack.append(value)

    def _mark(self) -> None:
        self._budget.spend(OBJECT_COST)
        self._below.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[object]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _get(self, index: int) -> None:
        value = self._memo[index]
        if isinstance(value, Value) and value.open:
            raise refused(self._budget, f"makes a value of the type {value.kind} that holds itself")
        self._stack.append(value)

    def _put(self, index: int) -> None:
        if index not in self._memo:
            self._budget.spend(_MEMO_COST)
        self._memo[index] = self._stack[-1]

    def _start(self, protocol: int) -> None:
        self._started = True
        if protocol > 5:
            raise damaged(self._budget.path, f"its pickle is of the unknown protocol {protocol}")
        if protocol > _NEWEST_PROTOCOL:
            raise CheckpointError(
                f"{self._budget.path}: is of pickle protocol {protocol}, which torch's safe reader does not know; save "
                "it again with torch.save's default protocol"
            )

    def _long(self) -> None:
        length = self._take(1)[0]
        self._push(self._whole(length, signed=True), 32 + length)

    def _text(self, length: int) -> None:
        data = self._take(length)
        # Its widest character decides how many bytes Python gives to each of them.
        width = 1 if data.isascii() or not data.translate(None, _NARROW) else 4
        self._budget.spend(50 + length * (width + 1))
        self._budget.left += length  # the raw bytes, which go again
        if length <= _SHORT:
            self._stack.append(data.decode("utf-8", "surrogatepass"))
        else:
            self._stack.append(Value("text", size=length * width))

    def _tuple(self, items: list[object]) -> None:
        value = Value("tuple", items=tuple(items), size=len(items))
        for item in items:
            self._place(value, item)
        self._push(value, OBJECT_COST + 8 * len(items))

    def _place(self, holder: Value, item: object) -> None:
        """Put a value into another, which is the last that is done to its contents."""
        holder.weight += 1
        if isinstance(item, Value):
            item.open = False
            holder.weight += item.weight
            holder.depth = max(holder.depth, item.depth + 1)
            if holder.depth > _MOST_NESTED:
                raise refused(self._budget, f"nests more than {_MOST_NESTED} containers in one another")
            if holder.weight > self._budget.most_values:
                raise refused(
                    self._budget, "shares its containers so often that going through them would take for ever"
                )

    def _append(self, items: list[object]) -> None:
        target = self._open_target("list", {"list"})
        assert isinstance(target.items, list)
        self._budget.spend(_SLOT_COST * len(items))
        target.items.extend(items)
        target.size += len(items)
        for item in items:
            self._place(target, item)

    def _set_items(self, items: list[object]) -> None:
        target = self._open_target("dict", _DICTS)
        if len(items) % 2:
            raise damaged(self._budget.path, "its pickle sets a key without a value")
        self._budget.spend(0 if target.size else FILLED_COST)
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._budget.spend(ITEM_COST)
            check_key(self._budget, key)
            self._place(target, key)
            self._place(target, value)
            target.label = key if isinstance(key, str) and (not target.size or target.label == key) else ""
            target.size += 1

    def _open_target(self, type_name: str, types: Collection[str]) -> Value:
        target = self._stack[-1]
        if isinstance(target, Value) and target.kind in types and target.open:
            return target
        raise refused(
            self._budget, f"fills {described(target)} like a {type_name}, which cannot be read without its class"
        )

    # Names and calls

    def _global(self) -> None:
        spelt = (self._line(), self._line())
        raw = ".".join(spelt)
        if raw not in self._names:
            # Python 2's names stand for today's, in torch's reader, too.
            module, name = _compat_pickle.NAME_MAPPING.get(
                spelt, (_compat_pickle.IMPORT_MAPPING.get(spelt[0], spelt[0]), spelt[1])
            )
            self._names[raw] = Value("name", label=f"{module}.{name}")
            self._judge(raw, f"{module}.{name}")
        self._stack.append(self._names[raw])

    def _judge(self, raw: str, name: str) -> None:
        verdict = judge(self._budget, name)
        if verdict == "denied":
            self._denied[name] = None
        elif verdict == "foreign":
            self.foreign |= {raw, name}
        if len(self._names) > _MOST_NAMES:
            raise refused(self._budget, f"asks for more than {_MOST_NAMES} classes and functions")

    def _reduce(self) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        self._stack.append(call(self._budget, called, arguments))

    def _new(self) -> None:
        called = self._stack[-2]
        if isinstance(called, Value) and called.label in CALLED - {"torch.nn.parameter.Parameter"}:
            raise refused(self._budget, f"makes a {called.label} in a way that torch.save does not write")
        self._reduce()

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        match target, state:
            case Value(kind="made"), _:
                return
            # What state_dict() notes about the modules' versions; other attributes could replace the dict's methods.
            case Value(kind="OrderedDict", open=True), Value(kind="dict") if (
                not state.size or state.label == "_metadata"
            ):
                self._place(target, state)
            case _:
                raise refused(self._budget, f"sets the inner state of {described(target)}")

    def _persistent_id(self) -> None:
        identifier = self._stack.pop()
        items = tuple(identifier.items) if isinstance(identifier, Value) and identifier.kind == "tuple" else ()
        if self._record_size is None and items[-1:] == (None,):  # the views of torch 0.3
            items = items[:-1]
        match items:
            case ("storage", Value(kind="name", label=label), str() as key, str(), int() as count) if (
                label in ITEM_SIZES and type(count) is int and count >= 0
            ):
                width = ITEM_SIZES[label]
            case _:
                raise refused(self._budget, f"has a persistent id that is no storage's: {described(identifier)}")
        if self.storages.setdefault(key, (count, width)) != (count, width):
            raise refused(self._budget, f"takes its storage {quoted(key)} for two different ones")
        if self._record_size is not None:
            stored = self._record_size(key)
            if stored is None:
                raise damaged(self._budget.path, f"it does not hold its storage {quoted(key)}")
            if stored != count * width:
                claim = f"{quoted(count * width)} bytes, of which the file holds {stored}"
                raise refused(self._budget, f"takes its storage {quoted(key)} for {claim}")
        self._push(Value("storage", size=count), _STORAGE_COST)
