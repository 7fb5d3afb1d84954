"""Calls the handler of a plugin's route, and says what its reply or its exception means for the client.

A route is held only while its plugin cannot be started: a handler that fails hurts nobody but its caller.
Runs on the event loop.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from pipeline.errors import DependencyUnavailable, NotReady, PipelineError, plugin_error_text
from pipeline.hooks.calls import REGISTER_ROUTES, BoundPlugin
from pipeline.hooks.faults import NOT_READY
from pipeline.hooks.routes import PluginReply, PluginRequest, Route
from pipeline.hooks.running import PluginBusy, PluginOverrun

log = structlog.get_logger(__name__)

# What the service says itself in every reply; and no plugin gives our pages a cookie.
RESERVED_HEADERS = frozenset(
    ("connection", "content-length", "content-type", "date", "server", "set-cookie", "set-cookie2", "trailer")
    + ("transfer-encoding", "upgrade", "keep-alive", "x-request-id", "x-content-type-options")
)
HEADER_NAME, HEADER_VALUE = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}"), re.compile(r"[\x20-\x7e\t]{0,4096}")
WITHOUT_BODY = (204, 205, 304)


class RouteFailed(PipelineError):
    """The plugin's handler failed, which is logged and counted: a 500 that says nothing."""


class WrongReply(Exception):
    """A handler returned what it must not."""


async def answer(plugin: BoundPlugin, route: Route, request: PluginRequest, seconds: float) -> PluginReply:
    """Return the handler's reply, its `json` as `body`; the PipelineError that the client gets otherwise."""
    breaker = plugin.breaker(REGISTER_ROUTES)
    if not plugin.lets_through(REGISTER_ROUTES):
        raise DependencyUnavailable("The plugin is not ready", retry_after_seconds=breaker.left_seconds)
    run = plugin.run_on_loop if inspect.iscoroutinefunction(route.handler) else plugin.run_in_thread
    try:
        name = f"{route.method} {route.path}"
        said = await run(REGISTER_ROUTES, _refusing(route.handler), seconds, request, name=name)
        reply = said if isinstance(said, PipelineError) else _checked(plugin, said)
    except NotReady as error:
        breaker.unreachable(NOT_READY, plugin_error_text(error), error.retry_after_seconds)
        seconds = error.retry_after_seconds
        raise DependencyUnavailable("The plugin is not ready", retry_after_seconds=seconds) from error
    except Exception as error:
        breaker.answered()
        raise _as_answer(plugin, route, error) from error
    breaker.answered()
    if isinstance(reply, PipelineError):
        raise reply
    return reply


def _as_answer(plugin: BoundPlugin, route: Route, error: Exception) -> PipelineError:
    cause = plugin_error_text(error)
    names: dict[str, Any] = {"plugin": plugin.name, "method": route.method, "path": route.path, "cause": cause}
    key = f"{route.method} {route.path} {cause}"
    plugin.throttled_log.write(log.warning, "plugin_route_failed", key, **names, exc_info=error)
    if isinstance(error, DependencyUnavailable):
        return error
    if isinstance(error, (PluginBusy, PluginOverrun)):
        return DependencyUnavailable("The plugin did not answer in time", retry_after_seconds=1)
    return RouteFailed("The plugin failed")


def _refusing(handler: Callable[[PluginRequest], Any]) -> Callable[[PluginRequest], Any]:
    """Return the handler, which then returns an error of the client's doing: that is none of the plugin's."""

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


def _checked(plugin: BoundPlugin, said: object) -> PluginReply:
    try:
        return checked_reply(said)
    except WrongReply:
        plugin.count_error(REGISTER_ROUTES)
        raise


def checked_reply(said: object) -> PluginReply:
    """Return what the handler returned as it is sent; WrongReply, in words for its author, when it cannot be."""
    if said is None:
        return PluginReply(204)
    if not isinstance(said, PluginReply):
        raise WrongReply(f"the handler returned {type(said).__name__}, neither PluginReply nor None")
    if type(said.status) is not int or not 200 <= said.status <= 599:
        raise WrongReply(f"its status is {said.status!r}, not a number from 200 to 599")
    if not isinstance(said.body, bytes):
        raise WrongReply(f"its body is {type(said.body).__name__}, not bytes")
    _check_headers({"Content-Type": said.content_type}, ())
    _check_headers(said.headers, RESERVED_HEADERS)
    body, content_type = said.body, said.content_type
    if said.json is not None:
        if body:
            raise WrongReply("it has both json and body")
        body, content_type = _as_json(said.json), "application/json; charset=UTF-8"
    if body and said.status in WITHOUT_BODY:
        raise WrongReply(f"a reply with the status {said.status} has no body")
    return PluginReply(said.status, None, body, content_type, dict(said.headers))


def _as_json(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongReply(f"its json cannot be written: {error}") from error


def _check_headers(headers: object, reserved: Any) -> None:
    if not isinstance(headers, Mapping):
        raise WrongReply(f"its headers are {type(headers).__name__}, not a mapping")
    for name, value in headers.items():
        if not isinstance(name, str) or not HEADER_NAME.fullmatch(name):
            raise WrongReply("a header has a name that is none")
        if name.lower() in reserved or name.lower().startswith("access-control-"):
            raise WrongReply(f"the header {name} is not the plugin's to set")
        if not isinstance(value, str) or not HEADER_VALUE.fullmatch(value):
            raise WrongReply(f"the header {name} has a value that is no line of ASCII text")
