"""Which web pages may call the service: its own, and those that the settings name. Runs on the event loop."""

from __future__ import annotations

from collections.abc import Collection

import structlog
from tornado.httputil import HTTPServerRequest

from pipeline.errors import Forbidden
from pipeline.handlers.peer import asked_hosts
from pipeline.origins import is_same_host, normal_origin
from pipeline.texts import clean

log = structlog.get_logger(__name__)

# Bounds of the log, because a client can invent origins.
MAX_LOGGED_ORIGINS = 100
MAX_ORIGIN_LENGTH = 200
ORIGIN_HINT = "if pages of this origin are yours: name it in ALLOWED_ORIGINS, or as PUBLIC_URL when they come from here"
NO_ORIGIN_HINT = "pages without an http:// or https:// origin, such as files, cannot be allowed: serve them from a host"
FOREIGN_ORIGIN = "Not an origin of this service: its operator can name it in ALLOWED_ORIGINS"


def is_own(request: HTTPServerRequest, origin: str, allowed: Collection[str]) -> bool:
    """True for a page of this service, by its browser's header or by Host, and for an allowed origin."""
    normal = normal_origin(origin)
    return normal != "" and (
        request.headers.get("Sec-Fetch-Site") == "same-origin"
        or normal in allowed
        or any(is_same_host(normal, host) for host in asked_hosts(request))
    )


def refuse_foreign(request: HTTPServerRequest, allowed: Collection[str]) -> None:
    """Raise Forbidden for a request of a foreign page; requests of programs pass."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
    if is_own(request, origin, allowed) if origin is not None else site in ("same-origin", "none"):
        return
    raise Forbidden("Origin not allowed", details=[{"field": "Origin", "message": FOREIGN_ORIGIN}])


def log_refused(request: HTTPServerRequest, origin: str, logged: set[str]) -> None:
    """Log a refused origin once: the author of the page sees only that the browser refuses.

    logged: the origins logged so far.
    """
    origin = clean(origin)[:MAX_ORIGIN_LENGTH]
    if origin in logged or len(logged) >= MAX_LOGGED_ORIGINS:
        return
    logged.add(origin)
    log.warning(
        "origin_refused",
        origin=origin,
        host=clean(request.headers.get("Host", ""))[:MAX_ORIGIN_LENGTH],
        hint=ORIGIN_HINT if normal_origin(origin) else NO_ORIGIN_HINT,
    )
