"""The common part of socket.py and events.py: a client in its user's room, over a WebSocket or an event stream.

Has the client's Connection with its outbox, its timers and its close. Runs on the event loop, without a task or thread
per client.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, ClassVar

import structlog
from tornado.iostream import IOStream, StreamClosedError

from pipeline.auth import Principal
from pipeline.clock import utc_now
from pipeline.handlers.base import BaseHandler
from pipeline.handlers.client_frames import OPERATORS, PROGRESS
from pipeline.metrics import CLOSE_CODES
from pipeline.rooms.codes import MESSAGES, CloseCode
from pipeline.rooms.frames import event_frame
from pipeline.rooms.rooms import Connection
from pipeline.settings import Settings
from pipeline.usecases.admission import Admission

log = structlog.get_logger(__name__)

# The kernel's send buffer per client; its default is megabytes, which a client that does not read would fill.
SEND_BUFFER_BYTES = 64 * 1024


class Member(BaseHandler):
    """A handler with a long-lived connection. Subclasses implement `_write`, `_close` and `_probe`, see Rooms.open."""

    # Many methods because a connection's request, outbox, timers and close share one state.
    transport: ClassVar[str]

    def initialize(  # type: ignore[override]
        self, *, admission: Admission, settings: Settings, **common: Any
    ) -> None:
        super().initialize(**common)
        self._admission = admission
        self._rooms = admission.rooms
        self._settings = settings
        self._connection: Connection | None = None
        self._user_id: str | None = None
        self._code: int | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._frames_in = self._frames_out = 0

    def _write(self, frame: bytes) -> asyncio.Future[None] | None:
        raise NotImplementedError

    def _close(self, code: int) -> None:
        raise NotImplementedError

    def _probe(self) -> None:
        raise NotImplementedError

    def _asked_events(self) -> set[str]:
        """Return the values of the query parameter `events`."""
        return set(self.get_query_argument("events", "").split(","))

    def _grant(self, wanted: Collection[str], principal: Principal) -> None:
        """Subscribe the client, which is in its room, to the wanted events, if its role allows them."""
        if self._connection is None or self._code is not None:
            return
        if PROGRESS in wanted:
            self._rooms.want_progress(self._connection)
        # Also unsubscribes, when a renewed token has a lower role.
        self._rooms.set_operator(self._connection, OPERATORS in wanted and principal.is_operator)

    def connection_fields(self) -> dict[str, Any]:
        """Return the log fields that identify the connection."""
        return {"requestId": self.request_id, "client": self.client, **self.log_fields, "userId": self._user_id}

    def traffic_fields(self) -> dict[str, Any]:
        """Return the log fields with the duration and the numbers of frames."""
        seconds = round(time.monotonic() - self._opened_at, 1)
        return {"seconds": seconds, "framesIn": self._frames_in, "framesOut": self._frames_out}

    def _open_connection(self) -> None:
        self._opened_at = time.monotonic()
        self._connection = self._rooms.open(
            self._write,
            self._close,
            lambda: self._end(CloseCode.OUTBOX_FULL),
            transport=self.transport,
            probe=self._probe,
        )

    def _use_stream(self, stream: IOStream) -> None:
        """Write to this stream from now on."""
        self._stream = stream
        self._socket: socket.socket = stream.socket
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        stream.set_nodelay(True)

    def _forget_request(self) -> None:
        """Free the request: its token and its headers must not stay in memory as long as the connection."""
        del self.request, self.connection, self._headers
        self._break_cycles()

    def _send(self, data: bytes) -> asyncio.Future[None] | None:
        """Send the bytes. Return None when the kernel has all of them, else a future that is done then."""
        stream = self._stream
        sent = 0
        self._frames_out += 1
        self.metrics.socket_frames_sent.inc()
        if not stream.writing():
            # Most frames fit into one send; Tornado's write makes a future and a task for each.
            try:
                sent = self._socket.send(data)
            except OSError:
                pass  # no space, closed or broken: the write below finds out
            if sent == len(data):
                return None
        try:
            return stream.write(data[sent:])
        except StreamClosedError:
            failed = asyncio.get_running_loop().create_future()
            failed.cancel()
            return failed

    def _end_on_expiry(self, principal: Principal) -> None:
        seconds = principal.expires_at - utc_now().timestamp()
        self._set_timer("expiry", seconds, lambda: self._end(CloseCode.TOKEN_EXPIRED))

    async def _missed(self, since: datetime | None) -> list[bytes]:
        """Return frames with the events since that instant; DependencyUnavailable when the store cannot be read."""
        assert self._user_id is not None
        return await self._admission.replay.read(self._user_id, since) if since is not None else []

    # the close

    def log_exception(self, *exc_info: Any) -> None:
        super().log_exception(*exc_info)
        if self._connection is not None:
            self._end(CloseCode.INTERNAL_ERROR)

    def _end(self, code: CloseCode, message: str | None = None) -> None:
        assert self._connection is not None
        message = message or MESSAGES.get(code)
        last = event_frame({"event": "error", "message": message}) if message else None
        self._rooms.end(self._connection, code, last)

    def _forget(self, code: int) -> None:
        """Leave the room and count the closed connection. Only the first call has an effect.

        code: the close code.
        """
        assert self._connection is not None
        if self._connection.closed.done():
            return
        for name in list(self._timers):
            self._cancel_timer(name)
        self._rooms.forget(self._connection)
        self._code = code
        self.metrics.sockets_closed.labels(str(code) if code in CLOSE_CODES else "other").inc()

    def _set_timer(self, name: str, seconds: float, then: Callable[[], None]) -> None:
        self._cancel_timer(name)
        self._timers[name] = asyncio.get_running_loop().call_later(max(0.0, seconds), then)

    def _cancel_timer(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()
