"""The contracts themselves: they are valid, so are their examples, and they refuse invalid data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from tornado.web import RequestHandler

from pipeline import handlers
from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef, job_data
from pipeline.assets.events import asset_processed
from pipeline.handlers.base import BaseHandler, OperatorHandler
from tests.contract.contracts import (
    API,
    API_URI,
    EVENT,
    FORMATS,
    JOB,
    ROOMS,
    check_event,
    check_job,
    check_reply,
    check_value,
    find_template,
    resolve_all,
)

ID = "65b9f0a4c2d1e3f4a5b6c7d8"
NOW = datetime(2026, 1, 31, 12, 0, 0, 123000, tzinfo=UTC)
NIKE = {"value": "Nike", "confidence": 0.95}
Change = Callable[[dict[str, Any]], object]


def make_asset(status: AssetStatus, ai_metadata: AiMetadata = AiMetadata(), **more: Any) -> Asset:
    original = ImageRef("memory", f"{ID}/original-1", "https://images.example.com/a", "0" * 64, 10, 4, 3, "image/jpeg")
    job_id, owner = f"ai-processing:{ID}", "auth0|ada@example.com"
    return Asset(ID, owner, "lego", status, original, job_id, NOW, NOW, ai_metadata=ai_metadata, **more)


def replies() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield every JSON example of every reply: its place, its schema, the example."""
    named = [(f"components {name}", response) for name, response in API["components"]["responses"].items()]
    for path, item in API["paths"].items():
        for method in (each for each in ("get", "post", "patch", "delete") if each in item):
            for status, response in item[method]["responses"].items():
                named.append((f"{method} {path} {status}", resolve_all(response)))
    for name, response in named:
        media = response.get("content", {}).get("application/json", {})
        for example in [media[key] for key in media if key == "example"]:
            yield name, media["schema"], example
        for key, example in media.get("examples", {}).items():
            yield f"{name} {key}", media["schema"], example["value"]


REPLIES = list(replies())


def rebased(node: Any) -> Any:
    """Return the schema with its references into the API document made absolute."""
    if isinstance(node, dict):
        return {key: API_URI + value if key == "$ref" else rebased(value) for key, value in node.items()}
    return [rebased(value) for value in node] if isinstance(node, list) else node


@pytest.mark.parametrize("schema", [JOB, EVENT], ids=["job", "event"])
def test_contract_schemas_are_valid(schema: dict[str, Any]) -> None:
    """The schemas of the job and the event are valid by the meta-schema of JSON Schema."""
    Draft202012Validator.check_schema(schema, format_checker=FORMATS)


def test_contract_api_is_valid() -> None:
    """The API document, its references and its parameters are valid by the meta-schema of OpenAPI 3.1."""
    assert [error.message for error in OpenAPIV31SpecValidator(API).iter_errors()] == []


@pytest.mark.parametrize("schema", [JOB, EVENT], ids=["job", "event"])
def test_contract_schema_examples_are_valid(schema: dict[str, Any]) -> None:
    """Each example of a schema is valid by the schema."""
    assert schema["examples"]
    for example in schema["examples"]:
        check_value(schema, example)


@pytest.mark.parametrize(("schema", "example"), [r[1:] for r in REPLIES], ids=[r[0] for r in REPLIES])
def test_contract_reply_examples_are_valid(schema: dict[str, Any], example: Any) -> None:
    """Each example of a reply in the API document is valid by the schema of the reply."""
    check_value(rebased(schema), example)


def test_contract_objects_are_closed() -> None:
    """An object of a reply or a frame has only properties that the contract names, except the `extra` of a provider.

    An object of a request may have other properties: the service ignores them.
    """

    def open_objects(node: Any, where: str) -> Iterator[str]:
        if isinstance(node, dict):
            if node.get("type") == "object" and node.get("additionalProperties") is not False:
                yield where
            for key, value in node.items():
                if key not in ("example", "examples", "requestBody"):
                    yield from open_objects(value, f"{where}/{key}")
        elif isinstance(node, list):
            for value in node:
                yield from open_objects(value, where)

    documents = ["AsyncApiDocument", "OpenApiDocument", "AiExtra"]  # a provider chooses the properties of AiExtra
    wanted = {f"/components/schemas/{name}" for name in (*documents, "Upload")}
    assert set(open_objects(API, "")) == wanted
    assert list(open_objects(JOB, "")) == list(open_objects(EVENT, "")) == []
    sent = {f"/components/schemas/{name}" for name in ("Authenticate", "Credentials")}
    assert set(open_objects(ROOMS["components"], "/components")) == sent


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (lambda job: job.update(priority=1), "only the five properties"),
        (lambda job: job.pop("userId"), "all five are required"),
        (lambda job: job.update(assetId="65b9"), "24 hex digits"),
        (lambda job: job.update(userId="a b"), "a user id has no space"),
        (lambda job: job.update(userId="u" * 129), "128 characters at most"),
        (lambda job: job.update(imageUrl="http://images.example.com/a.jpg"), "plain HTTP outside loopback"),
        (lambda job: job.update(imageUrl="http://localhost.example.com/a.jpg"), "a host that begins like loopback"),
        (lambda job: job.update(imageUrl="/media/a.jpg"), "not an absolute URI"),
        (lambda job: job.update(category="Sneaker"), "categories are lower case"),
        (lambda job: job.update(createdAt="2026-01-31 12:00"), "not ISO 8601"),
        (lambda job: job.update(createdAt="2026-01-31T13:00:00+01:00"), "not UTC"),
        (lambda job: job.update(createdAt="2026-02-31T12:00:00Z"), "no such day"),
    ],
)
def test_contract_refuses_a_bad_job(change: Change, remark: str) -> None:
    """A job payload that breaks a rule is refused."""
    job = copy.deepcopy(JOB["examples"][0])
    change(job)
    with pytest.raises(AssertionError):
        check_job(job)


@pytest.mark.parametrize(
    ("number", "change", "remark"),
    [
        (0, lambda event: event.update(userId="u"), "no other property"),
        (0, lambda event: event.update(event="asset_done"), "the only name of an event"),
        (0, lambda event: event.update(status="failed"), "a failure has no result"),
        (0, lambda event: event.update(error="x"), "a success has no error"),
        (0, lambda event: event["aiMetadata"].pop("brand"), "brand is required"),
        (0, lambda event: event["aiMetadata"].update(year=NIKE), "only brand, model, colorway"),
        (0, lambda event: event["aiMetadata"].update(colorway=None), "absent, not null"),
        (0, lambda event: event["aiMetadata"]["brand"].update(confidence=1.1), "0..1"),
        (0, lambda event: event["aiMetadata"]["brand"].update(source="ai"), "value and confidence, nothing else"),
        (0, lambda event: event.update(processedImageUrl="processed-1.png"), "not a URI"),
        (0, lambda event: event.update(timestamp="yesterday"), "not a date-time"),
        (2, lambda event: event.pop("error"), "a failure has its reason"),
        (2, lambda event: event.update(error=""), "the reason is not empty"),
        (2, lambda event: event.update(status="active"), "a success has aiMetadata"),
    ],
)
def test_contract_refuses_a_bad_event(number: int, change: Change, remark: str) -> None:
    """An event that breaks a rule is refused."""
    event = copy.deepcopy(EVENT["examples"][number])
    change(event)
    with pytest.raises(AssertionError):
        check_event(event)


@pytest.mark.parametrize(
    ("method", "path", "status", "body", "remark"),
    [
        ("POST", "/api/assets/analyze-queue", 200, {"success": True, "data": {}}, "an upload is answered with 202"),
        ("POST", "/api/assets/analyze-queue", 202, {"success": True, "data": {"assetId": ID}}, "data is complete"),
        ("POST", "/api/assets/analyze-queue", 401, {"error": {"code": "UNAUTHORIZED", "message": "x"}}, "envelope"),
        ("GET", f"/api/assets/{ID}", 404, {"success": False, "error": {"code": "GONE", "message": "x"}}, "codes"),
        ("GET", f"/api/assets/{ID}", 404, None, "an error has a body"),
        ("DELETE", f"/api/assets/{ID}", 204, {"success": True, "data": None}, "204 has no body"),
        ("PUT", "/api/assets", 200, {"success": True, "data": {}}, "no such method"),
        ("GET", "/api/users", 200, {"success": True, "data": {}}, "no such path"),
    ],
)
def test_contract_refuses_a_bad_reply(method: str, path: str, status: int, body: Any, remark: str) -> None:
    """A reply that the contract does not describe is refused."""
    with pytest.raises(AssertionError):
        check_reply(method, path, status, body)


def test_contract_refuses_a_reply_without_its_headers() -> None:
    """A reply without a header that the contract requires is refused."""
    body = {"success": False, "error": {"code": "UNAVAILABLE", "message": "The queue cannot be reached"}}
    check_reply("GET", "/api/assets/queue-status", 503, body, {"X-Request-Id": "r", "Retry-After": "5"})
    with pytest.raises(AssertionError, match="Retry-After"):
        check_reply("GET", "/api/assets/queue-status", 503, body, {"X-Request-Id": "r"})


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/api/assets/queue-status", "/api/assets/queue-status"),
        (f"/api/assets/{ID}", "/api/assets/{id}"),
        (f"/api/assets/{ID}/retry", "/api/assets/{id}/retry"),
        (f"/api/assets/{ID}/cancel", "/api/assets/{id}/cancel"),
        (f"/media/{ID}/original-1.jpg", "/media/{path}"),
        ("/nowhere", ""),
    ],
)
def test_contract_finds_the_template_of_a_path(path: str, template: str) -> None:
    """A fixed path has precedence over one with parameters."""
    assert find_template(path) == template


def all_handlers() -> set[type]:
    """Return all classes that the modules of pipeline.handlers define or import."""
    modules = [import_module(f"{handlers.__name__}.{each.name}") for each in iter_modules(handlers.__path__)]
    return {value for module in modules for value in vars(module).values() if isinstance(value, type)}


def test_contract_names_every_route_and_method() -> None:
    """The routes and methods of the handlers are exactly those of the contract."""
    handled = {
        (handler.route, method)
        for handler in all_handlers()
        if issubclass(handler, BaseHandler) and handler.route != BaseHandler.route
        for method in ("get", "post", "put", "patch", "delete")
        if getattr(handler, method) is not RequestHandler._unimplemented_method
    }
    listed = {(path, method) for path, item in API["paths"].items() for method in item.keys() - {"parameters"}}
    assert handled == listed


def test_every_change_of_an_operator_has_a_text_for_the_audit_list() -> None:
    """Each method of an operator's route that changes data has a text for the audit list."""
    changing = {
        (handler.route, method): handler.actions.get(method.upper(), "")
        for handler in all_handlers()
        if issubclass(handler, OperatorHandler) and handler.route != BaseHandler.route
        for method in ("post", "put", "patch", "delete")
        if getattr(handler, method) is not RequestHandler._unimplemented_method
    }
    assert len(changing) > 10 and all(changing.values()), changing


@pytest.mark.parametrize(
    "asset",
    [
        make_asset(AssetStatus.PROCESSING),
        make_asset(AssetStatus.FAILED, AiMetadata(error="AI service unavailable after 3 attempts"), finished_at=NOW),
        make_asset(AssetStatus.PARTIAL, AiMetadata(brand=NIKE, processed_at=NOW), finished_at=NOW),
        make_asset(
            AssetStatus.ACTIVE,
            AiMetadata(brand=NIKE, model=NIKE, colorway=NIKE, processed_at=NOW),
            finished_at=NOW,
            processed=ImageRef("", "", "https://images.example.com/b"),
        ),
    ],
    ids=lambda asset: asset.status.value,
)
def test_reply_job_and_event_of_an_asset_are_valid(asset: Asset) -> None:
    """The reply, the job and the event that are built from an asset are valid by the contracts."""
    check_reply("GET", f"/api/assets/{ID}", 200, {"success": True, "data": asset.to_json({})})
    check_job(job_data(asset))
    if asset.is_finished:
        check_event(asset_processed(asset))
