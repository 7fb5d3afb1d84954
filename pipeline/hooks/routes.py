"""HTTP routes of plugins, under /plugins/NAME/: their registration, and the requests and replies of their handlers.

Pure: knows no HTTP server. handlers/plugin_routes.py serves them.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote

from pipeline.errors import ValidationError

# Who may call a route. "operator-read": admins and operators with read access; only for methods that change nothing.
USER, ADMIN, OPERATOR, PUBLIC = ROUTE_ROLES = ("user", "admin", "operator-read", "public")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MAX_BODY_BYTES, LARGEST_BODY_BYTES = 64 * 1024, 10 * 1024 * 1024
ROUTES_AT_MOST = 50
SEGMENT = re.compile(r"[A-Za-z0-9._~-]+|\{[a-z_][a-z0-9_]*\}")
LONGEST_PATH = 200


@dataclass(frozen=True, slots=True)
class PluginRequest:
    """The request that a handler of a plugin's route gets.

    method: GET, POST ...
    path_params: the text in place of each {name} of the path: any text, also `..` and a slash.
    query: the parameters of the URL; of equal names the last one.
    headers: by name in lower case, without the caller's token; a public route gets all headers.
    body: unchanged; `json()` parses it.
    user_id: the user of the token, "" for a public route.
    role: admin | operator-read, or "" for a user.
    claims: the claims of USER_CLAIMS that the token has.
    request_id: the id of the request in the log.
    """

    method: str
    path_params: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    user_id: str = ""
    role: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    request_id: str = ""

    def json(self) -> Any:
        """Return the parsed body; ValidationError, which the client gets as a 400, when it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise ValidationError.of("body", "Must be JSON") from None


@dataclass(frozen=True, slots=True)
class PluginReply:
    """The reply of a handler.

    json: a value that is sent as JSON.
    body: bytes that are sent as content_type, if there is no `json`.
    headers: further headers. Without a Content-Security-Policy among them the reply gets one that forbids everything,
    because a page of a plugin has the origin of the service.
    """

    status: int = 200
    json: Any = None
    body: bytes = b""
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[PluginRequest], PluginReply | None | Awaitable[PluginReply | None]]


class Routes(Protocol):
    """Collects the routes of one plugin: the argument of `register_routes`."""

    def add(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        role: str = "user",
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        """Serve the path, such as "/subscriptions/{id}", under /plugins/NAME.

        method: GET, POST, PUT, PATCH or DELETE. A handler of GET answers HEAD too and gets it as GET.
        handler: `async def`, or `def` in the plugin's threads. It returns a PluginReply, or None for 204. Its time is
        that of its plugin's kind, such as STORAGE_TIMEOUT_SECONDS; in a module it is HOOK_TIMEOUT_SECONDS.
        role: who may call it: "user" (any token), "admin", "operator-read" (admins and operators with read access; only
        GET) or "public" (no token needed).

        A ValidationError, NotFound, Conflict or other error of pipeline.errors reaches the client unchanged. Any other
        exception is logged and counted, and the client gets a 500 without details. ValueError for an invalid route.
        """


@dataclass(frozen=True, slots=True)
class Route:
    """One route of a plugin."""

    method: str
    path: str
    handler: Handler = field(repr=False)
    role: str = USER
    max_body_bytes: int = MAX_BODY_BYTES

    @property
    def segments(self) -> Sequence[str]:
        """The parts of the path."""
        return self.path.split("/")[1:]

    def is_like(self, other: Route) -> bool:
        """Return whether both are for the same requests."""
        return _shape(self) == _shape(other)

    def match(self, segments: Sequence[str]) -> dict[str, str] | None:
        """Return the text in place of each {name} if the path belongs to this route, else None."""
        if len(segments) != len(self.segments):
            return None
        params = {}
        for wanted, given in zip(self.segments, segments, strict=True):
            if wanted.startswith("{") and given:
                params[wanted[1:-1]] = given
            elif wanted != given:
                return None
        return params


class RouteList:
    """The Routes of one plugin."""

    def __init__(self) -> None:
        self.all: list[Route] = []

    def add(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        role: str = USER,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        """See Routes."""
        route = Route(method, path, handler, role, max_body_bytes)
        if fault := _fault(route) or self._clash(route):
            raise ValueError(f"the route {method} {path}: {fault}")
        self.all.append(route)

    def _clash(self, route: Route) -> str:
        if len(self.all) >= ROUTES_AT_MOST:
            return f"a plugin has at most {ROUTES_AT_MOST} routes"
        return "the plugin has it already" if any(map(route.is_like, self.all)) else ""


def find_routes(routes: Sequence[Route], path: str) -> list[tuple[Route, dict[str, str]]]:
    """Return the routes of that path, one for each method, with the texts in place of their {names}. A fixed part of a
    path wins over a {name}.

    path: percent-encoded as in the request, from the slash after the plugin's name on.
    """
    segments = [unquote(segment) for segment in path.split("/")[1:]]
    matching = [(route, params) for route in routes if (params := route.match(segments)) is not None]
    matching.sort(key=lambda match: len(match[1]))
    first: dict[str, tuple[Route, dict[str, str]]] = {}
    for match in matching:
        first.setdefault(match[0].method, match)
    return list(first.values())


def shown_routes(routes: Sequence[Route]) -> tuple[str, ...]:
    """Return the routes for a list of plugins."""
    return tuple(f"{route.method} {route.path} ({route.role})" for route in routes)


def _shape(route: Route) -> tuple[str, ...]:
    return (route.method, *("{}" if each.startswith("{") else each for each in route.segments))


def _fault(route: Route) -> str:
    names = [each for each in route.segments if each.startswith("{")]
    if route.method not in METHODS:
        return f"the method must be one of {', '.join(METHODS)}"
    if not route.path.startswith("/") or len(route.path) > LONGEST_PATH:
        return f"the path must begin with / and have at most {LONGEST_PATH} characters"
    if not all(SEGMENT.fullmatch(each) and each not in (".", "..") for each in route.segments):
        return "each part of the path is a word of A-Z a-z 0-9 . _ ~ -, or a {name}"
    if len(set(names)) < len(names):
        return "a {name} occurs twice"
    if route.role not in ROUTE_ROLES:
        return f"the role must be one of {', '.join(ROUTE_ROLES)}"
    if route.role == OPERATOR and route.method != "GET":
        return f"{OPERATOR} may change nothing: the role must be {ADMIN}"
    if type(route.max_body_bytes) is not int or not 0 <= route.max_body_bytes <= LARGEST_BODY_BYTES:
        return f"max_body_bytes must be a whole number from 0 to {LARGEST_BODY_BYTES}"
    return _handler_fault(route.handler)


def _handler_fault(handler: object) -> str:
    if not callable(handler):
        return "the handler must be a function"
    try:
        inspect.signature(handler).bind(None)
    except TypeError:
        return "the handler must take one argument, the request"
    except ValueError:
        pass  # a handler in C has no signature
    return ""
