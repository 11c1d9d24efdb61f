"""The JSON Schema of a config file, for editors: made from the declarations of the options and nothing else.

Law: what the schema refuses, reading the file refuses, too; not the other way around, because a schema knows nothing of
names in the code and of options that contradict each other. Draft 7, which editors understand best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from skate.authoring.config import APPLICATION, FILE, GRPC_OPTIONS, HTTP_ELSEWHERE, HTTP_WITHOUT_VALUE
from skate.core.checks import Option, options_of
from skate.core.options import HTTP_OPTIONS, DeploymentOptions
from skate.core.specs import HttpOptions

DRAFT = "http://json-schema.org/draft-07/schema#"
_VARIABLE = {"type": "string", "pattern": "^[^$]*\\$\\{.+\\}.*$", "description": "From the environment: ${NAME}."}
_SCALARS = ("integer", "number", "boolean")


def schema() -> dict[str, Any]:
    """The schema as plain data."""
    definitions: dict[str, Any] = {"variable": _VARIABLE}
    deployment = _object(options_of(DeploymentOptions), definitions, required=("name",))
    deployment["properties"]["name"] = {
        **_resolved(APPLICATION["name"].check.schema, definitions),
        "description": "Name of the deployment in the code.",
    }
    application = _object(APPLICATION, definitions, required=("import_path",))
    application["properties"]["deployments"] |= {"anyOf": [_list_of("deployment"), {"type": "null"}]}
    http = _object(HTTP_OPTIONS | HTTP_ELSEWHERE, definitions)
    for name in HTTP_OPTIONS:
        http["properties"][name]["default"] = getattr(HttpOptions(), name)
    http["properties"] |= {name: {"enum": [None, []]} for name in HTTP_WITHOUT_VALUE}
    file = _object(FILE, definitions, required=("applications",))
    file["properties"]["applications"] |= _list_of("application")
    file["properties"]["http_options"] |= {"anyOf": [{"$ref": "#/definitions/http_options"}, {"type": "null"}]}
    file["properties"]["grpc_options"] |= {"anyOf": [{"$ref": "#/definitions/grpc_options"}, {"type": "null"}]}
    definitions |= {
        "application": application,
        "deployment": deployment,
        "http_options": http,
        "grpc_options": _object(GRPC_OPTIONS, definitions),
    }
    about = "A config file of Skate: applications, and how they are served."
    head = {"$schema": DRAFT, "title": "Skate config file", "description": about}
    anchors = {"patternProperties": {"^x-": {"description": "A place for anchors; it is not read."}}}
    return {**head, **file, **anchors, "definitions": dict(sorted(definitions.items()))}


def _list_of(name: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/definitions/{name}"}}


def _object(
    declared: Mapping[str, Option], definitions: dict[str, Any], required: tuple[str, ...] = ()
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _property(option, definitions) for name, option in declared.items()},
    }
    for name in required:
        made["properties"][name].pop("default")
    return {**made, "required": list(required)} if required else made


def _property(option: Option, definitions: dict[str, Any]) -> dict[str, Any]:
    unit = f" Unit: {option.unit}." if option.unit else ""
    later = " No effect in this version." if option.since == "later" else ""
    made = _resolved(option.check.schema, definitions)
    if "$ref" in made:  # beside a reference, editors see nothing else
        made = {"allOf": [made]}
    default = msgspec.to_builtins(option.default)
    return {**made, "description": f"{option.about}{unit}{later}", "default": default}


def _resolved(said: Any, definitions: dict[str, Any]) -> Any:
    """The schema of a check, with groups of options as references, and variables where no text could stand."""
    if isinstance(said, list):
        return [_resolved(one, definitions) for one in said]
    if not isinstance(said, Mapping):
        return said
    group = said.get("$ref")
    if isinstance(group, type):
        _define(group, definitions)
        return {"$ref": f"#/definitions/{group.__name__}"}
    made = {key: _resolved(one, definitions) for key, one in said.items()}
    if said.get("type") in _SCALARS or "pattern" in said or "enum" in said:
        return {"anyOf": [made, {"$ref": "#/definitions/variable"}]}
    return made


def _define(group: type[msgspec.Struct], definitions: dict[str, Any]) -> None:
    if group.__name__ in definitions:
        return
    definitions[group.__name__] = {}  # so that a group in itself would end
    required = tuple(field.name for field in msgspec.structs.fields(group) if field.required)
    made = _object(options_of(group), definitions, required)
    about = (group.__doc__ or "").strip().splitlines()
    definitions[group.__name__] = {**made, "description": about[0] if about else group.__name__}
