"""What the values of configs are checked with. Each check takes them by name, and names the first that it refuses.

The bounds of a field stand in its annotation: `width: Count` is a whole number that counts something. `check_fields`
checks all fields of a config by their annotations, so a config's own code checks only what fields have to do with each
other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from fpg_zoo.errors import ConfigError
from fpg_zoo.text import quoted

_LARGEST = 1e6  # of numbers that pixels are computed with: far beyond, float32 overflows
# Limits that nobody should meet, so that no file keeps its reader building.
MAX_REPEATS = 256  # of what is built again and again: blocks, pathways, stacks, cells of a pooled RoI
MAX_LEVELS = 16
MOST_CLASSES = 2**16
_MOST = 2**20  # of anything counted: beyond, the sizes of tensors overflow


def check_one_of(allowed: tuple[object, ...], **values: object) -> None:
    """Refuse what is none of `allowed`, types included: 1 is not True."""
    for name, value in values.items():
        if not any(type(value) is type(option) and value == option for option in allowed):
            raise ConfigError(f"{name}={quoted(value)}: use one of {', '.join(map(repr, allowed))}")


def check_positive(most: int = _MOST, /, **values: object) -> None:
    """Refuse what is no whole number of 1..`most`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name}={quoted(value)}: it takes a whole number of at least 1")
        if value > most:
            raise ConfigError(f"{name}={quoted(value)}: it takes at most {most}")


def check_numbers(**values: object) -> None:
    """Refuse what is no number, or so large that pixels computed with it overflow."""
    for name, value in values.items():
        if not is_number(value):
            raise ConfigError(f"{name}={quoted(value)}: it takes a number")
        if abs(value) > _LARGEST:
            raise ConfigError(f"{name}={quoted(value)}: it takes at most {_LARGEST:g} either way")


def check_above_zero(**values: object) -> None:
    """Refuse what is no number above 0, or so large or small that pixels computed with it overflow."""
    for name, value in values.items():
        if not is_number(value) or value <= 0:
            raise ConfigError(f"{name}={quoted(value)}: it takes a number above 0")
        if not 1 / _LARGEST <= value <= _LARGEST:
            raise ConfigError(f"{name}={quoted(value)}: it takes a number from {1 / _LARGEST:g} to {_LARGEST:g}")


def check_at_least_zero(**values: object) -> None:
    """Refuse what is no number of 0 or more."""
    for name, value in values.items():
        if not is_number(value) or value < 0:
            raise ConfigError(f"{name}={quoted(value)}: it takes a number of at least 0")


def check_whole(**values: object) -> None:
    """Refuse what is no whole number of 0 or more."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{name}={quoted(value)}: it takes a whole number of at least 0")


def check_multiple(divisor: int, /, **values: int) -> None:
    """Refuse what is no multiple of `divisor`."""
    for name, value in values.items():
        if value % divisor:
            raise ConfigError(f"{name}={quoted(value)}: it takes a multiple of {divisor}, the coarsest level's stride")


def check_fractions(**values: object) -> None:
    """Refuse what is no number of 0..1."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise ConfigError(f"{name}={quoted(value)}: it takes a number from 0 to 1")


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def check_tuple(length: int | None = None, /, **values: object) -> None:
    """Refuse what is no tuple, as a config does not change and can be a key; or does not have `length` entries."""
    for name, value in values.items():
        if not isinstance(value, tuple):
            raise ConfigError(f"{name}={quoted(value)}: give a tuple")
        if length is not None and len(value) != length:
            raise ConfigError(f"{name}={quoted(value)}: it takes {length} of them")


def check_not_empty(**values: object) -> None:
    """Refuse a tuple without entries."""
    for name, value in values.items():
        if value == ():
            raise ConfigError(f"{name}=(): it takes at least one of them")


# Annotations of fields.
Count = Annotated[int, check_positive]
Repeats = Annotated[int, functools.partial(check_positive, MAX_REPEATS)]
Levels = Annotated[int, functools.partial(check_positive, MAX_LEVELS)]
Number = Annotated[float, check_numbers]
AboveZero = Annotated[float, check_above_zero]
Fraction = Annotated[float, check_fractions]
AtLeastZero = Annotated[float, check_at_least_zero]
WholeNumber = Annotated[int, check_whole]


def check_fields(config: Any) -> None:
    """Check the fields of a config, a dataclass, by their annotations.

    Literals, bools, tuples and what `Annotated` names a check for are looked at; other types are left to whoever reads
    a config from a file.

    Raises:
        ConfigError: a value that its field does not take.
    """
    for name, annotation in _annotations(config.__class__):
        _check_value(name, getattr(config, name), annotation)


@functools.cache
def _annotations(cls: Any) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(cls, include_extras=True)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(cls))


def _check_value(name: str, value: object, annotation: Any) -> None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        _check_value(name, value, arguments[0])
        for check in arguments[1:]:
            check(**{name: value})
    elif annotation is bool:
        check_one_of((True, False), **{name: value})
    elif origin in (Union, UnionType) and get_origin(arguments[0]) is Annotated:
        words = [word for option in arguments[1:] for word in (get_args(option) or (None,))]
        if value not in words:
            _check_value(name, value, arguments[0])
    elif allowed := _literals(annotation):
        check_one_of(allowed, **{name: value})
    elif origin is tuple:
        alike = arguments[-1] is Ellipsis
        check_tuple(None if alike else len(arguments), **{name: value})
        assert isinstance(value, tuple)
        for place, (item, expected) in enumerate(
            zip(value, arguments[:1] * len(value) if alike else arguments, strict=True)
        ):
            _check_value(f"{name}[{place}]", item, expected)


def _literals(annotation: Any) -> tuple[object, ...]:
    """The values that an annotation allows, where it names them: a Literal, or one or None."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        literal, none = get_args(annotation)[0], get_args(annotation)[1:]
        if get_origin(literal) is Literal and none == (NoneType,):
            return (*get_args(literal), None)
    return ()
