"""Detectors of one's own as TOML or JSON files: a whole config, or what differs from a named one."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from fpg_zoo.config import BackboneConfig, DetectorConfig, RetinaNetConfig, TwoStageConfig
from fpg_zoo.config.serialization import file_keys, from_dict, to_dict
from fpg_zoo.data.text_files import read_json
from fpg_zoo.errors import ConfigError, UnknownNameError
from fpg_zoo.files import read_regular
from fpg_zoo.models.names import find_architecture
from fpg_zoo.text import printable, quoted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 16 << 20
_OWN_KEYS = ("name", "base")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")


def read_config_file(path: Path, backbone: str | BackboneConfig | None = None) -> tuple[str, DetectorConfig]:
    """The detector that a file describes.

    Args:
        path: ending in `.toml` or `.json`. Either all of a config, as `config.json` of a saved model has it, or a table
            with `base`, the name of an architecture or a family, and the fields that differ: a table of fields for a
            part, which may have another `type`. `backbone` is a name as `create_model` takes it, or such a table.
            `name` names the detector; the file's name does otherwise.
        backbone: in place of the file's.

    Returns:
        The detector's name and its config.

    Raises:
        ConfigError: the file cannot be read, or describes no detector; the message names file, field and value.
    """
    content = read_table(path)
    try:
        name = content.get("name", path.stem)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"name={quoted(name)}: give the detector a name of letters, digits, '_', '.' and '-'")
        saved = "config" in content and "architecture" in content  # a saved model's config.json
        if backbone is not None and (saved or "base" not in content):
            raise ConfigError("it describes a whole detector, with its backbone; name no other")
        if saved:
            return str(content["architecture"]), _whole(content["config"])
        if "base" not in content:
            if "type" not in content:
                raise ConfigError(
                    "neither base nor type: give base = 'NAME', one of `fpg-zoo list` or a family, and what differs "
                    "from it; or a whole config with its type"
                )
            return name, _whole({key: value for key, value in content.items() if key not in _OWN_KEYS})
        return name, _derived(content, backbone)
    except (ConfigError, UnknownNameError) as error:
        raise ConfigError(f"{printable(path)}: {error}") from None


def read_table(path: Path) -> dict[str, Any]:
    """The content of a `.toml` or `.json` file.

    Raises:
        ConfigError: it cannot be read, or is no table of fields.
    """
    if path.suffix.lower() not in (".toml", ".json"):
        raise ConfigError(f"{printable(path)}: a config file ends in .toml or .json")
    content = read_json(path) if path.suffix.lower() == ".json" else _read_toml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{printable(path)}: {quoted(content)} is no table of fields")
    return content


def _read_toml(path: Path) -> object:
    try:
        return tomllib.loads(read_regular(path, max_bytes=_MAX_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{printable(path)}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # of UTF-8 and TOML
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{printable(path)}: no TOML ({printable(reason)})") from None


def _whole(data: Any) -> DetectorConfig:
    config = from_dict(data)
    if not isinstance(config, (RetinaNetConfig, TwoStageConfig)):
        raise ConfigError(f"type={quoted(data['type'])}: it takes the config of a whole detector")
    return config


def _derived(content: dict[str, Any], backbone: str | BackboneConfig | None) -> DetectorConfig:
    base, named = content["base"], content.get("backbone")
    if not isinstance(base, str):
        raise ConfigError(f"base={quoted(base)}: it takes the name of an architecture or a family")
    if backbone is None and isinstance(named, str):
        backbone = named
    known, tag = find_architecture(base, backbone)
    if tag:
        raise ConfigError(f"base={quoted(base)} names published weights: leave the tag out")
    changes = {key: value for key, value in content.items() if key not in _OWN_KEYS}
    if backbone is not None:
        changes.pop("backbone", None)
    return _whole(_merged(to_dict(known.build_config()), changes))


def _merged(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config's data with some fields changed; a part of another type begins with that type's defaults."""
    other = "type" in changes and changes["type"] != data["type"]
    merged: dict[str, Any] = {} if other else dict(data)
    keys = file_keys(changes["type"] if other else data["type"])
    for name, value in changes.items():
        key = keys.get(name, name)
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged
