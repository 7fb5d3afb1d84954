"""How every HTTP reply looks: headers, the envelope, the one shape of an error, and what is logged of errors.

Knows no token and no body of a request. Runs on the event loop.
"""

from __future__ import annotations

import json
from http.client import responses
from types import TracebackType
from typing import Any, ClassVar

import structlog
import tornado.web
from tornado.httputil import format_timestamp

from pipeline.auth import NotYetValid
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, PipelineError, RateLimited, Unauthorized, shown_to_client
from pipeline.handlers import page_origins
from pipeline.logs import ThrottledLog
from pipeline.origins import normal_origin
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

WEBSOCKET_VERSION = "13"  # the only one of RFC 6455
CODES = {400: "VALIDATION_ERROR", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}
CORS_REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", "X-Request-Id", "traceparent"),
)
CORS_REPLY_HEADERS = (
    *("Date", "Preference-Applied", "Retry-After", "X-Request-Id", "X-Stored-Bytes", "X-Stored-Bytes-Limit"),
)


class ReplyHandler(tornado.web.RequestHandler):
    """A handler whose replies have the service's headers and envelope.

    route: the template of the path for logs and metrics, such as "/api/assets/{id}".
    failure_message: the message of a reply with status 500.
    request_id: of the request; set by initialize().
    allowed_origins: origins whose pages may call; set by initialize().
    """

    route: ClassVar[str] = "other"
    failure_message: ClassVar[str] = "Internal server error"
    request_id: str
    allowed_origins: tuple[str, ...]

    def reply(self, data: Any, status: int = 200) -> None:
        """Finish with the success envelope."""
        self.set_status(status)
        self.finish({"success": True, "data": data})

    def options(self, *_path: str) -> None:
        """Answer a browser's preflight, or any other OPTIONS request."""
        self.set_header("Allow", self._allowed_methods())
        if self._is_allowed_origin(self.request.headers.get("Origin", "")):
            self.set_header("Access-Control-Allow-Methods", self._allowed_methods())
            self.set_header("Access-Control-Allow-Headers", ", ".join(CORS_REQUEST_HEADERS))
            self.set_header("Access-Control-Max-Age", "600")
        self.set_status(204)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        exc_info = kwargs.get("exc_info")
        self.finish(self.compose_error(exc_info[1] if exc_info else tornado.web.HTTPError(status_code)))

    def compose_error(self, error: BaseException) -> bytes:
        """Set status and headers for an error and return the body. All error replies are made here."""
        status, code, details = 500, "INTERNAL_ERROR", None
        message = self.failure_message
        self.set_common_headers()
        if isinstance(error, tornado.web.HTTPError):
            status = error.status_code
            code = CODES.get(status, "VALIDATION_ERROR" if status < 500 else "INTERNAL_ERROR")
            message = responses.get(status, message)
        elif isinstance(error, DependencyUnavailable) or (
            isinstance(error, PipelineError) and 400 <= error.http_status < 500
        ):
            status, code = error.http_status, error.code
            message, details = shown_to_client(error, responses.get(status, message))
        if isinstance(error, (DependencyUnavailable, RateLimited, NotYetValid)):
            self.set_header("Retry-After", str(error.retry_after_seconds))
        if isinstance(error, Unauthorized):
            self.set_header("WWW-Authenticate", "Bearer")
        if status == 405:
            self.set_header("Allow", self._allowed_methods())
        if status == 426:
            self.set_header("Sec-WebSocket-Version", WEBSOCKET_VERSION)
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        shown = {"code": code, "message": message} | ({"details": details} if details else {})
        return json.dumps({"success": False, "error": shown}).encode()

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        if isinstance(value, DependencyUnavailable):
            self.log_unavailable(value)
        elif isinstance(value, (PipelineError, tornado.web.HTTPError)) and _status(value) < 500:
            return  # an error of the client: the access line is enough
        else:
            names: dict[str, Any] = {"requestId": self.request_id, "route": self.route, "exc_info": (typ, value, tb)}
            self.throttled_log.write(log.error, "request_failed", f"{self.route} {typ}", **names)

    def log_unavailable(self, error: DependencyUnavailable) -> None:
        """Log the outage once a minute: each request during the outage finds the same."""
        cause = cause_of(error)
        self.throttled_log.write(log.warning, "dependency_unavailable", cause, requestId=self.request_id, error=cause)

    @property
    def throttled_log(self) -> ThrottledLog:
        """Writes lines that every request may cause."""
        throttled: ThrottledLog = self.application.settings.setdefault("throttled_log", ThrottledLog())
        return throttled

    def compute_etag(self) -> str | None:
        return None  # clients do not store replies

    def set_default_headers(self) -> None:
        # Clients send it back as `since`, so it must be an instant of the service's clock.
        self.set_header("Date", format_timestamp(utc_now()))
        self.clear_header("Server")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")

    def set_common_headers(self) -> None:
        """Set the request id and the CORS headers; log a page that may not call."""
        self.set_header("X-Request-Id", self.request_id)
        if self.allowed_origins:
            self.set_header("Vary", "Origin")
        if (origin := self.request.headers.get("Origin")) is None:
            return
        if self._is_allowed_origin(origin):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Expose-Headers", ", ".join(CORS_REPLY_HEADERS))
        elif not page_origins.is_own(self.request, origin, self.allowed_origins):
            logged: set[str] = self.application.settings.setdefault("logged_origins", set())
            page_origins.log_refused(self.request, origin, logged)

    def refuse_foreign_page(self) -> None:
        """Raise Forbidden for a request of a page that is neither the service's own nor named in the settings."""
        page_origins.refuse_foreign(self.request, self.allowed_origins)

    def _is_allowed_origin(self, origin: str) -> bool:
        return normal_origin(origin) in self.allowed_origins

    def _allowed_methods(self) -> str:
        # The methods of Tornado's own class answer 405.
        return ", ".join(
            name
            for name in self.SUPPORTED_METHODS
            if getattr(type(self), name.lower()) is not getattr(tornado.web.RequestHandler, name.lower())
        )


def _status(error: BaseException) -> int:
    return error.status_code if isinstance(error, tornado.web.HTTPError) else getattr(error, "http_status", 500)
