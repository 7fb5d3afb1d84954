"""GET /ws: the border between one client's WebSocket and its room.

Close codes, for clients. 44xx: do not retry unchanged. Others: reconnect, with backoff.

| code | meaning | reconnect |
|---|---|---|
| 1009 | a frame was larger than SOCKET_FRAME_BYTES | no |
| 1012 | the service restarts; a `goodbye` frame said when to come back | yes |
| 1013 | tokens cannot be checked just now | yes |
| 4400 | a frame was binary, no JSON or not understood | no |
| 4401 | no token came in time, or something else came first | no |
| 4403 | the token is bad, expired, or another user's than before | no |
| 4419 | the token expired; come back with a new one | no |
| 4429 | more than SOCKET_FRAMES_PER_SECOND | no |
| 4503 | the client read too slowly and its outbox overflowed | yes |
| 4504 | a ping was not answered in time | yes |

Every frame is a JSON object with `event`; contracts/rooms.asyncapi.json has them all. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any, ClassVar
from urllib.parse import urlsplit

import structlog
import tornado.websocket

from pipeline.assets.asset import to_timestamp, utc_now
from pipeline.auth import Principal, TokenVerifier, bearer_token
from pipeline.errors import DependencyUnavailable, Unauthorized, ValidationError
from pipeline.handlers.assets import parse_instant
from pipeline.metrics import Metrics
from pipeline.rooms.fanout import RoomFanout
from pipeline.rooms.rooms import Connection, Rooms
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

RESTART, TRY_LATER = 1012, 1013
MALFORMED, NO_TOKEN, BAD_TOKEN, EXPIRED, TOO_MANY, TOO_SLOW, NO_PONG = 4400, 4401, 4403, 4419, 4429, 4503, 4504
TABLE = frozenset({1009, RESTART, TRY_LATER, MALFORMED, NO_TOKEN, BAD_TOKEN, EXPIRED, TOO_MANY, TOO_SLOW, NO_PONG})
COUNTED_CODES = TABLE | {1000, 1001, 1006}  # metric labels; whatever else a client makes up is "other"
SUBPROTOCOL, TOKEN_PREFIX = "pipeline.v1", "bearer."
RETRY_MS = (200, 5000)  # spread, so that a restarted process is not met by all its clients at once
LONGEST_TIMER_SECONDS = 86_400.0


class SocketHandler(tornado.websocket.WebSocketHandler):
    """One client: settles who it is, keeps it in its room, watches its manners."""

    route: ClassVar[str] = "/ws"

    def initialize(
        self, *, rooms: Rooms, fanout: RoomFanout, verifier: TokenVerifier, settings: Settings, metrics: Metrics
    ) -> None:
        self._rooms = rooms
        self._fanout = fanout
        self._verifier = verifier
        self._settings = settings
        self._metrics = metrics
        self._principal: Principal | None = None
        self._connection: Connection | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._window_started_at = 0.0
        self._frames_in_window = 0
        self._sent_code: int | None = None

    # the handshake

    def check_origin(self, origin: str) -> bool:
        """A page of another site must not use the visitor's address to come here; programs send no Origin at all."""
        return origin in self._settings.allowed_origins or urlsplit(origin).netloc == self.request.headers.get("Host")

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Echo the protocol's name only: the token that came beside it must not come back."""
        return SUBPROTOCOL if SUBPROTOCOL in subprotocols else None

    async def open(self, *_: str, **__: str) -> None:
        """Take the token of the handshake, or wait for the first frame."""
        # The upgrade is through by now: a browser cannot read why one was refused, but it can read a frame.
        self._set_timer("auth", self._settings.socket_auth_seconds, self._on_no_token)
        self._ping()
        token = self._handshake_token()
        if token is not None:
            await self._authenticate(token)

    def _handshake_token(self) -> str | None:
        try:
            return bearer_token(self.request.headers.get("Authorization"))
        except Unauthorized:
            offered = self.request.headers.get("Sec-WebSocket-Protocol", "").split(",")
            tokens = [each.strip().removeprefix(TOKEN_PREFIX) for each in offered if TOKEN_PREFIX in each]
            return tokens[0] if tokens else None

    # frames from the client

    async def on_message(self, message: str | bytes) -> None:
        """Understand a frame: the only ones there are carry a token."""
        if not self._is_within_rate():
            self._end(TOO_MANY, "Too many frames")
            return
        try:
            token = _token(message)
        except ValidationError as error:
            if self._principal is None:
                self._on_no_token()
            else:
                self._end(MALFORMED, error.message)
            return
        await self._authenticate(token)

    def _is_within_rate(self) -> bool:
        now = time.monotonic()
        if now - self._window_started_at >= 1:
            self._window_started_at, self._frames_in_window = now, 0
        self._frames_in_window += 1
        return self._frames_in_window <= self._settings.socket_frames_per_second

    async def _authenticate(self, token: str) -> None:
        """Settle who is there and let them in; again, it prolongs the stay of the same user."""
        try:
            principal = await self._verifier.verify(token)
            if self._principal is not None and principal.user_id != self._principal.user_id:
                raise Unauthorized("Invalid token")
        except Unauthorized as error:
            self._refuse(BAD_TOKEN, error.message)
            return
        except DependencyUnavailable as error:
            self._end(TRY_LATER, error.message)
            return
        is_first = self._principal is None
        self._principal = principal
        self._cancel_timer("auth")
        self._set_timer("expiry", principal.expires_at - time.time(), self._on_expiry)
        if is_first:
            await self._enter(f"user:{principal.user_id}")

    async def _enter(self, room: str) -> None:
        settings = self._settings
        connection = Connection(
            self.write_message,
            self._end,
            self._metrics,
            max_frames=settings.outbox_frames,
            max_bytes=settings.outbox_bytes,
        )
        server_time = to_timestamp(utc_now())
        await self._fanout.listen(room)
        if self.ws_connection is None or self._sent_code is not None:
            self._fanout.unlisten(room)  # it went away meanwhile
            return
        self._connection = connection
        self._room = room
        connection.send(json.dumps({"event": "connected", "room": room, "serverTime": server_time}))
        # Replay of what finished since `since` goes here, before the room: subscribed already, so nothing falls
        # between.
        self._rooms.join(room, connection)
        self._metrics.sockets_open.inc()
        log.info("socket_opened", userId=self._principal.user_id if self._principal else None)

    # the end

    def _on_no_token(self) -> None:
        self._refuse(NO_TOKEN, "Authentication required")

    def _on_expiry(self) -> None:
        if self._principal is not None and self._principal.expires_at > time.time():
            # The longest timer was shorter than the token's life.
            self._set_timer("expiry", self._principal.expires_at - time.time(), self._on_expiry)
        else:
            self._end(EXPIRED, "Token expired")

    def _refuse(self, code: int, message: str) -> None:
        """Say why in a frame, for clients that cannot see close codes, then close."""
        if self.ws_connection is not None and self._sent_code is None:
            self._forget(self.write_message(json.dumps({"event": "error", "message": message})))
        self._end(code, message)

    def _end(self, code: int, reason: str) -> None:
        if self._sent_code is None:
            self._sent_code = code
            self.close(code, reason)

    def on_close(self) -> None:
        """Leave the room; called once, however the connection ended."""
        for name in list(self._timers):
            self._cancel_timer(name)
        code = self._sent_code or self.close_code or 1006
        self._metrics.sockets_closed.labels(str(code) if code in COUNTED_CODES else "other").inc()
        if self._connection is not None:
            self._rooms.leave(self._room, self._connection)
            self._fanout.unlisten(self._room)
            self._metrics.sockets_open.dec()
        log.info("socket_closed", userId=self._principal.user_id if self._principal else None, code=code)

    # timers

    def _ping(self) -> None:
        # Not Tornado's own pings: those close with 1000, which tells a client not to come back.
        if self.ws_connection is not None and self._sent_code is None:
            self.ping(b"")
            self._set_timer("ping", self._settings.socket_pong_seconds, self._on_no_pong)

    def on_pong(self, data: bytes) -> None:
        self._set_timer("ping", self._settings.socket_ping_seconds, self._ping)

    def _on_no_pong(self) -> None:
        self._end(NO_PONG, "Ping not answered")

    def _set_timer(self, name: str, seconds: float, callback: Any) -> None:
        self._cancel_timer(name)
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(min(max(0.0, seconds), LONGEST_TIMER_SECONDS), callback)

    def _cancel_timer(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    @staticmethod
    def _forget(future: asyncio.Future[None]) -> None:
        # Nobody waits for this write; a client that is gone by now is no error.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())


async def drain_sockets(rooms: Rooms, seconds: float) -> None:
    """Tell every socket to come back later, close it with 1012, and wait that long for the clients to answer."""
    for connection in rooms:
        goodbye = {"event": "goodbye", "retryInMs": random.randint(*RETRY_MS)}
        connection.finish(json.dumps(goodbye), RESTART, "Service restarts")
    deadline = asyncio.get_running_loop().time() + seconds
    while len(rooms) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)


def _token(message: str | bytes) -> str:
    """Return the token of an auth frame {"auth": {"token": ...}, "since": ...}; ValidationError for anything else."""
    if isinstance(message, bytes):
        raise ValidationError("Binary frames are not understood")
    try:
        frame = json.loads(message)
        token = frame["auth"]["token"]
        if "since" in frame:
            parse_instant(frame["since"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValidationError("Frame not understood") from None
    if not isinstance(token, str):
        raise ValidationError("Frame not understood")
    return token
