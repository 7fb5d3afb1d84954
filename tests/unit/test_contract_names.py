"""The contracts as generators of clients read them: named types, named operations, documented replies and frames."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.handlers.contracts import asyncapi
from pipeline.settings import DEFAULT_CATEGORIES
from tests.contract.contracts import API, ROOMS, check_value, resolve_all

Node = dict[str, Any]
SCHEMAS: Node = API["components"]["schemas"]
SERVED_ROOMS = json.loads(asyncapi(DEFAULT_CATEGORIES, "https://photos.example.com"))
# Keys whose values are data, not schemas.
VALUES = ("enum", "const", "example", "examples", "required")


def operations() -> Iterator[tuple[str, Node]]:
    for path, item in API["paths"].items():
        for method in (each for each in item if each != "parameters"):
            yield f"{method} {path}", item[method]


OPERATIONS = dict(operations())
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())


def schemas_in(node: Any, where: str) -> Iterator[tuple[str, Node]]:
    """Yield each schema within a schema, without the schema itself, with its path."""
    if isinstance(node, list):
        for each in node:
            yield from schemas_in(each, where)
        return
    for key, value in node.items() if isinstance(node, dict) else ():
        if key in VALUES:
            continue
        children = value.items() if key == "properties" else [(key, value)]
        for name, child in children:
            if isinstance(child, dict):
                yield f"{where}/{name}", child
            yield from schemas_in(child, f"{where}/{name}")


def nameless(schemas: Node, *, is_strict: bool) -> list[str]:
    """Return the paths of objects without a name. is_strict: and those of lists of values without a name."""
    return [
        where
        for name, schema in schemas.items()
        for where, inner in schemas_in(schema, name)
        if "properties" in inner or (is_strict and len(inner.get("enum", ())) > 1)
    ]


@pytest.mark.fault("O4")
def test_upload_takes_a_file() -> None:
    """The image of an upload is binary, so a generated client sends the bytes of a file."""
    image = SCHEMAS["Upload"]["properties"]["image"]
    assert (image["type"], image["format"]) == ("string", "binary")


@pytest.mark.fault("O4")
def test_objects_have_names() -> None:
    """Each object has a name, so no generator must invent a name for its type."""
    assert nameless(SCHEMAS, is_strict=False) == []


@pytest.mark.fault("O4")
def test_parameters_and_schemas_have_different_names() -> None:
    """No parameter has the name of a schema: a Go generator makes types of both in one package."""
    components = API["components"]
    names = [name[0].upper() + name[1:] for kind in ("parameters", "schemas") for name in components[kind]]
    assert len(names) == len(set(names))


@pytest.mark.fault("O4")
def test_values_have_types() -> None:
    """Each list of values and each constant has a type, because generators for typed languages need it."""
    found = [where for where, inner in schemas_in({"properties": SCHEMAS}, "") if {"enum", "const"} & inner.keys()]
    assert found and all("type" in dict(schemas_in({"properties": SCHEMAS}, ""))[where] for where in found)


@pytest.mark.fault("O4")
def test_operations_have_good_method_names() -> None:
    """Each operation has its own name, in camel case."""
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("[a-z]+([A-Z][a-z]*)+", name) for name in names), names


@pytest.mark.fault("O4")
@each_operation
def test_operation_is_documented(operation: Node) -> None:
    """An operation has tags of the list, a summary, descriptions of its parameters, and an X-Request-Id."""
    assert set(operation["tags"]) < {tag["name"] for tag in API["tags"]}
    assert operation["summary"]
    parameters = [resolve_all(each) for each in operation["parameters"]]
    assert "X-Request-Id" in [each["name"] for each in parameters]
    assert all(each.get("description") for each in parameters)


@pytest.mark.fault("O4")
@each_operation
def test_bodies_have_a_named_schema_and_an_example(operation: Node) -> None:
    """Each JSON body of a request or reply has a named schema and an example; each reply has an X-Request-Id."""
    replies = {status: resolve_all(each) for status, each in operation["responses"].items()}
    for status, reply in replies.items():
        assert "X-Request-Id" in reply["headers"]
        media = reply.get("content", {}).get("application/json")
        if media is not None:
            assert "$ref" in media["schema"] and media.keys() & {"example", "examples"}
        if int(status) >= 400:
            name = "NotReady" if operation["operationId"] == "checkReadiness" and status == "503" else "Error"
            assert media["schema"] == {"$ref": f"#/components/schemas/{name}"}
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        assert "$ref" in media["schema"] and ("example" in media or kind == "multipart/form-data")


@pytest.mark.fault("O4")
def test_headers_for_retries_are_documented() -> None:
    """Each 429 and 503 has Retry-After, except that of readiness; the upload has Idempotency-Key and Prefer."""
    for status, reply in ((s, resolve_all(r)) for each in OPERATIONS.values() for s, r in each["responses"].items()):
        if status == "429" or (status == "503" and "NotReady" not in json.dumps(reply)):
            assert "Retry-After" in reply["headers"]
    upload = OPERATIONS["post /api/assets/analyze-queue"]
    names = {resolve_all(each)["name"] for each in upload["parameters"]}
    assert names >= {"Idempotency-Key", "Prefer"}


@pytest.mark.fault("O20")
def test_frames_have_names() -> None:
    """Each schema of /asyncapi.json has a title, each message a named schema: no generated model is anonymous."""
    schemas, messages = SERVED_ROOMS["components"]["schemas"], SERVED_ROOMS["components"]["messages"]
    assert nameless(schemas, is_strict=True) == []
    assert {name: schema["title"] for name, schema in schemas.items()} == {name: name for name in schemas}
    for name, message in messages.items():
        assert (message["name"], message["payload"]["$ref"]) == (name, f"#/components/schemas/{message['title']}")


@pytest.mark.fault("O20")
def test_frames_and_replies_have_the_same_parts() -> None:
    """A schema that both contracts name is the same in both: the parts of the overview."""
    ours = ROOMS["components"]["schemas"]
    # Events of the socket have stricter timestamps and ids than the parameters of requests.
    common = (ours.keys() & SCHEMAS.keys()) - {"AssetId", "Timestamp"}
    assert {"Attribute", "QueueNumbers", "StoreOverview"} <= common
    assert {name: {"title": name} | SCHEMAS[name] for name in common} == {name: ours[name] for name in common}
    overview = dict(ours["OverviewChanged"]["properties"])
    assert overview.pop("event") == {"type": "string", "const": "overview"}
    assert overview == SCHEMAS["Overview"]["properties"]


@pytest.mark.fault("O20")
@pytest.mark.parametrize("name", SERVED_ROOMS["components"]["messages"])
def test_frames_have_valid_examples(name: str) -> None:
    """Each message has an example that is valid by its schema."""
    message = SERVED_ROOMS["components"]["messages"][name]
    assert message["examples"]
    for example in message["examples"]:
        check_value(message["payload"] | {"components": SERVED_ROOMS["components"]}, example["payload"])
