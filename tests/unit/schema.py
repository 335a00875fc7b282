"""As much of JSON Schema as docs/schema.json uses, so that the tests need no library for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[2] / "docs" / "schema.json").read_text(encoding="utf-8")
)
_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "null": type(None)}
_KNOWN = {
    *("$ref", "type", "enum", "required", "properties", "additionalProperties", "items", "minimum", "maximum"),
    *("pattern", "description"),
}


def problems(value: Any, name: str) -> list[str]:
    """Where ``value`` is not what ``$defs/name`` says; empty where it is."""
    return list(_look(value, SCHEMA["$defs"][name], "$"))


def _look(value: Any, schema: dict[str, Any], at: str) -> list[str]:
    assert set(schema) <= _KNOWN, f"this checker does not know {set(schema) - _KNOWN}"
    if "$ref" in schema:
        return _look(value, SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]], at)
    found = []
    kinds = schema.get("type")
    if kinds is not None:
        names = kinds if isinstance(kinds, list) else [kinds]
        fits = [isinstance(value, _TYPES[kind]) and (kind == "boolean") == isinstance(value, bool) for kind in names]
        if not any(fits):
            return [f"{at}: {value!r} is no {kinds}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r} is not one of {schema['enum']}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{at}: {value!r} does not match {schema['pattern']}")
    if "minimum" in schema and not schema["minimum"] <= value <= schema["maximum"]:
        found.append(f"{at}: {value} is out of range")
    if isinstance(value, dict):
        found += [f"{at}: {key} is missing" for key in schema.get("required", ()) if key not in value]
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            found += [f"{at}: {key} is not known"] if inner is False else _look(item, inner, f"{at}.{key}")
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += _look(item, schema.get("items", {}), f"{at}[{number}]")
    return found
