"""What the values of configs are checked with. Each check takes them by name, and names the first that it refuses."""

from __future__ import annotations

import math
from typing import TypeGuard

from fpg_zoo.errors import ConfigError
from fpg_zoo.text import quoted

_LARGEST = 1e6  # of numbers that pixels are reckoned with: far beyond, float32 overflows
# Limits that nobody should meet, so that no file keeps its reader building.
MAX_REPEATS = 256  # of what is built again and again: blocks, pathways, stacks, cells of a pooled region
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
    """Refuse what is no number, or so large that pixels reckoned with it overflow."""
    for name, value in values.items():
        if not _is_number(value):
            raise ConfigError(f"{name}={quoted(value)}: it takes a number")
        if abs(value) > _LARGEST:
            raise ConfigError(f"{name}={quoted(value)}: it takes at most {_LARGEST:g} either way")


def check_above_zero(**values: object) -> None:
    """Refuse what is no number above 0, or so large or small that pixels reckoned with it overflow."""
    for name, value in values.items():
        if not _is_number(value) or value <= 0:
            raise ConfigError(f"{name}={quoted(value)}: it takes a number above 0")
        if not 1 / _LARGEST <= value <= _LARGEST:
            raise ConfigError(f"{name}={quoted(value)}: it takes a number from {1 / _LARGEST:g} to {_LARGEST:g}")


def check_multiple(divisor: int, /, **values: int) -> None:
    """Refuse what is no multiple of `divisor`."""
    for name, value in values.items():
        if value % divisor:
            raise ConfigError(f"{name}={quoted(value)}: it takes a multiple of {divisor}, the coarsest level's stride")


def check_fractions(**values: object) -> None:
    """Refuse what is no number of 0..1."""
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value <= 1:
            raise ConfigError(f"{name}={quoted(value)}: it takes a number from 0 to 1")


def _is_number(value: object) -> TypeGuard[float]:
    """Finite, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def check_tuples(**values: object) -> None:
    """Refuse what is no tuple: a config does not change, and can be a key."""
    for name, value in values.items():
        if not isinstance(value, tuple):
            raise ConfigError(f"{name}={quoted(value)}: give a tuple")


def indexed(length: int | None = None, /, **tuples: object) -> dict[str, object]:
    """The entries of tuples under names such as `std[0]`, for another check.

    Raises:
        ConfigError: one is no tuple, does not have `length` entries, or has none where any number will do.
    """
    check_tuples(**tuples)
    values_by_name = {}
    for name, values in tuples.items():
        assert isinstance(values, tuple)
        if len(values) != length if length else not values:
            raise ConfigError(f"{name}={quoted(values)}: it takes {length or 'at least one'} of them")
        values_by_name.update({f"{name}[{index}]": value for index, value in enumerate(values)})
    return values_by_name
