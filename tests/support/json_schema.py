"""A checker for the part of JSON Schema that benchmarks/schema.json uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_REMARKS = {"$schema", "$defs", "title", "description"}
_KNOWN = {"type", "required", "properties", "additionalProperties", "items", "minItems", "minLength", "minimum"} | {
    "pattern",
    "enum",
    "anyOf",
    "$ref",
}


def violations(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "record") -> list[str]:
    """What of a value is not as the schema says, a sentence each."""
    return list(_violations(value, schema, root or schema, at))


def _violations(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str) -> Iterator[str]:
    unknown = schema.keys() - _KNOWN - _REMARKS
    if unknown:
        raise NotImplementedError(f"the schema uses {', '.join(sorted(unknown))}, which this checker does not know")
    if "$ref" in schema:
        yield from _violations(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
        return
    if "anyOf" in schema:
        if all(violations(value, one, root, at) for one in schema["anyOf"]):
            yield f"{at}: {value!r} is none of what is allowed"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{at}: {value!r} is no {' or '.join(kinds)}"
        return
    if isinstance(value, str):
        if len(value) < schema.get("minLength", 0) or not re.search(schema.get("pattern", ""), value):
            yield f"{at}: {value!r} is too short or does not match"
    elif isinstance(value, dict):
        yield from (f"{at}: no {name}" for name in schema.get("required", []) if name not in value)
        for name, one in value.items():
            allowed = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
            if allowed is False:
                yield f"{at}: {name} is not known"
            else:
                yield from _violations(one, allowed, root, f"{at}.{name}")
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{at}: {len(value)} items"
        for place, one in enumerate(value):
            yield from _violations(one, schema.get("items", {}), root, f"{at}[{place}]")
    elif isinstance(value, (int, float)) and value < schema.get("minimum", value):
        yield f"{at}: {value} is less than {schema['minimum']}"


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
