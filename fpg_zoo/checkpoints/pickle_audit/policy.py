"""What a checkpoint's pickle may name and call, and what the calls give: a policy by lists of what passes."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from fpg_zoo.checkpoints.pickle_audit.torch_zip import Budget, unsafe
from fpg_zoo.errors import UnsafeCheckpointError
from fpg_zoo.text import printable, quoted

# Names: of the standard library, torch, and the packages that exist to run or install code, only what is listed here
# passes. Everything else is some project's own, and harmless as nothing of it is imported: torch is given a
# placeholder for it.

ITEM_SIZES = {
    "torch.BFloat16Storage": 2,
    "torch.BoolStorage": 1,
    "torch.ByteStorage": 1,
    "torch.CharStorage": 1,
    "torch.ComplexDoubleStorage": 16,
    "torch.ComplexFloatStorage": 8,
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.IntStorage": 4,
    "torch.LongStorage": 8,
    "torch.ShortStorage": 2,
}
_DTYPES = {
    f"torch.{name}"
    for name in (
        *("bfloat16", "bool", "complex128", "complex64", "float16", "float32", "float64"),
        *("int16", "int32", "int64", "int8", "uint8"),
    )
}
CALLED = {
    "_codecs.encode",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch.device",
    "torch.nn.parameter.Parameter",
}
_ADMITTED = {*ITEM_SIZES, *_DTYPES, *CALLED}

# Known to torch itself, which would therefore call them: constructors that take a size, kinds of tensors that no
# detector's weights are, and what builds those.
_NO_WEIGHTS = re.compile(
    r"builtins\.bytearray|torch\._(utils|tensor)\._\w+|torch\.serialization\._get_layout|torch\.per_\w+"
    r"|torch(\.cuda|\.sparse|\.storage)*\.\w*(Tensor|Storage)|torch\.\w*int\w+|torch\.float\w+|torch\.complex\w+"
)
# Data of the standard library, and torch's modules and optimizers: inert as well.
_HARMLESS = re.compile(
    r"argparse\.Namespace|collections\.(defaultdict|deque)|copyreg\._reconstructor|decimal\.Decimal"
    r"|builtins\.(bool|bytes|dict|float|frozenset|getattr|int|list|object|range|slice|str|tuple)"
    r"|datetime\.(date|datetime|time|timedelta|timezone)|fractions\.Fraction|functools\.partial"
    r"|pathlib(\._local)?\.\w*Path|random\.Random|re\._compile|types\.SimpleNamespace|uuid\.UUID|zoneinfo\.ZoneInfo"
    r"|torch\.(optim|nn\.modules)\.[\w.]+|torch\.torch_version\.TorchVersion"
)
_RUNNERS = {
    *sys.stdlib_module_names,
    *("IPython", "__builtin__", "cloudpickle", "dill", "distutils", "imp", "joblib", "pip", "pkg_resources"),
    *("setuptools", "torch"),
}

_MOST_DIMENSIONS = 16
_LARGEST_ITEM = max(ITEM_SIZES.values())  # bytes
_HASH_MODULUS = 2**61 - 1  # whole numbers below it have hashes of their own

# Bytes that Python takes, rounded up: for the stand-in or for what torch makes, whichever is larger.
OBJECT_COST, DICT_COST, FILLED_COST, ITEM_COST, _TENSOR_COST = 110, 130, 180, 110, 400
_TUPLE_KEY_COST = 12_000  # time rather than memory: the hashes of tuples can be made equal


@dataclass(slots=True, eq=False)
class Value:
    """A stand-in for anything but a number, None or a short text.

    Args:
        kind: what it would be.
        label: the full name of a `name` and of what it `result`, the key of a storage, a dict's key if it has one only.
        items: of a list or a tuple.
        size: entries of a container, bytes of a text, elements of a storage.
        depth: how deep it nests.
        weight: the values in it, shared ones counted as often as they are met.
        open: still growing, as its maker has not put it anywhere yet.
    """

    kind: str
    label: str = ""
    items: list[object] | tuple[object, ...] = ()
    size: int = 0
    depth: int = 0
    weight: int = 1
    open: bool = False


def refused(budget: Budget, reason: str) -> UnsafeCheckpointError:
    """The error about what a pickle does."""
    return unsafe(budget.path, f"its pickle {reason}")


def judge(budget: Budget, name: str) -> Literal["admitted", "foreign", "denied"]:
    """What to do with a name: torch's own, one for a placeholder, or one that only an attack asks for.

    Raises:
        UnsafeCheckpointError: torch would call it, and weights do not need it; or it cannot be a name.
    """
    if name in _ADMITTED:
        return "admitted"
    if _NO_WEIGHTS.fullmatch(name):
        raise refused(
            budget, f"asks for {printable(name)}, which weights do not need and which can take any amount of memory"
        )
    if not all(part.isidentifier() for part in name.split(".")):
        raise refused(budget, f"asks for {quoted(name)}, which is no name of a class")
    return "denied" if name.partition(".")[0] in _RUNNERS and not _HARMLESS.fullmatch(name) else "foreign"


def check_key(budget: Budget, key: object) -> None:
    """See that hashing it is quick: a text, a number, None, what a foreign class made, or a flat tuple of those."""
    parts: Collection[object] = (key,)
    if isinstance(key, Value) and key.kind == "tuple":
        budget.spend(_TUPLE_KEY_COST)
        parts = key.items
    for part in parts:
        if isinstance(part, Value) and part.kind not in ("text", "bytes", "made", "name"):
            raise refused(budget, f"makes a dict or set key of {described(key)}, hashing which could take for ever")
        if isinstance(part, int) and abs(part) >= _HASH_MODULUS:
            raise refused(budget, "makes dict or set keys of huge numbers, whose hashes can be made equal")


def call(budget: Budget, called: object, arguments: object) -> Value:
    """What a call gives.

    Raises:
        UnsafeCheckpointError: it is of no name, or of one of torch's with arguments that torch.save does not write.
    """
    if not isinstance(called, Value) or called.kind != "name":
        raise refused(budget, f"calls {described(called)}: only classes and functions that it names may be called")
    if not isinstance(arguments, Value) or arguments.kind != "tuple":
        raise refused(budget, f"calls {printable(called.label)} with {described(arguments)} for its arguments")
    budget.spend(OBJECT_COST)
    result = _result_of(budget, called.label, tuple(arguments.items))
    if result is None:
        raise refused(budget, f"calls {printable(called.label)} with other arguments than torch.save writes")
    return result


def _result_of(budget: Budget, name: str, arguments: tuple[object, ...]) -> Value | None:
    """What the call of a name gives, None if torch.save does not write such a call."""
    match name, arguments:
        case "torch._utils._rebuild_tensor_v2", (storage, offset, size, stride, bool(), hooks):
            return _tensor(budget, storage, offset, size, stride) if _no_hooks(hooks) else None
        case "collections.OrderedDict", ():
            budget.spend(DICT_COST)
            return Value("OrderedDict", open=True)
        case "_codecs.encode", (str() | Value(kind="text") as text, "latin1" | "latin-1"):
            size = text.size if isinstance(text, Value) else len(text)
            budget.spend(size)
            return Value("bytes", size=size)
        case "torch._utils._rebuild_parameter", (Value(kind="tensor") as tensor, bool(), hooks):
            return tensor if _no_hooks(hooks) else None
        case "torch.nn.parameter.Parameter", (Value(kind="tensor") as tensor, *rest) if rest in ([], [True], [False]):
            return tensor
        case "collections.Counter", () | (Value(kind="dict"),):
            counted = arguments[0] if arguments else Value("dict")
            assert isinstance(counted, Value)
            budget.spend(FILLED_COST + ITEM_COST * counted.size)
            return Value("Counter", size=counted.size, depth=counted.depth, weight=counted.weight, open=True)
        case "builtins.set", (Value(kind="list") as members,):
            budget.spend(FILLED_COST + ITEM_COST * members.size)
            for member in members.items:
                check_key(budget, member)
            return Value("set")
        case "torch.Size", (Value(kind="tuple") as sizes,) if _numbers(sizes) is not None:
            return Value("size")
        case ("torch.device", (str(),) | (str(), int())) | ("builtins.complex", (int() | float(), int() | float())):
            return Value(name)
        case "builtins.getattr", (_, str() as attribute) if attribute.startswith("_"):
            raise refused(budget, f"asks for the inner attribute {quoted(attribute)} of a class")
    return Value("made", label=name) if name not in _ADMITTED else None


def _tensor(budget: Budget, storage: object, offset: object, size: object, stride: object) -> Value | None:
    sizes, strides = _numbers(size), _numbers(stride)
    if not isinstance(storage, Value) or storage.kind != "storage" or type(offset) is not int:
        return None
    if sizes is None or strides is None or len(sizes) != len(strides):
        return None
    if offset < 0 or min(sizes + strides, default=0) < 0:
        raise refused(
            budget, f"makes a tensor of negative sizes, strides or offset: {quoted((sizes, strides, offset))}"
        )
    count = math.prod(sizes)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) if count else 0
    # An expanded tensor has several values in one place. It is copied to a tensor of its own later.
    copied = 0 if count <= storage.size else count * _LARGEST_ITEM
    if max(last, offset) >= max(storage.size, 1) or copied > budget.left:
        raise refused(
            budget,
            f"makes a tensor of the sizes {quoted(sizes)} and strides {quoted(strides)} from {quoted(offset)} on "
            f"in a storage of {storage.size} elements",
        )
    budget.spend(_TENSOR_COST + copied)
    return Value("tensor")


def _numbers(sizes: object) -> tuple[int, ...] | None:
    """A tensor's sizes or strides, None if they are none."""
    if not isinstance(sizes, Value) or sizes.kind != "tuple" or sizes.size > _MOST_DIMENSIONS:
        return None
    numbers = tuple(size for size in sizes.items if type(size) is int)
    return numbers if len(numbers) == sizes.size else None


def _no_hooks(hooks: object) -> bool:
    return isinstance(hooks, Value) and hooks.kind == "OrderedDict" and hooks.size == 0


def described(value: object) -> str:
    """The value for a message."""
    if not isinstance(value, Value):
        return f"a value of the type {type(value).__name__}"
    if value.kind == "made":
        return f"what {printable(value.label)} returned"
    return printable(value.label) if value.kind == "name" else f"a value of the type {value.kind}"
