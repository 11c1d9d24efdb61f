"""Enough of JSON Schema draft 7 to hold our own schema to it, and values to the schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
SCHEMAS = {"additionalProperties", "items"}  # keywords whose value is a schema
LISTS = {"anyOf", "allOf"}  # ... a list of schemas
MAPS = {"properties", "patternProperties", "definitions"}  # ... schemas by name
NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "minLength", "minItems"}
TEXTS = {"$schema", "$ref", "title", "description", "pattern"}


def malformed(schema: Any, root: Any, where: str = "#") -> list[str]:
    """What is no schema, in the words of draft 7 as far as we use it."""
    if isinstance(schema, bool):
        return []
    if not isinstance(schema, dict):
        return [f"{where}: {schema!r} is no schema"]
    found: list[str] = []
    for key, value in schema.items():
        here = f"{where}/{key}"
        if key in SCHEMAS:
            found += malformed(value, root, here)
        elif key in LISTS:
            found += [f"{here} is no list"] if not isinstance(value, list) or not value else []
            found += [one for item in value for one in malformed(item, root, here)]
        elif key in MAPS:
            found += [one for name, item in value.items() for one in malformed(item, root, f"{here}/{name}")]
        elif key in NUMBERS:
            found += [] if isinstance(value, int | float) and not isinstance(value, bool) else [f"{here}: no number"]
        elif key in TEXTS:
            found += [] if isinstance(value, str) else [f"{here}: no text"]
        elif key == "type":
            wrong = {value} if isinstance(value, str) else set(value)
            found += [f"{here}: {one}" for one in wrong - TYPES.keys()]
        elif key == "enum":
            found += [] if isinstance(value, list) and value else [f"{here}: no list"]
        elif key == "required":
            found += [] if isinstance(value, list) and set(value) <= schema["properties"].keys() else [here]
        elif key != "default":
            found.append(f"{here}: no such keyword")
    if "pattern" in schema:
        re.compile(schema["pattern"])
    if "$ref" in schema:
        found += [] if resolved(schema["$ref"], root) is not None else [f"{where}: {schema['$ref']} leads nowhere"]
        found += [] if set(schema) == {"$ref"} else [f"{where}: what stands beside $ref is not read"]
    return found


def resolved(ref: str, root: Any) -> Any:
    found = root
    for step in ref.removeprefix("#/").split("/"):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def complaints(value: Any, schema: Any, root: Any = None, where: str = "$") -> list[str]:
    """Why a value does not fit a schema; empty where it does."""
    root = schema if root is None else root
    if "$ref" in schema:
        return complaints(value, resolved(schema["$ref"], root), root, where)
    found: list[str] = []
    for one in schema.get("allOf", ()):
        found += complaints(value, one, root, where)
    options = [complaints(value, one, root, where) for one in schema.get("anyOf", ())]
    if options and all(options):
        found += min(options, key=len)
    kinds = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", ())
    if kinds and not any(_is(value, kind) for kind in kinds):
        return [*found, f"{where}: {value!r} is no {kinds}"]
    if "enum" in schema and not any(value == one and type(value) is type(one) for one in schema["enum"]):
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    found += _bounds(value, schema, where)
    if isinstance(value, dict):
        found += _members(value, schema, root, where)
    if isinstance(value, list) and "items" in schema:
        found += [
            one for n, item in enumerate(value) for one in complaints(item, schema["items"], root, f"{where}[{n}]")
        ]
    return found


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _bounds(value: Any, schema: Mapping[str, Any], where: str) -> list[str]:
    wrong = []
    if isinstance(value, int | float) and not isinstance(value, bool):
        wrong = [
            *(["minimum"] if value < schema.get("minimum", value) else []),
            *(["maximum"] if value > schema.get("maximum", value) else []),
            *(["exclusiveMinimum"] if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"] else []),
        ]
    elif isinstance(value, str):
        wrong = [
            *(["minLength"] if len(value) < schema.get("minLength", 0) else []),
            *(["pattern"] if "pattern" in schema and not re.search(schema["pattern"], value) else []),
        ]
    elif isinstance(value, list) and len(value) < schema.get("minItems", 0):
        wrong = ["minItems"]
    return [f"{where}: {value!r} is against {one} {schema[one]}" for one in wrong]


def _members(value: Mapping[str, Any], schema: Mapping[str, Any], root: Any, where: str) -> list[str]:
    found = [f"{where}: lacks {name}" for name in schema.get("required", ()) if name not in value]
    for name, item in value.items():
        fitting = [schema["properties"][name]] if name in schema.get("properties", {}) else []
        fitting += [one for sign, one in schema.get("patternProperties", {}).items() if re.search(sign, name)]
        rest = schema.get("additionalProperties", True)
        if not fitting and rest is False:
            found.append(f"{where}: no such key {name!r}")
        elif not fitting and isinstance(rest, dict):
            fitting = [rest]
        found += [one for schema_ in fitting for one in complaints(item, schema_, root, f"{where}.{name}")]
    return found
