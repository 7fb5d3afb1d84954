"""The access log: one line for each request, and what it says. docs/operations.md, "Logs", has the fields.

What clients choose is cleaned and cut. The query of an address is left out: tickets and signatures stand there. Runs on
the event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import structlog
import tornado.web

from pipeline.texts import clean

if TYPE_CHECKING:
    from pipeline.handlers.base import BaseHandler

log = structlog.get_logger(__name__)

# Orchestrators and scrapers ask for these every few seconds for ever.
PROBED = ("/livez", "/readyz", "/metrics")
PROBE_STATUSES = (200, 503)
MAX_METHOD_LENGTH = 20
MAX_PATH_LENGTH = 300
MAX_AGENT_LENGTH = 120


def log_request(handler: tornado.web.RequestHandler) -> None:
    """Write the access line of a finished request and count it; routes.py passes this as `log_function`."""
    ours = cast("BaseHandler", handler)
    request, status = ours.request, ours.get_status()
    seconds = request.request_time()
    fields = access_fields(ours) | {"status": status, "durationMs": round(seconds * 1000, 1)}
    write = log.info if is_worth_logging(ours, status) else log.debug
    write("request_completed", **fields)
    method = request.method if request.method in ours.SUPPORTED_METHODS else "other"
    ours.metrics.http_requests.labels(ours.route, method, str(status)).inc()
    ours.metrics.http_seconds.labels(ours.route).observe(seconds)


def access_fields(handler: BaseHandler) -> dict[str, Any]:
    """Return what every line about a whole request says, however it ended."""
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
    """Return whether the line is worth reading: always, but of a probe only when it ends otherwise than the last."""
    if handler.route not in PROBED or status not in PROBE_STATUSES:
        return True
    last: dict[tuple[str, bool], int] = handler.application.settings.setdefault("probe_statuses", {})
    # What a process alone lacks and what all lack are two questions, and two probes ask them side by side.
    asked = (handler.route, "local" in handler.request.query_arguments)
    is_same = last.get(asked, 200) == status
    last[asked] = status
    return not is_same


def _cut(text: str, length: int) -> str:
    """Return the text clean and at most so long. It may come with 64 KB, so what is looked at is bounded as well."""
    return clean(text[: 4 * length])[:length]
