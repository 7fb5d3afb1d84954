"""GET /ws: a WebSocket of one user. Authenticates the client, puts it in the user's room, and closes it when needed.

The close codes, as in contracts/close-codes.json. The last column says what a client does:
- final: it does not reconnect before something is changed.
- token: it reconnects at once with a new token, once; final without another token.
- reconnect: it reconnects with growing delays.
A client treats a code that is not in the table as reconnect.

| code | meaning | client |
|---|---|---|
| 1000, 1001 | the client closed it | as it likes |
| 1002 | the client broke the WebSocket protocol, by a compressed frame for example | final |
| 1006 | the connection broke without a close frame | reconnect |
| 1007 | a text frame or a close reason that is not UTF-8 | final |
| 1009 | a frame over MAX_FRAME_BYTES | final |
| 1011 | an error of the service | reconnect |
| 1012 | this process shuts down; the frame `goodbye` has the delay | reconnect |
| 1013 | too many sockets, a token not valid yet, or tokens or missed events that cannot be read now | reconnect |
| 4400 | a frame that is binary, not JSON or of another form; a malformed `since` | final |
| 4401 | no token in time | token |
| 4403 | a bad or expired token, or another user's token in a renewal | token |
| 4419 | the token has expired | token |
| 4429 | too many frames, requests or wrong tokens; the delay is long | reconnect |
| 4503 | the client reads too slowly: its outbox is full | reconnect |
| 4504 | a ping was not answered in time | reconnect |

The frames are in contracts/rooms.asyncapi.json. Runs on the event loop, without a task or thread per socket.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import structlog
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler, _WebSocketParams

from pipeline.assets.asset import to_timestamp
from pipeline.auth import NotYetValid, bearer_token
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, RateLimited, Unauthorized, ValidationError
from pipeline.handlers.client_frames import EVENTS, FrameAllowance, parse_frame
from pipeline.handlers.member import Member
from pipeline.handlers.protocol import StrictProtocol, is_handshake
from pipeline.handlers.query import parse_instant
from pipeline.handlers.replies import WEBSOCKET_VERSION
from pipeline.rooms.codes import GONE, MALFORMED_SINCE, NOT_YET_VALID
from pipeline.rooms.codes import CloseCode as CloseCode
from pipeline.rooms.frames import event_frame
from pipeline.usecases.admission import PROBE_SECONDS

log = structlog.get_logger(__name__)

SUBPROTOCOL = "pipeline.v1"
# How long a socket may stay without a token.
TOKEN_SECONDS = 5.0
# How often we ping: less than the 30 s after which networks of phones forget a connection.
PING_SECONDS = 25.0
# How long a ping may stay unanswered.
PONG_SECONDS = 10.0
# Largest frame a client may send; a token is the largest thing in one.
MAX_FRAME_BYTES = 16 * 1024
FRAMES_PER_SECOND = 10
TOKEN_PREFIX = "bearer."
# A replay on an open connection counts as so many frames, so that a client cannot keep the store busy.
REPLAY_FRAMES = 5


class SocketHandler(Member, WebSocketHandler):
    """One WebSocket, from the handshake to the close."""

    # Many methods because Tornado's handler, StrictProtocol and Rooms each call their own.
    route = "/ws"
    transport = "socket"

    def initialize(self, **common: Any) -> None:
        super().initialize(**common)
        self._since: datetime | None = None  # of the address
        self._wanted: set[str] = set()
        self._is_pong_due = False
        self._allowance = FrameAllowance(FRAMES_PER_SECOND)

    # the handshake

    async def get(self, *_path: str) -> None:
        self.refuse_foreign_page()
        if not is_handshake(self.request.headers):
            raise ValidationError("This address speaks WebSocket only")
        if self.request.headers.get("Sec-WebSocket-Version") != WEBSOCKET_VERSION:
            raise HTTPError(426)
        await super().get()

    def check_origin(self, origin: str) -> bool:
        return True  # get() has checked it; Tornado's own check raises for a malformed origin

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Return the service's subprotocol, never the token that is offered beside it."""
        return SUBPROTOCOL if SUBPROTOCOL in subprotocols else None

    def get_websocket_protocol(self) -> StrictProtocol | None:
        if self.request.headers.get("Sec-WebSocket-Version") != WEBSOCKET_VERSION:
            return None
        params = _WebSocketParams(max_message_size=MAX_FRAME_BYTES)
        return StrictProtocol(self, False, params)

    async def open(self, *_path: str) -> None:
        """Use the token of the handshake, or wait for the first frame."""
        assert self.ws_connection is not None and self.ws_connection.stream is not None
        if self.ws_connection.stream.closed():
            return  # the client has disconnected during the handshake
        self._use_stream(self.ws_connection.stream)
        self._open_connection()
        token = self._handshake_token()
        if self._admission.is_full or (token is None and self._admission.is_full_of_unauthenticated):
            self._end(CloseCode.TRY_LATER)
            return
        try:
            since = self.get_query_argument("since", None)
            self._since = parse_instant(since) if since is not None else None
            self._wanted = self._asked_events() & EVENTS
        except (ValueError, HTTPError):
            self._end(CloseCode.MALFORMED, MALFORMED_SINCE)
            return
        self._forget_request()
        self._set_timer("ping", PING_SECONDS, self._ping)
        if token is None:
            self._set_timer("token", TOKEN_SECONDS, lambda: self._end(CloseCode.NO_TOKEN))
        else:
            await self._admit(token, self._since)

    def _handshake_token(self) -> str | None:
        try:
            return bearer_token(self.request.headers.get("Authorization"))
        except Unauthorized:
            offered = [each.strip() for each in self.request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
            tokens = [each.removeprefix(TOKEN_PREFIX) for each in offered if each.startswith(TOKEN_PREFIX)]
            return tokens[0] if tokens and SUBPROTOCOL in offered else None

    # frames from the client; Tornado reads the next one after on_message has returned, so they are never concurrent

    async def on_message(self, message: str | bytes) -> None:
        self._frames_in += 1
        if not self._allows():
            return
        try:
            token, since, wanted = parse_frame(message)
        except ValueError:
            self._end(CloseCode.MALFORMED)
            return
        self._wanted |= wanted
        if token is None:
            self._end(CloseCode.NO_TOKEN)
        else:
            await self._admit(token, since)

    def on_fragment(self) -> None:
        """Count a continuation frame like any other."""
        self._allows()

    def on_ping(self, data: bytes) -> None:
        self._allows()

    def on_pong(self, data: bytes) -> None:
        if self._allows() and self._is_pong_due:
            self._is_pong_due = False
            self._set_timer("ping", PING_SECONDS, self._ping)

    def _allows(self, frames: float = 1) -> bool:
        """Count frames; False when there were too many or the connection is being closed."""
        self._allowance.count(frames)
        if self._allowance.ignores_close:
            self._stream.close()
        elif self._allowance.is_exceeded:
            self._end(CloseCode.TOO_MANY)
        return self._code is None

    async def _admit(self, token: str, since: datetime | None) -> None:
        """Verify the token and enter the user's room; a later token of the same user extends the connection.

        since: replay events from this instant on; None for no replay.
        """
        self._cancel_timer("token")
        try:
            principal = await self.verified(token, remembers=False)
            if self._user_id is None:
                self.count_request(principal)
        except RateLimited as error:
            self._end(CloseCode.TOO_MANY, error.message)
            return
        except NotYetValid:
            self._end(CloseCode.TRY_LATER, NOT_YET_VALID)
            return
        except Unauthorized:
            self._end(CloseCode.BAD_TOKEN)
            return
        except DependencyUnavailable as error:
            self._end_unavailable(error)
            return
        if self._code is not None:
            return  # closed while the token was verified
        if self._user_id not in (None, principal.user_id):
            self._end(CloseCode.BAD_TOKEN)
            return
        self._end_on_expiry(principal)
        if self._user_id is None:
            self._user_id = principal.user_id
            self.add_log_fields(userId=principal.user_id)
            await self._enter(principal.user_id, since or self._since)
        elif since is not None and self._allows(REPLAY_FRAMES):
            assert self._connection is not None
            self._connection.pause()
            await self._start(since)
        self._grant(self._wanted, principal)

    async def _enter(self, user_id: str, since: datetime | None) -> None:
        assert self._connection is not None
        now = to_timestamp(utc_now())
        # First the room, then the store: an event in between is in both, never in neither.
        room = await self._admission.enter(user_id, self._connection)
        connected = event_frame({"event": "connected", "room": room, "serverTime": now})
        if await self._start(since, connected):
            log.info("socket_opened", **self.connection_fields())

    async def _start(self, since: datetime | None, *first: bytes) -> bool:
        """Send the first frames, then the replay, then the frames that came meanwhile; False when it is closed."""
        assert self._connection is not None
        try:
            missed = await self._missed(since)
        except DependencyUnavailable as error:
            self._end_unavailable(error)
            return False
        self._connection.start([*first, *missed])
        return self._code is None

    # frames to the client

    def _write(self, frame: bytes) -> asyncio.Future[None] | None:
        return self._send(frame)

    def _ping(self) -> None:
        self._ask_for_pong(PONG_SECONDS)

    def _probe(self) -> None:
        if "ping" in self._timers:
            self._ask_for_pong(PROBE_SECONDS)

    def _ask_for_pong(self, seconds: float) -> None:
        try:
            self.ping()
        except WebSocketClosedError:
            return  # on_close is about to be called
        self._is_pong_due = True
        self._set_timer("ping", seconds, lambda: self._end(CloseCode.PING_TIMEOUT))

    # the close

    @property
    def is_ending(self) -> bool:
        """True when a close code has been sent, or the connection is closed."""
        return self._code is not None

    def end_for_breach(self, code: int) -> None:
        """Close because the client broke the protocol."""
        self._end(CloseCode(code))

    def _end_unavailable(self, error: DependencyUnavailable) -> None:
        self.log_unavailable(error)
        self._end(CloseCode.TRY_LATER)

    def _close(self, code: int) -> None:
        self._code = code
        self.close(code)  # Tornado closes the connection after 5 s without an answer

    def on_close(self) -> None:
        """Called once per socket, however it ended, also when the client disconnects before the upgrade."""
        if self._connection is None:
            return
        self._forget(self._code or self.close_code or GONE)
        log.info("socket_closed", code=self._code, **self.connection_fields(), **self.traffic_fields())
