"""The OpenAPI document of the REST API. Law: made from the declarations of endpoints and values. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from skate.admin.answers import FailureBody
from skate.admin.endpoints import ApplicationBody, Endpoint, FileBody, Parameter

OF_ALL = (401, 403, 503)  # statuses that every request may get
_REF = "#/components/schemas/{name}"
_PLACE = re.compile(r"{(\w+)}")


def document(endpoints: Iterable[Endpoint], version: str, token: bool, file: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAPI 3.1. ``token``: whether requests must bear one. ``file``: the JSON Schema of files."""
    endpoints = tuple(endpoints)
    paths: dict[str, dict[str, Any]] = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, token)
    components: dict[str, Any] = {"schemas": {**_schemas(endpoints), **_of_files(file)}}
    if token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    about = {"title": "Skate", "version": version, "description": "Deploys, shows and changes what an instance serves."}
    return {"openapi": "3.1.0", "info": about, "paths": paths, "components": components}


def _of_files(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of files as components: its references point to where its definitions are now."""
    here = _REF.format(name=FileBody.__name__)
    whole = {key: _moved(value, here) for key, value in schema.items() if key != "$schema"}
    application: dict[str, Any] = {"type": "object"}
    if "application" in schema.get("definitions", {}):
        application = {"$ref": f"{here}/definitions/application"}
    return {FileBody.__name__: whole, ApplicationBody.__name__: application}


def _moved(value: Any, to: str) -> Any:
    if isinstance(value, Mapping):
        return {
            key: to + one.removeprefix("#") if key == "$ref" and isinstance(one, str) else _moved(one, to)
            for key, one in value.items()
        }
    return [_moved(one, to) for one in value] if isinstance(value, list) else value


def _schemas(endpoints: tuple[Endpoint, ...]) -> dict[str, Any]:
    kinds = [one.answer for one in endpoints if one.answer is not Response]
    kinds += [one.body for one in endpoints if one.body is not None]
    _, found = msgspec.json.schema_components([*kinds, FailureBody], ref_template=_REF)
    return dict(found)


def _operation(one: Endpoint, token: bool) -> dict[str, Any]:
    said = {"text/plain": {"schema": {"type": "string"}}} if one.answer is Response else _json(one.answer)
    operation: dict[str, Any] = {
        "operationId": one.handler.__name__ if one.path != "/api/ray/version" else "get_ray_version",
        "summary": one.about,
        "responses": {"200": {"description": "OK", "content": said}, **_failures(one)},
    }
    parameters = [*map(_of_path, _PLACE.findall(one.path)), *map(_of_query, one.query)]
    if parameters:
        operation["parameters"] = parameters
    if one.body is not None:
        operation["requestBody"] = {"required": not one.optional, "content": _json(one.body)}
    if token:
        operation["security"] = [{"token": []}]
    return operation


def _failures(one: Endpoint) -> dict[str, Any]:
    statuses = sorted({*OF_ALL, *one.failures})
    return {str(each): {"description": HTTPStatus(each).phrase, "content": _json(FailureBody)} for each in statuses}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}


def _of_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _of_query(one: Parameter) -> dict[str, Any]:
    schema = dict(one.schema) if one.default is None else {**one.schema, "default": one.default}
    return {"name": one.name, "in": "query", "required": False, "description": one.about, "schema": schema}
