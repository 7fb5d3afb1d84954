"""HTTP routes of plugins, under /plugins/NAME/: what a plugin says of them, and what its handlers get and return.

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

# Who may call a route. "operator-read": whoever may see everything, for methods that change nothing.
USER, ADMIN, OPERATOR, PUBLIC = ROUTE_ROLES = ("user", "admin", "operator-read", "public")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MAX_BODY_BYTES, LARGEST_BODY_BYTES = 64 * 1024, 10 * 1024 * 1024
ROUTES_AT_MOST = 50
SEGMENT = re.compile(r"[A-Za-z0-9._~-]+|\{[a-z_][a-z0-9_]*\}")
LONGEST_PATH = 200


@dataclass(frozen=True, slots=True)
class PluginRequest:
    """What a handler of a plugin's route gets.

    method: GET, POST ...
    path_params: what stands for each {name} of the path: any text, `..` and a slash too.
    query: the parameters of the address, the last of those that come twice.
    headers: by name in small letters, without the caller's token; of a public route all of them.
    body: as it came; `json()` reads it.
    user_id: whose token it is, "" for a public route.
    role: admin | operator-read, or "" for a user.
    claims: those of USER_CLAIMS that the token has.
    request_id: under which the log has the request.
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
        """Return what the body holds; ValidationError, which the client gets as a 400, when that is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise ValidationError.of("body", "Must be JSON") from None


@dataclass(frozen=True, slots=True)
class PluginReply:
    """What a handler answers. json: sent as JSON, as it is. body: sent as content_type, where there is no `json`.

    headers: sent besides. Content-Security-Policy is one that forbids everything unless it stands there: a page of a
    plugin has the origin of ours.
    """

    status: int = 200
    json: Any = None
    body: bytes = b""
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[PluginRequest], PluginReply | None | Awaitable[PluginReply | None]]


class Routes(Protocol):
    """Takes the routes of one plugin: the argument of `register_routes`."""

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

        method: GET, POST, PUT, PATCH or DELETE. role: who may call it: "user" (any token), "admin", "operator-read"
        (admins and those who may see everything; only GET) or "public" (no token is asked for).
        handler: `async def`, or `def` in the plugin's threads; it has the time of its plugin's kind, such as
        STORAGE_TIMEOUT_SECONDS, and HOOK_TIMEOUT_SECONDS that of a module. One for GET answers HEAD too, which asks as
        GET. It returns a PluginReply, or None for 204. A ValidationError, NotFound, Conflict or other error of
        pipeline.errors reaches the client as such; anything else is a 500 that says nothing, and is logged and
        counted. ValueError for a route that cannot be.
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
        """Return what stands for each {name} when the path is this route's, else None."""
        if len(segments) != len(self.segments):
            return None
        found = {}
        for wanted, given in zip(self.segments, segments, strict=True):
            if wanted.startswith("{") and given:
                found[wanted[1:-1]] = given
            elif wanted != given:
                return None
        return found


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
        return "it is there already" if any(map(route.is_like, self.all)) else ""


def find_routes(routes: Sequence[Route], path: str) -> list[tuple[Route, dict[str, str]]]:
    """Return the routes of that path, a method each, with what stands for their {names}.

    path: as it came, percent-encoded, from the slash after the plugin's name on. A fixed part goes before a {name}.
    """
    segments = [unquote(segment) for segment in path.split("/")[1:]]
    found = [(route, params) for route in routes if (params := route.match(segments)) is not None]
    found.sort(key=lambda each: len(each[1]))
    first: dict[str, tuple[Route, dict[str, str]]] = {}
    for each in found:
        first.setdefault(each[0].method, each)
    return list(first.values())


def shown_routes(routes: Sequence[Route]) -> tuple[str, ...]:
    """Return the routes for a list of plugins."""
    return tuple(f"{route.method} {route.path} ({route.role})" for route in routes)


def _shape(route: Route) -> tuple[str, ...]:
    return (route.method, *("{}" if each.startswith("{") else each for each in route.segments))


def _fault(route: Route) -> str:
    names = [each for each in route.segments if each.startswith("{")]
    if route.method not in METHODS:
        return f"the method is none of {', '.join(METHODS)}"
    if not route.path.startswith("/") or len(route.path) > LONGEST_PATH:
        return f"the path must begin with / and have at most {LONGEST_PATH} characters"
    if not all(SEGMENT.fullmatch(each) and each not in (".", "..") for each in route.segments):
        return "each part of the path is a word of A-Z a-z 0-9 . _ ~ -, or a {name}"
    if len(set(names)) < len(names):
        return "a {name} stands there twice"
    if route.role not in ROUTE_ROLES:
        return f"the role is none of {', '.join(ROUTE_ROLES)}"
    if route.role == OPERATOR and route.method != "GET":
        return f"{OPERATOR} may change nothing: the role must be {ADMIN}"
    if type(route.max_body_bytes) is not int or not 0 <= route.max_body_bytes <= LARGEST_BODY_BYTES:
        return f"max_body_bytes is no whole number from 0 to {LARGEST_BODY_BYTES}"
    return _handler_fault(route.handler)


def _handler_fault(handler: object) -> str:
    if not callable(handler):
        return "the handler is no function"
    try:
        inspect.signature(handler).bind(None)
    except TypeError:
        return "the handler must take one argument, the request"
    except ValueError:
        pass  # one written in C tells nothing
    return ""
