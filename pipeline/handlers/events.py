"""GET /api/events: a user's events as a `text/event-stream`, for clients that cannot use a WebSocket.

The frames are those of the socket; `id:` is the cursor, which a client sends as `Last-Event-ID` or `since` when it
reconnects. Errors before the stream begins are normal replies. Later a `close` event has the close code, see
handlers/socket.py. Runs on the event loop, without a task or thread per stream.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from datetime import datetime
from typing import Any

import structlog

from pipeline.assets.asset import to_timestamp
from pipeline.auth import Principal
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, RateLimited, Unauthorized, ValidationError
from pipeline.handlers.access_log import log_request
from pipeline.handlers.base import BaseHandler
from pipeline.handlers.event_stream import EventStreamText
from pipeline.handlers.member import Member
from pipeline.handlers.query import NO_INSTANT, parse_instant
from pipeline.rooms.codes import GONE, TOO_MANY_CONNECTIONS, CloseCode
from pipeline.rooms.frames import event_frame, payloads
from pipeline.rooms.tickets import TICKET_SECONDS, Tickets
from pipeline.usecases.admission import CROWDED_RETRY_SECONDS, PROBE_SECONDS

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS = 15.0
HEARTBEAT = b""  # a frame without an event
# The kernel closes the connection of a client that has acknowledged nothing for so long.
UNACKNOWLEDGED_MS = 40_000
# How long a client may take to read the rest after the `close` event.
CLOSE_SECONDS = 5.0


class TicketHandler(BaseHandler):
    """POST /api/events/ticket: a ticket for an EventSource, valid for one stream and 30 s."""

    route = "/api/events/ticket"

    def initialize(self, *, tickets: Tickets, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self._tickets = tickets

    async def post(self) -> None:
        ticket = await self._tickets.make(await self.authenticate())
        self.reply({"ticket": ticket, "expiresInSeconds": TICKET_SECONDS}, status=201)


class EventsHandler(Member):
    """One stream, from the request to the close."""

    # Many methods because Tornado, Rooms and the stream each call their own.
    route = "/api/events"
    transport = "sse"

    def initialize(self, *, tickets: Tickets, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self._tickets = tickets
        self._has_begun = False
        self._is_chunked = self.request.version != "HTTP/1.0"
        self._text = EventStreamText()
        self._frames_written = self._frames_seen = 0

    async def get(self) -> None:
        self.refuse_foreign_page()
        principal = await self._identify()
        since, wanted = self._since(), self._asked_events()
        self._open_connection()
        try:
            first = await self._enter(principal, since)
        except BaseException:
            self._forget(self._code or CloseCode.TRY_LATER)
            raise
        if self._code is None:  # the client is still there
            log.info("stream_opened", **self.connection_fields())
            self._end_on_expiry(principal)
            self._begin(first)
            self._grant(wanted, principal)

    async def _identify(self) -> Principal:
        ticket = self.get_query_argument("ticket", None)
        if ticket is None or "Authorization" in self.request.headers:
            return await self.authenticate()
        principal = await self._tickets.take(ticket)
        if principal is None:
            self.limits.wrong_token(self.client)
            raise Unauthorized("Invalid ticket")
        return principal

    def _since(self) -> datetime | None:
        """Return the start of the replay. The header is newer than the address, which an EventSource never changes."""
        header = self.request.headers.get("Last-Event-ID")
        field, text = ("Last-Event-ID", header) if header else ("since", self.get_query_argument("since", None))
        try:
            return parse_instant(text) if text is not None else None
        except ValueError:
            raise ValidationError.of(field, NO_INSTANT) from None

    async def _enter(self, principal: Principal, since: datetime | None) -> list[bytes]:
        """Join the user's room and return the first frames."""
        assert self._connection is not None
        if self._admission.is_closed:
            raise DependencyUnavailable("This process is shutting down")
        if self._admission.is_full:
            raise DependencyUnavailable(TOO_MANY_CONNECTIONS)
        self._user_id = principal.user_id
        self.add_log_fields(userId=principal.user_id)
        now = to_timestamp(utc_now())
        # First the room, then the store: an event in between is in both, never in neither.
        room = await self._admission.enter(principal.user_id, self._connection)
        connected = event_frame({"event": "connected", "room": room, "serverTime": now})
        missed = await self._missed(since)
        if self._code == CloseCode.TRY_LATER:
            raise RateLimited(TOO_MANY_CONNECTIONS, retry_after_seconds=CROWDED_RETRY_SECONDS)
        if self._code not in (None, GONE):
            raise DependencyUnavailable("The stream cannot begin just now")
        self._text.cursor = to_timestamp(since) or ""
        return [connected, *missed]

    def _begin(self, first: list[bytes]) -> None:
        """Send the head of the reply, and write to the connection without Tornado's handler from then on."""
        assert self._connection is not None
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        self.set_header("Connection", "close")
        if self._is_chunked:
            self.set_header("Transfer-Encoding", "chunked")
        self.flush()
        log_request(self)
        stream = self.detach()
        self._forget_request()
        self._has_begun = True
        if stream.closed():
            # Disconnected meanwhile: after detach() no callback would report it.
            self._on_stream_close()
            return
        self._use_stream(stream)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        stream.set_close_callback(self._on_stream_close)
        # The client sends nothing more, so this read ends when the client disconnects.
        asyncio.ensure_future(stream.read_bytes(1)).add_done_callback(self._on_read)
        self._connection.start(first)
        self._set_timer("heartbeat", HEARTBEAT_SECONDS, self._beat)

    # frames to the client

    def _write(self, frame: bytes) -> asyncio.Future[None] | None:
        self._frames_written += 1
        return self._send_text("".join(map(self._text.event, payloads(frame))) or self._heartbeat_text())

    def _send_text(self, text: str) -> asyncio.Future[None] | None:
        data = text.encode()
        return self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def _heartbeat_text(self) -> str:
        assert self._connection is not None
        room = self._connection.room
        is_current = room is not None and self._rooms.is_confirmed(room)
        return self._text.heartbeat(to_timestamp(utc_now()) if is_current else None)

    def _beat(self) -> None:
        assert self._connection is not None
        self._set_timer("heartbeat", HEARTBEAT_SECONDS, self._beat)
        if self._connection.is_idle:
            self._connection.send(HEARTBEAT)
        elif self._connection.is_writing and self._frames_written == self._frames_seen:
            self._end(CloseCode.OUTBOX_FULL)  # no frame was read since the last heartbeat
        self._frames_seen = self._frames_written

    def _probe(self) -> None:
        """Send a heartbeat and check its TCP acknowledgement: a stream has no pong."""
        if self._has_begun and self._connection is not None:
            if self._connection.is_idle:
                self._connection.send(HEARTBEAT)
            self._set_timer("probe", PROBE_SECONDS, self._end_unless_acknowledged)

    def _end_unless_acknowledged(self) -> None:
        if _unacknowledged_bytes(self._socket) > 0:
            self._end(CloseCode.PING_TIMEOUT)

    # the close

    def _close(self, code: int) -> None:
        self._code = code
        if not self._has_begun:
            return  # get() replies with the error
        written = self._send_text(f'event: close\ndata: {{"event":"close","code":{code}}}\n\n')
        if self._is_chunked:
            written = self._send(b"0\r\n\r\n")
        if written is None:
            self._stream.close()
        else:
            written.add_done_callback(lambda _: self._stream.close())
            self._set_timer("close", CLOSE_SECONDS, self._stream.close)

    def _on_read(self, read: asyncio.Future[bytes]) -> None:
        if not read.cancelled() and read.exception() is None:
            self._stream.close()

    def _on_stream_close(self) -> None:
        self._forget(self._code or GONE)
        log.info("stream_closed", code=self._code, **self.connection_fields(), **self.traffic_fields())

    def on_connection_close(self) -> None:
        """Called when the client disconnects before its stream begins."""
        super().on_connection_close()
        if self._connection is not None and not self._has_begun:
            self._forget(GONE)


def _unacknowledged_bytes(sock: socket.socket) -> int:
    """Return how many sent bytes the client's kernel has not acknowledged; 0 where the system does not know."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])
    except OSError:
        return 0
