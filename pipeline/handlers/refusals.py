"""Replies that are sent before the body of the request has arrived, and the drain of that body.

Bodies stream: a handler that uses the body overrides data_received; every other body is dropped as it arrives, so that
no request can fill the memory. Runs on the event loop.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from typing import cast

import tornado.web
from tornado.http1connection import HTTP1Connection
from tornado.ioloop import IOLoop

from pipeline.errors import ValidationError
from pipeline.handlers.replies import ReplyHandler

CONTINUE = "100-continue"  # the only expectation of RFC 9110; http_framing.py writes it like this
# Closing a connection with unread bytes resets it, and a client that is still sending does not see the reply. So the
# server reads on after an early refusal, up to these limits: enough for a large video, bounded for an endless stream.
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_SECONDS = 30.0


@tornado.web.stream_request_body
class RefusingHandler(ReplyHandler):
    """A handler that can refuse a request before its body has arrived.

    is_refused: an error reply was sent before the end of the body.
    """

    connection: HTTP1Connection
    is_refused = False
    _early_error: Exception | None = None
    _drain_timer: object | None = None
    _dropped_bytes = 0

    def use_connection(self) -> None:
        """Set self.connection, and remove Tornado's limit of a body, which it answers with a bare "400"."""
        self.connection = cast(HTTP1Connection, self.request.connection)
        self.connection.set_max_body_size(sys.maxsize)
        self.connection.set_body_timeout(DRAIN_SECONDS)

    def refuse(self, error: Exception, *, is_body_begun: bool) -> None:
        """Reply with an error before the body has arrived completely, in a way that the client can read the reply.

        The reply is sent at once. Then the rest of the body is dropped, up to a limit, and the connection is closed.
        A client that waits for "100 Continue" sends no body, and its connection is closed at once.
        is_body_begun: a part of the body has arrived.
        """
        self.log_exception(type(error), error, error.__traceback__)
        self.is_refused = True
        self.clear()
        body = self.compose_error(error)
        self.set_header("Connection", "close")
        if not is_body_begun and self.request.headers.get("Expect") == CONTINUE:
            self.finish(body)
            return
        self.set_header("Content-Length", str(len(body)))
        self.write(body)
        self.flush()
        self._drain_timer = IOLoop.current().call_later(DRAIN_SECONDS, self.end_drain)

    def refuse_early(self, error: Exception) -> None:
        """Reply with an error in prepare(), before the body is read.

        Without a body there is nothing to drop: then ends_early raises the error, and the connection stays open.
        """
        if self._has_body():
            self.refuse(error, is_body_begun=False)
        else:
            self._early_error = error

    def ends_early(self) -> bool:
        """Return whether the request was refused before the end of its body; raise the error of refuse_early."""
        if self._early_error is not None:
            raise self._early_error
        if self.is_refused:
            self.end_drain()
        return self.is_refused

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Drop a piece of the body."""
        self._dropped_bytes += len(chunk)
        if self._dropped_bytes > DRAIN_BYTES:
            if not self.is_refused:
                self.refuse(ValidationError("Request body too large"), is_body_begun=True)
            # At once: a body that ends now would still reach the handler's method.
            self.end_drain()
        return None

    def end_drain(self) -> None:
        """Close the connection after a refusal."""
        if not self.is_answered:
            self.finish()
        self.connection.close()

    @property
    def is_answered(self) -> bool:
        """True when the reply is finished."""
        return self._finished

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self.is_refused:
            self.end_drain()

    def on_finish(self) -> None:
        if self._drain_timer is not None:
            IOLoop.current().remove_timeout(self._drain_timer)

    def _has_body(self) -> bool:
        return self.request.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.request.headers
