"""Calls the handler of a plugin's route and turns its reply or its exception into the reply for the client.

A route is held only while its plugin cannot be started: a failing handler affects only its caller. Runs on the event
loop.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from pipeline.errors import DependencyUnavailable, NotReady, PipelineError, plugin_error_text
from pipeline.hooks.bound_plugin import REGISTER_ROUTES, BoundPlugin
from pipeline.hooks.faults import NOT_READY
from pipeline.hooks.routes import PluginReply, PluginRequest, Route
from pipeline.hooks.running_calls import PluginBusy, PluginOverrun

log = structlog.get_logger(__name__)

# Headers that the service sets itself. Cookies: a plugin must not set them for our pages.
RESERVED_HEADERS = frozenset(
    ("connection", "content-length", "content-type", "date", "server", "set-cookie", "set-cookie2", "trailer")
    + ("transfer-encoding", "upgrade", "keep-alive", "x-request-id", "x-content-type-options")
)
HEADER_NAME, HEADER_VALUE = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}"), re.compile(r"[\x20-\x7e\t]{0,4096}")
WITHOUT_BODY = (204, 205, 304)


class RouteFailed(PipelineError):
    """The plugin's handler failed, which is logged and counted: a 500 without details."""


class WrongReply(Exception):
    """A handler returned an invalid reply."""


async def answer(plugin: BoundPlugin, route: Route, request: PluginRequest, seconds: float) -> PluginReply:
    """Return the handler's reply, its `json` as `body`; raise a PipelineError for the client otherwise."""
    breaker = plugin.breaker(REGISTER_ROUTES)
    if not plugin.lets_through(REGISTER_ROUTES):
        raise DependencyUnavailable("The plugin is not ready", retry_after_seconds=breaker.left_seconds)
    run = plugin.run_on_loop if inspect.iscoroutinefunction(route.handler) else plugin.run_in_thread
    try:
        name = f"{route.method} {route.path}"
        result = await run(REGISTER_ROUTES, _returning_refusals(route.handler), seconds, request, name=name)
        reply = result if isinstance(result, PipelineError) else _checked(plugin, result)
    except NotReady as error:
        breaker.unreachable(NOT_READY, plugin_error_text(error), error.retry_after_seconds)
        seconds = error.retry_after_seconds
        raise DependencyUnavailable("The plugin is not ready", retry_after_seconds=seconds) from error
    except Exception as error:
        breaker.answered()
        raise _client_error(plugin, route, error) from error
    breaker.answered()
    if isinstance(reply, PipelineError):
        raise reply
    return reply


def _client_error(plugin: BoundPlugin, route: Route, error: Exception) -> PipelineError:
    cause = plugin_error_text(error)
    names: dict[str, Any] = {"plugin": plugin.name, "method": route.method, "path": route.path, "cause": cause}
    key = f"{route.method} {route.path} {cause}"
    plugin.throttled_log.write(log.warning, "plugin_route_failed", key, **names, exc_info=error)
    if isinstance(error, DependencyUnavailable):
        return error
    if isinstance(error, (PluginBusy, PluginOverrun)):
        return DependencyUnavailable("The plugin did not answer in time", retry_after_seconds=1)
    return RouteFailed("The plugin failed")


def _returning_refusals(handler: Callable[[PluginRequest], Any]) -> Callable[[PluginRequest], Any]:
    """Return the handler; it then returns an error that the client caused, so that it does not count for the plugin."""

    async def awaited(request: PluginRequest) -> Any:
        try:
            return await handler(request)
        except PipelineError as error:
            return _refusal(error)

    def called(request: PluginRequest) -> Any:
        try:
            return handler(request)
        except PipelineError as error:
            return _refusal(error)

    return awaited if inspect.iscoroutinefunction(handler) else called


def _refusal(error: PipelineError) -> PipelineError:
    if error.http_status >= 500:
        raise error
    return error


def _checked(plugin: BoundPlugin, result: object) -> PluginReply:
    try:
        return checked_reply(result)
    except WrongReply:
        plugin.count_error(REGISTER_ROUTES)
        raise


def checked_reply(result: object) -> PluginReply:
    """Return the reply as it is sent; WrongReply, in words for the plugin's author, when it is invalid."""
    if result is None:
        return PluginReply(204)
    if not isinstance(result, PluginReply):
        raise WrongReply(f"the handler returned {type(result).__name__}, neither PluginReply nor None")
    if type(result.status) is not int or not 200 <= result.status <= 599:
        raise WrongReply(f"its status is {result.status!r}, not a number from 200 to 599")
    if not isinstance(result.body, bytes):
        raise WrongReply(f"its body is {type(result.body).__name__}, not bytes")
    _check_headers({"Content-Type": result.content_type}, ())
    _check_headers(result.headers, RESERVED_HEADERS)
    body, content_type = result.body, result.content_type
    if result.json is not None:
        if body:
            raise WrongReply("it has both json and body")
        body, content_type = _as_json(result.json), "application/json; charset=UTF-8"
    if body and result.status in WITHOUT_BODY:
        raise WrongReply(f"a reply with the status {result.status} has no body")
    return PluginReply(result.status, None, body, content_type, dict(result.headers))


def _as_json(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongReply(f"its json cannot be encoded: {error}") from error


def _check_headers(headers: object, reserved: Any) -> None:
    if not isinstance(headers, Mapping):
        raise WrongReply(f"its headers are {type(headers).__name__}, not a mapping")
    for name, value in headers.items():
        if not isinstance(name, str) or not HEADER_NAME.fullmatch(name):
            raise WrongReply("a header has an invalid name")
        if name.lower() in reserved or name.lower().startswith("access-control-"):
            raise WrongReply(f"the header {name} is set by the service, not by a plugin")
        if not isinstance(value, str) or not HEADER_VALUE.fullmatch(value):
            raise WrongReply(f"the header {name} has a value that is not one line of ASCII text")
