"""What every HTTP reply has in common: who is calling, the request id, the one error shape, CORS.

Bodies stream: a handler that wants one overrides data_received, every other body is dropped as it comes, so no request
can fill the memory. Runs on the event loop.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http.client import responses
from types import TracebackType
from typing import Any, ClassVar, cast

import structlog
import tornado.httputil
import tornado.web
from tornado.http1connection import HTTP1Connection
from tornado.httputil import format_timestamp
from tornado.ioloop import IOLoop

from pipeline.auth import NotYetValid, Principal, TokenExpired, TokenVerifier, bearer_token
from pipeline.clock import utc_now
from pipeline.errors import (
    DependencyUnavailable,
    ExpectationFailed,
    Forbidden,
    NotFound,
    PipelineError,
    RateLimited,
    Unauthorized,
    ValidationError,
    shown_to_client,
)
from pipeline.handlers.access_log import access_fields
from pipeline.handlers.peer import asked_hosts, client_address
from pipeline.handlers.query import Query
from pipeline.logs import ThrottledLog
from pipeline.metrics import Metrics
from pipeline.origins import is_same_host, normal_origin
from pipeline.texts import cause_of, clean
from pipeline.tracing import TRACEPARENT, valid_traceparent, inherited_trace, trace_id
from pipeline.usecases.audit import Act
from pipeline.usecases.limits import Limits, NoBuckets

log = structlog.get_logger(__name__)

WEBSOCKET_VERSION = "13"  # the one that RFC 6455 made
CONTINUE = "100-continue"  # the one expectation there is; http_head.py writes it so, however it came
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Closing a connection with unread bytes resets it, and a client still busy sending never sees the reply. So after an
# early refusal we go on reading, but not for ever: enough for an oversized video, nothing for an endless stream.
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_SECONDS = 30.0
# What is logged of foreign pages, so that nobody can fill the log by making origins up.
MAX_LOGGED_ORIGINS = 100
MAX_ORIGIN_LENGTH = 200
# Of what the audit list says was changed: a path may name anything.
MAX_TARGET_LENGTH = 200
ORIGIN_HINT = "if pages of this origin are yours: name it in ALLOWED_ORIGINS, or as PUBLIC_URL when they come from here"
FOREIGN_ORIGIN = "Not an origin of this service: its operator can name it in ALLOWED_ORIGINS"
NO_ORIGIN_HINT = "pages without an http:// or https:// origin, such as files, cannot be allowed: serve them from a host"
CORS_REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", "X-Request-Id", "traceparent"),
)
CORS_REPLY_HEADERS = (
    *("Date", "Preference-Applied", "Retry-After", "X-Request-Id", "X-Stored-Bytes", "X-Stored-Bytes-Limit"),
)
# For a whole reply that may be large: 10 MB at 35 kB/s, as an upload.
SEND_SECONDS = 300.0
CODES = {400: "VALIDATION_ERROR", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}


@tornado.web.stream_request_body
class BaseHandler(tornado.web.RequestHandler):
    """A handler of ours. Authenticate in the method, not in prepare(), unless the body must not be read before."""

    route: ClassVar[str] = "other"  # the template for logs and metrics: "/api/assets/{id}"
    hides_path: ClassVar[bool] = False  # the log has the template in its place
    failure_message: ClassVar[str] = "Internal server error"
    principal: Principal

    def initialize(
        self,
        *,
        verifier: TokenVerifier,
        metrics: Metrics,
        allowed_origins: tuple[str, ...],
        record: Callable[[Act], None] = lambda act: None,
        limits: Limits | None = None,
    ) -> None:
        """record: is told of each change that an operator makes, see begin_act. limits: None: there are none."""
        self.limits = limits or Limits({}, NoBuckets(), metrics)
        self.client = client_address(self.request)
        self.log_fields: dict[str, Any] = {}
        self._record = record
        self._act: Act | None = None
        self.verifier = verifier
        self.metrics = metrics
        self.allowed_origins = allowed_origins
        given = self.request.headers.get("X-Request-Id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        self.is_refused = False
        self._early_error: Exception | None = None
        self._drain_timer: object | None = None
        self._dropped_bytes = 0
        # Tornado would answer a longer body with a bare "400" of its own; here bodies are counted while they stream.
        self.connection = cast(HTTP1Connection, self.request.connection)
        self.connection.set_max_body_size(sys.maxsize)
        self.connection.set_body_timeout(DRAIN_SECONDS)
        self._set_common_headers()

    def prepare(self) -> Awaitable[None] | None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(requestId=self.request_id)
        inherited_trace.set(valid_traceparent(self.request.headers.get(TRACEPARENT, "")))
        if trace := trace_id(inherited_trace.get()):
            self.add_log_fields(traceId=trace)
        if self.request.headers.get("Expect", CONTINUE) != CONTINUE:
            raise ExpectationFailed("Expect: only 100-continue is known")
        return None

    async def authenticate(self) -> Principal:
        """Settle self.principal from the Authorization header and count the request.

        Unauthorized, RateLimited or DependencyUnavailable otherwise.
        """
        self.principal = await self.verified(bearer_token(self.request.headers.get("Authorization")))
        self.add_log_fields(userId=self.principal.user_id)
        self.count_request(self.principal)
        return self.principal

    def add_log_fields(self, **names: str) -> None:
        """Let every line about this request that is still to come, the access line too, say so: `userId`, `assetId`."""
        self.log_fields |= names
        structlog.contextvars.bind_contextvars(**names)

    async def verified(self, token: str, *, remembers: bool = True) -> Principal:
        """Return who the token stands for, as TokenVerifier.verify; RateLimited after too many wrong ones.

        The token is always looked at: a good one is never refused for what others sent from the same address.
        """
        try:
            return await self.verifier.verify(token, remembers=remembers)
        except (NotYetValid, TokenExpired):
            raise
        except Unauthorized:
            self.limits.wrong_token(self.client)
            raise

    def count_request(self, caller: Principal) -> None:
        """Count a request of a user; RateLimited when there were too many. Operators may ask as often as they like."""
        if not caller.is_operator:
            self.limits.request(caller.user_id)

    def query(self) -> Query:
        """Return the parameters of the address."""
        return Query({name: self.get_query_argument(name) for name in self.request.query_arguments})

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Return a part of the path or the query; what is not UTF-8 fails by the rules for that part, as other text."""
        return value.decode("utf-8", "replace")

    def may_operate(self, principal: Principal) -> bool:
        """Return whether the caller may do this to what is others': readers may ask, only admins may change it."""
        return principal.is_operator if self.is_asking else principal.is_admin

    @property
    def is_asking(self) -> bool:
        """True when the request changes nothing."""
        return self.request.method in ("GET", "HEAD")

    def begin_act(self, action: str, target: str | None) -> None:
        """Let the audit list have this request when it has ended. action, target: see Act."""
        self._act = Act(self.principal.user_id, action, target, None, "", self.client, self.request_id)

    def change_act(self, **changes: Any) -> None:
        """Tell more precisely what the operator does: `action`, `target` and `count`, see Act."""
        if self._act is not None:
            self._act = replace(self._act, **changes)

    def drop_act(self) -> None:
        """Nothing was changed, so the audit list is not to have it."""
        self._act = None

    def reply(self, data: Any, status: int = 200) -> None:
        """Finish with the success envelope."""
        self.set_status(status)
        self.finish({"success": True, "data": data})

    def refuse(self, error: Exception, *, is_body_begun: bool) -> None:
        """Answer with an error before the body has come whole, so that the client can read the answer.

        The reply goes out at once; then the rest of the body is dropped, within bounds, and the connection closed. A
        client that still waits for "100 Continue" sends no body, and is closed right away.
        """
        self.log_exception(type(error), error, error.__traceback__)
        self.is_refused = True
        self.clear()
        body = self._compose_error(error)
        self.set_header("Connection", "close")
        if not is_body_begun and self.request.headers.get("Expect") == CONTINUE:
            self.finish(body)
            return
        self.set_header("Content-Length", str(len(body)))
        self.write(body)
        self.flush()
        self._drain_timer = IOLoop.current().call_later(DRAIN_SECONDS, self.end_drain)

    def refuse_early(self, error: Exception) -> None:
        """Answer with an error in prepare(), before the body is read.

        With no body there is nothing to drop: then the method answers, see ends_early, and the connection lives on.
        """
        if self._has_body():
            self.refuse(error, is_body_begun=False)
        else:
            self._early_error = error

    def ends_early(self) -> bool:
        """Return whether the request was refused before its body had come whole; raise what prepare() has found."""
        if self._early_error is not None:
            raise self._early_error
        if self.is_refused:
            self.end_drain()
        return self.is_refused

    def _has_body(self) -> bool:
        return self.request.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.request.headers

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Drop a piece of a body nobody wants."""
        self._dropped_bytes += len(chunk)
        if self._dropped_bytes > DRAIN_BYTES:
            if not self.is_refused:
                self.refuse(ValidationError("Request body too large"), is_body_begun=True)
            # At once, or a body that ends after all would still reach the handler's method.
            self.end_drain()
        return None

    def end_drain(self) -> None:
        """Close after a refusal: the body has been dropped whole, or enough of it."""
        if not self._finished:
            self.finish()
        self.connection.close()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self.is_refused:
            self.end_drain()
        elif not self._finished:
            log.info("request_abandoned", **access_fields(self))

    def options(self, *_path: str) -> None:
        """Answer a browser's preflight, or anyone who asks what may be done here."""
        self.set_header("Allow", self._allowed_methods())
        if self.is_allowed_origin(self.request.headers.get("Origin", "")):
            self.set_header("Access-Control-Allow-Methods", self._allowed_methods())
            self.set_header("Access-Control-Allow-Headers", ", ".join(CORS_REQUEST_HEADERS))
            self.set_header("Access-Control-Max-Age", "600")
        self.set_status(204)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        exc_info = kwargs.get("exc_info")
        self.finish(self._compose_error(exc_info[1] if exc_info else tornado.web.HTTPError(status_code)))

    def _compose_error(self, error: BaseException) -> bytes:
        """Set status and headers for the error and return the body: the one place where errors become replies."""
        status, code, details = 500, "INTERNAL_ERROR", None
        message = self.failure_message
        self._set_common_headers()
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
            return  # the client's doing; the access line tells
        else:
            names: dict[str, Any] = {"requestId": self.request_id, "route": self.route, "exc_info": (typ, value, tb)}
            self.throttled_log.write(log.error, "request_failed", f"{self.route} {typ}", **names)

    def log_unavailable(self, error: DependencyUnavailable) -> None:
        """Tell the operator what is away, once a minute: every request finds it out again for as long as it lasts."""
        cause = cause_of(error)
        self.throttled_log.write(log.warning, "dependency_unavailable", cause, requestId=self.request_id, error=cause)

    @property
    def throttled_log(self) -> ThrottledLog:
        """What writes lines that every request may cause."""
        one: ThrottledLog = self.application.settings.setdefault("throttled_log", ThrottledLog())
        return one

    def on_finish(self) -> None:
        if self._act is not None:
            status = self.get_status()
            outcome = "done" if status < 400 else "refused" if status < 500 else "failed"
            self._record(replace(self._act, outcome=outcome))
        if self._drain_timer is not None:
            IOLoop.current().remove_timeout(self._drain_timer)

    def compute_etag(self) -> str | None:
        return None  # replies are not stored anywhere, so there is nothing to compare with

    def set_default_headers(self) -> None:
        # Clients hand it back as `since`: it has to be an instant of the service.
        self.set_header("Date", format_timestamp(utc_now()))
        self.clear_header("Server")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")

    def _set_common_headers(self) -> None:
        self.set_header("X-Request-Id", self.request_id)
        if self.allowed_origins:
            self.set_header("Vary", "Origin")
        if (origin := self.request.headers.get("Origin")) is None:
            return
        if self.is_allowed_origin(origin):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Expose-Headers", ", ".join(CORS_REPLY_HEADERS))
        elif not self.is_own_origin(origin):
            self._log_foreign_origin(origin)

    def is_allowed_origin(self, origin: str) -> bool:
        """True when pages of that origin may call: PUBLIC_URL's, and those the settings name."""
        return normal_origin(origin) in self.allowed_origins

    def is_own_origin(self, origin: str) -> bool:
        """True when the page comes from here or may call: by its browser's word, by Host, or by the settings."""
        headers, normal = self.request.headers, normal_origin(origin)
        return normal != "" and (
            headers.get("Sec-Fetch-Site") == "same-origin"
            or normal in self.allowed_origins
            or any(is_same_host(normal, host) for host in asked_hosts(self.request))
        )

    def refuse_foreign_page(self) -> None:
        """Raise Forbidden unless a program asks, or a page of this service, or one that the settings name."""
        origin, site = self.request.headers.get("Origin"), self.request.headers.get("Sec-Fetch-Site", "none")
        if self.is_own_origin(origin) if origin is not None else site in ("same-origin", "none"):
            return
        raise Forbidden("Origin not allowed", details=[{"field": "Origin", "message": FOREIGN_ORIGIN}])

    def _log_foreign_origin(self, origin: str) -> None:
        """Tell the operator once for each origin: the page's own author sees only that the browser refuses."""
        logged: set[str] = self.application.settings.setdefault("logged_origins", set())
        origin = clean(origin)[:MAX_ORIGIN_LENGTH]
        if origin in logged or len(logged) >= MAX_LOGGED_ORIGINS:
            return
        logged.add(origin)
        log.warning(
            "origin_refused",
            origin=origin,
            host=clean(self.request.headers.get("Host", ""))[:MAX_ORIGIN_LENGTH],
            hint=ORIGIN_HINT if normal_origin(origin) else NO_ORIGIN_HINT,
        )

    def _allowed_methods(self) -> str:
        # Tornado's own methods answer 405.
        return ", ".join(
            name
            for name in self.SUPPORTED_METHODS
            if getattr(type(self), name.lower()) is not getattr(tornado.web.RequestHandler, name.lower())
        )


class OperatorHandler(BaseHandler):
    """A handler for those who run the service: readers may ask, only admins may change anything.

    actions: what the audit list calls its methods that change something; by default method and route. The target is
    the first part of the path that is no fixed text, if any, until change_act says otherwise.
    """

    actions: ClassVar[Mapping[str, str]] = {}

    async def authenticate(self) -> Principal:
        principal = await super().authenticate()
        if not self.may_operate(principal):
            raise Forbidden("Only for operators" if self.is_asking else "Only for admins")
        if not self.is_asking:
            self.refuse_foreign_page()
            method = str(self.request.method)
            target = self.path_args[0][:MAX_TARGET_LENGTH] if self.path_args else None
            self.begin_act(self.actions.get(method, f"{method} {self.route}"), target and clean(target))
        # Every line about what an operator did says who it was.
        structlog.contextvars.bind_contextvars(operator=principal.user_id)
        return principal


class NotFoundHandler(BaseHandler):
    """Every path that is no route; app.py names it as default_handler_class."""

    def _not_found(self, *_path: str) -> None:
        raise NotFound("Not found")

    get = head = post = put = patch = delete = options = _not_found


def _status(error: BaseException) -> int:
    return error.status_code if isinstance(error, tornado.web.HTTPError) else getattr(error, "http_status", 500)
