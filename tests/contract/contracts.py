"""Checks replies, job payloads and events against contracts/; one AssertionError names all faults of a value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry
from referencing.jsonschema import DRAFT202012

API_URI = "urn:api"
FORMATS = FormatChecker(formats=("date-time",))


@FORMATS.checks("uri")
def _is_uri(value: object) -> bool:
    if not isinstance(value, str):
        return True  # the type has its own check
    parts = urlsplit(value)
    return bool(parts.scheme and parts.netloc) and not re.search(r"\s", value)


def load(name: str) -> dict[str, Any]:
    """Return the contract with that file name."""
    return json.loads(resources.files("pipeline.contracts").joinpath(name).read_text("utf-8"))


JOB = load("ai-job.schema.json")
EVENT = load("asset-processed-event.schema.json")
API = load("analyze-queue.openapi.json")
ROOMS = load("rooms.asyncapi.json")
REGISTRY: Registry[Any] = Registry().with_resource(API_URI, DRAFT202012.create_resource(API))


def frame_schema(message: str) -> dict[str, Any]:
    """Return the schema of a message of rooms.asyncapi.json, with all schemas that it refers to."""
    components = ROOMS["components"]
    return {"$ref": components["messages"][message]["payload"]["$ref"], "components": components}


def check_job(data: object) -> None:
    """Check the data of a job, as enqueued."""
    check_value(JOB, data)


def check_event(event: object) -> None:
    """Check the payload of asset_processed, as received."""
    check_value(EVENT, event)


def check_reply(method: str, path: str, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
    """Check a reply of the HTTP interface.

    A method or path that is not in the contract needs the reply MethodNotAllowed or NotFound of the contract.

    path: of the request, with or without a query.
    body: parsed JSON, or None for a reply without JSON.
    headers: must have the headers that the contract requires, in a mapping that ignores case; None checks no headers.
    """
    pointer = find_response(method, path, status)
    response = resolve(pointer)
    for name, header in response.get("headers", {}).items():
        if headers is not None and resolve_all(header).get("required"):
            assert name in headers, f"{method} {path} {status}: header {name} is missing"
    media = response.get("content", {}).get("application/json")
    assert (media is None) == (body is None), f"{method} {path} {status}: JSON {body!r}, contract {media}"
    if media is not None:
        check_value({"$ref": f"{API_URI}{pointer}/content/application~1json/schema"}, body)


def find_response(method: str, path: str, status: int) -> str:
    """Return the fragment (#/...) of the contract that describes this reply; a $ref is followed."""
    template = find_template(urlsplit(path).path)
    operation = API["paths"].get(template, {}).get(method.lower())
    if operation is None:
        name = {404: "NotFound", 405: "MethodNotAllowed"}.get(status)
        assert name, f"{method} {path} is not in the contract, but the status is {status}"
        return f"#/components/responses/{name}"
    assert str(status) in operation["responses"], f"{method} {template} has no reply {status} in the contract"
    reference: str | None = operation["responses"][str(status)].get("$ref")
    return reference or f"#/paths/{template.replace('/', '~1')}/{method.lower()}/responses/{status}"


def find_template(path: str) -> str:
    """Return the matching path of the contract that has the fewest parameters, "" when no path matches."""
    for template in sorted(API["paths"], key=lambda template: template.count("{")):
        pattern = "[^/]+".join(map(re.escape, re.split(r"\{\w+\}", template)))
        if template.startswith("/media/"):
            pattern = "/media/.+"
        if re.fullmatch(pattern, path):
            return str(template)
    return ""


def resolve(pointer: str) -> dict[str, Any]:
    """Return the part of the API contract that a fragment (#/...) points to."""
    found: dict[str, Any] = REGISTRY.resolver().lookup(API_URI + pointer).contents
    return found


def resolve_all(node: dict[str, Any]) -> dict[str, Any]:
    """Return the node, or the part of the contract that its $ref points to."""
    return resolve(node["$ref"]) if "$ref" in node else node


def check_value(schema: Mapping[str, Any], value: object) -> None:
    """Check the value against a schema, formats included."""
    validator = Draft202012Validator(schema, registry=REGISTRY, format_checker=FORMATS)
    faults = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
    assert not faults, f"{faults} in {value!r}"
