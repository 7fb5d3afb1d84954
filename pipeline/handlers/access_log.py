"""The access log: one line for each request. Its fields are in docs/operations.md, "Logs".

Values that clients choose are cleaned and cut. The query of an address is left out, because it may contain tickets and
signatures. Runs on the event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import structlog
import tornado.web

from pipeline.texts import clean

if TYPE_CHECKING:
    from pipeline.handlers.base import BaseHandler

log = structlog.get_logger(__name__)

# Orchestrators and Prometheus request these every few seconds.
PROBED = ("/livez", "/readyz", "/metrics")
PROBE_STATUSES = (200, 503)
MAX_METHOD_LENGTH = 20
MAX_PATH_LENGTH = 300
MAX_AGENT_LENGTH = 120


def log_request(handler: tornado.web.RequestHandler) -> None:
    """Write the access line of a finished request and count it; routes.py passes this as `log_function`."""
    base = cast("BaseHandler", handler)
    request, status = base.request, base.get_status()
    seconds = request.request_time()
    fields = access_fields(base) | {"status": status, "durationMs": round(seconds * 1000, 1)}
    write = log.info if is_worth_logging(base, status) else log.debug
    write("request_completed", **fields)
    method = request.method if request.method in base.SUPPORTED_METHODS else "other"
    base.metrics.http_requests.labels(base.route, method, str(status)).inc()
    base.metrics.http_seconds.labels(base.route).observe(seconds)


def access_fields(handler: BaseHandler) -> dict[str, Any]:
    """Return the fields of the line about a request, however the request ended."""
    request = handler.request
    connection: Any = request.connection
    agent = request.headers.get("User-Agent")
    return {
        "requestId": handler.request_id,
        "method": _cut(str(request.method), MAX_METHOD_LENGTH),
        "route": handler.route,
        "path": handler.route if handler.hides_path else _cut(request.path, MAX_PATH_LENGTH),
        "client": handler.client,
        "bytesIn": getattr(connection, "bytes_in", 0),
        "bytesOut": getattr(connection, "bytes_out", 0),
        **({"userAgent": _cut(agent, MAX_AGENT_LENGTH)} if agent else {}),
        **handler.log_fields,
    }


def is_worth_logging(handler: BaseHandler, status: int) -> bool:
    """Return True, but for a probe only when its status differs from that of the previous probe."""
    if handler.route not in PROBED or status not in PROBE_STATUSES:
        return True
    last: dict[tuple[str, bool], int] = handler.application.settings.setdefault("probe_statuses", {})
    # /readyz and /readyz?local are two different probes.
    probe = (handler.route, "local" in handler.request.query_arguments)
    is_same = last.get(probe, 200) == status
    last[probe] = status
    return not is_same


def _cut(text: str, length: int) -> str:
    """Return the text clean and cut. It may have 64 KB, so only the beginning is cleaned."""
    return clean(text[: 4 * length])[:length]
