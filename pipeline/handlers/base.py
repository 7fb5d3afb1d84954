"""The base of all handlers: who calls, which limits apply, and what is logged and audited.

How replies look is in replies.py, refusals before the end of the body in refusals.py. Runs on the event loop.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import structlog

from pipeline.auth import NotYetValid, Principal, TokenExpired, TokenVerifier, bearer_token
from pipeline.errors import ExpectationFailed, Forbidden, NotFound, Unauthorized
from pipeline.handlers.access_log import access_fields
from pipeline.handlers.peer import client_address
from pipeline.handlers.query import Query
from pipeline.handlers.refusals import CONTINUE, RefusingHandler
from pipeline.metrics import Metrics
from pipeline.texts import clean
from pipeline.tracing import TRACEPARENT, inherited_trace, trace_id, valid_traceparent
from pipeline.usecases.audit import Act
from pipeline.usecases.limits import Limits, NoBuckets

log = structlog.get_logger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Of the target in the audit list, which may be a part of a path.
MAX_TARGET_LENGTH = 200
# The time limit for sending a large reply: 10 MB at 35 kB/s, as for an upload.
SEND_SECONDS = 300.0


class BaseHandler(RefusingHandler):
    """The base of all handlers.

    Authenticate in the method, or in prepare() when only known callers may send a body.
    hides_path: the access log has the route in place of the path.
    client: the IP address of the client.
    log_fields: fields of every further log line about this request.
    """

    hides_path: ClassVar[bool] = False
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
        """record: called with each change that an operator makes, see begin_act.

        limits: rate limits; None for no limits.
        """
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
        self.use_connection()
        self.set_common_headers()

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
        """Set self.principal from the Authorization header and count the request.

        Raises Unauthorized, RateLimited or DependencyUnavailable.
        """
        self.principal = await self.verified(bearer_token(self.request.headers.get("Authorization")))
        self.add_log_fields(userId=self.principal.user_id)
        self.count_request(self.principal)
        return self.principal

    def add_log_fields(self, **names: str) -> None:
        """Add fields such as `userId` to every further log line about this request, the access line too."""
        self.log_fields |= names
        structlog.contextvars.bind_contextvars(**names)

    async def verified(self, token: str, *, remembers: bool = True) -> Principal:
        """Return the caller, as TokenVerifier.verify does; RateLimited after too many wrong tokens.

        The token is always verified: a good one is accepted even if others of the same address sent wrong ones.
        """
        try:
            return await self.verifier.verify(token, remembers=remembers)
        except (NotYetValid, TokenExpired):
            raise
        except Unauthorized:
            self.limits.wrong_token(self.client)
            raise

    def count_request(self, caller: Principal) -> None:
        """Count a request of a user; RateLimited when there were too many. Operators have no limit."""
        if not caller.is_operator:
            self.limits.request(caller.user_id)

    def query(self) -> Query:
        """Return the query parameters."""
        return Query({name: self.get_query_argument(name) for name in self.request.query_arguments})

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Decode a part of the path or the query. Invalid UTF-8 is replaced, so that the check of the value fails."""
        return value.decode("utf-8", "replace")

    def may_operate(self, principal: Principal) -> bool:
        """Return whether the caller may do this with other users' data: operators may read, admins may change."""
        return principal.is_operator if self.is_read_only else principal.is_admin

    @property
    def is_read_only(self) -> bool:
        """True for a request that changes nothing."""
        return self.request.method in ("GET", "HEAD")

    def begin_act(self, action: str, target: str | None) -> None:
        """Record this request in the audit list when it has ended.

        action: see Act.
        target: see Act.
        """
        self._act = Act(self.principal.user_id, action, target, None, "", self.client, self.request_id)

    def change_act(self, **changes: Any) -> None:
        """Change fields of the audit entry, such as `action`, `target` and `count`, see Act."""
        if self._act is not None:
            self._act = replace(self._act, **changes)

    def drop_act(self) -> None:
        """Record nothing: the request changes nothing."""
        self._act = None

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if not self.is_refused and not self.is_answered:
            log.info("request_abandoned", **access_fields(self))

    def on_finish(self) -> None:
        super().on_finish()
        if self._act is not None:
            status = self.get_status()
            outcome = "done" if status < 400 else "refused" if status < 500 else "failed"
            self._record(replace(self._act, outcome=outcome))


class OperatorHandler(BaseHandler):
    """A handler for operators: all of them may read, only admins may change anything.

    actions: the names of its methods in the audit list; by default method and route. The target is the first variable
        part of the path, if any, until change_act sets another one.
    """

    actions: ClassVar[Mapping[str, str]] = {}

    async def authenticate(self) -> Principal:
        principal = await super().authenticate()
        if not self.may_operate(principal):
            raise Forbidden("Only for operators" if self.is_read_only else "Only for admins")
        if not self.is_read_only:
            self.refuse_foreign_page()
            method = str(self.request.method)
            target = self.path_args[0][:MAX_TARGET_LENGTH] if self.path_args else None
            self.begin_act(self.actions.get(method, f"{method} {self.route}"), target and clean(target))
        # Every log line about an operator's request names the operator.
        structlog.contextvars.bind_contextvars(operator=principal.user_id)
        return principal


class NotFoundHandler(BaseHandler):
    """Answers 404 to every path that is no route; routes.py names it as default_handler_class."""

    def _not_found(self, *_path: str) -> None:
        raise NotFound("Not found")

    get = head = post = put = patch = delete = options = _not_found
