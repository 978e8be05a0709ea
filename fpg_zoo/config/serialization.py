"""Configs as JSON-ready data and back. What is read may come from anyone: every value is checked against its field."""

from __future__ import annotations

import dataclasses
import functools
import sys
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fpg_zoo.config.backbones import BackboneConfig, ResNetConfig, TimmConfig
from fpg_zoo.config.detectors import PreprocessConfig, RetinaNetConfig, TwoStageConfig
from fpg_zoo.config.heads import (
    AnchorConfig,
    BoxHeadConfig,
    DenseHeadConfig,
    MaskHeadConfig,
    RetinaHeadConfig,
    RPNConfig,
    SoftNMSConfig,
)
from fpg_zoo.config.necks import FPGConfig, FPGGrid, FPNConfig, NASFPNConfig, NeckConfig
from fpg_zoo.errors import ConfigError
from fpg_zoo.text import quoted

SCHEMA_VERSION = 1

# These names are part of the file format: a class may be renamed, its name here must stay.
_TYPES: dict[str, type] = {
    "PreprocessConfig": PreprocessConfig,
    "ResNetConfig": ResNetConfig,
    "TimmConfig": TimmConfig,
    "FPNConfig": FPNConfig,
    "NASFPNConfig": NASFPNConfig,
    "FPGGrid": FPGGrid,
    "FPGConfig": FPGConfig,
    "AnchorConfig": AnchorConfig,
    "RPNConfig": RPNConfig,
    "SoftNMSConfig": SoftNMSConfig,
    "BoxHeadConfig": BoxHeadConfig,
    "MaskHeadConfig": MaskHeadConfig,
    "RetinaHeadConfig": RetinaHeadConfig,
    "TwoStageConfig": TwoStageConfig,
    "RetinaNetConfig": RetinaNetConfig,
}
_NAMES = {cls: name for name, cls in _TYPES.items()}
# What a field may hold whose annotation is a protocol; `register_config` adds to it.
_PARTS: dict[Any, list[type]] = {
    BackboneConfig: [ResNetConfig, TimmConfig],
    NeckConfig: [FPNConfig, FPGConfig, NASFPNConfig],
    DenseHeadConfig: [RetinaHeadConfig],
}
# Fields that have another name in files, which version 1 of the format has had from the first.
_NECK_KEYS = {"start_level": "start", "out_channels": "width"}
_KEYS: dict[type, dict[str, str]] = dict.fromkeys((FPNConfig, FPGConfig, NASFPNConfig), _NECK_KEYS)
# Fields that came later: files have them only where they differ from the default, so that older versions read the rest.
_LATER: dict[type, tuple[str, ...]] = {
    ResNetConfig: ("groups", "width_per_group"),
    NASFPNConfig: ("start_level",),
    PreprocessConfig: ("shortest_side", "fixed_size", "channel_order"),
    BoxHeadConfig: ("soft_nms", "class_agnostic_nms"),
    RetinaHeadConfig: ("soft_nms", "class_agnostic_nms"),
}
_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", NoneType: "None"}
_INT64 = 2**63


def register_config(cls: type, part: Any) -> None:
    """Let files hold a config of another class, under the class's name.

    Args:
        cls: a frozen dataclass.
        part: what it is the config of: `BackboneConfig`, `NeckConfig` or `DenseHeadConfig`.

    Raises:
        ConfigError: it is no frozen dataclass, or there is a config of this name.
    """
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"{cls.__name__} is no frozen dataclass: decorate it with @dataclass(frozen=True)")
    if cls.__name__ in _TYPES:
        raise ConfigError(f"there is a config class of the name {cls.__name__}: choose another")
    _TYPES[cls.__name__] = cls
    _NAMES[cls] = cls.__name__
    _PARTS[part].append(cls)


def file_keys(name: Any) -> dict[str, str]:
    """What files call the fields of the config class of this name, where that is not the field's name."""
    return _KEYS.get(_TYPES.get(name, object), {}) if isinstance(name, str) else {}


def to_dict(config: Any) -> Any:
    """A config as JSON-ready data; each dataclass becomes a dict with its name in the file format under `type`."""
    if type(config) in _NAMES:
        keys = _KEYS.get(type(config), {})
        fields = {
            keys.get(field.name, field.name): to_dict(getattr(config, field.name))
            for field in dataclasses.fields(config)
            if field.name not in _LATER.get(type(config), ()) or getattr(config, field.name) != field.default
        }
        return {"type": _NAMES[type(config)], **fields}
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return config


def from_dict(data: Any) -> Any:
    """The config that `to_dict` wrote; a field that is left out and has a default gets it.

    Args:
        data: whatever `json.loads` gives.

    Raises:
        ConfigError: no config; the message names the field, as `neck.grid.skipped[2]`, its value and what it takes.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"config={quoted(data)}: it takes an object with a type")
    return _config(data, list(_TYPES), "")


def read_value(data: Any, expected: Any, path: str) -> Any:
    """What `json.loads` gave, as an annotation has it: lists become tuples, whole numbers floats.

    Args:
        data: the value.
        expected: the annotation: of int, float, str, bool, None, Literal, tuple, of unions of these or of configs.
        path: where it was found, for errors.

    Raises:
        ConfigError: it is no such value.
    """
    options = _options(expected)
    if isinstance(data, dict) and any(option in _NAMES for option in options):
        return _config(data, [_NAMES[option] for option in options if option in _NAMES], path)
    for option in options:
        if get_origin(option) is tuple and isinstance(data, list):
            return _tuple(data, get_args(option), path)
        if get_origin(option) is Literal and isinstance(data, str) and data in get_args(option):
            return data
        # The comparisons are false for NaN, and make no float of an integer that is too large for one.
        if option is float and type(data) in (int, float) and abs(data) <= sys.float_info.max:
            return float(data)
        if option is int and type(data) is int and abs(data) < _INT64:
            return data
        if option in (str, bool, NoneType) and type(data) is option:
            return data
    raise ConfigError(f"{path}={quoted(data)}: it takes {_words(expected)}")


def _options(expected: Any) -> tuple[Any, ...]:
    """The types that an annotation allows."""
    if get_origin(expected) in (Union, UnionType):
        return get_args(expected)
    return tuple(_PARTS.get(expected, (expected,)))


def _tuple(data: list[Any], types: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    if types[-1] is Ellipsis:
        types = types[:1] * len(data)
    if len(data) != len(types):
        raise ConfigError(f"{path}={quoted(data)}: it takes a list of {len(types)}")
    return tuple(
        read_value(item, expected, f"{path}[{index}]")
        for index, (item, expected) in enumerate(zip(data, types, strict=True))
    )


def _config(data: dict[str, Any], allowed: list[str], path: str) -> Any:
    prefix = f"{path}." if path else ""
    name = data.get("type")
    if not isinstance(name, str) or name not in allowed:
        raise ConfigError(f"{prefix}type={quoted(name)}: this version takes {' or '.join(allowed)}")
    cls = _TYPES[name]
    fields = _fields(cls)
    for key in data:
        if key != "type" and key not in fields:
            raise ConfigError(f"{prefix}{quoted(key)} is no field of {name}, which has {', '.join(fields)}")
    for key, (expected, required) in fields.items():
        if required and key not in data:
            raise ConfigError(f"{prefix}{key} is missing: it takes {_words(expected)}")
    names = {key: name for name, key in _KEYS.get(cls, {}).items()}
    values = {
        names.get(key, key): read_value(data[key], expected, prefix + key)
        for key, (expected, _) in fields.items()
        if key in data
    }
    try:
        return cls(**values)
    except ConfigError as error:
        message = str(error)
        for key, name in names.items():  # the file's reader looks for the file's key
            message = message.replace(f"{name}=", f"{key}=", 1) if message.startswith(f"{name}=") else message
        raise ConfigError(f"{path}: {message}" if path else message) from None


@functools.cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    """Of each field, by its name in files, its annotation and whether it has no default."""
    keys = _KEYS.get(cls, {})
    annotations = get_type_hints(cls)
    missing = dataclasses.MISSING
    return {
        keys.get(field.name, field.name): (
            annotations[field.name],
            field.default is missing and field.default_factory is missing,
        )
        for field in dataclasses.fields(cls)
    }


def _words(expected: Any) -> str:
    origin, arguments = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType) or expected in _PARTS:
        return " or ".join(map(_words, _options(expected)))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
    return _WORDS.get(expected) or f"an object of type {_NAMES[expected]}"
