"""One user's events over as many connections as it takes: comes back, asks for what was missed, drops repeats.

A task of its own reads the connection, so that pings are answered while the consumer is busy. It stops reading when the
consumer is far behind; the service hangs up on it then, and the cursor brings back what was missed. Knows the service
only from its contracts. Runs on the consumer's event loop: work that blocks it belongs into a thread.

The wait between attempts is "full jitter", from the AWS Architecture Blog's "Exponential Backoff And Jitter".
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import NoReturn

from .access import ClientError, Fault, Refused, Unavailable, seconds_left
from .close_codes import CLOSE_CODES
from .connection import Connection
from .cursor import OVERLAP_SECONDS, Cursor, shift
from .events import CURSOR, Frame, event_of, key_of
from .http import Http
from .ladder import Ladder
from .transports import open_connection

BACKOFF_SECONDS = (0.5, 30.0)
# How long before its end a token is replaced, unless it lives for minutes only.
RENEW_SECONDS = 60
QUEUED_EVENTS = 256
REMEMBERED_EVENTS = 5000


class Feed:
    """Yields each event of the token's user once. cursor: up to where they have been handed on."""

    def __init__(
        self,
        http: Http,
        *,
        since: str | None,
        is_progress: bool,
        on_notice: Callable[[str], None],
        on_transport: Callable[[str], None],
    ) -> None:
        self.cursor = Cursor(since)
        self.transport: str | None = None
        self._http = http
        self._is_progress = is_progress
        self._on_notice = on_notice
        self._on_transport = on_transport
        self._ladder = Ladder(self._open)
        self._token = ""  # the latest one a connection was shown
        self._has_asked = False  # for a fresh token, since the service let us in the last time
        self._room = ""
        self._connection: Connection | None = None
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._arrived: asyncio.Queue[Frame | Exception] = asyncio.Queue(QUEUED_EVENTS)
        self._handed_on: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def start(self) -> str:
        """Connect, return the room, and stay connected from then on.

        ClientError when the service cannot be reached or refuses; only other transports are tried at once.
        """
        async with self._starting:
            if self._task is None:
                connection = await self._connect_first()
                self._use(connection)
                self._task = asyncio.create_task(self._run(connection))
        return self._room

    async def stop(self) -> None:
        """Hang up; who still waits for an event gets a ClientError."""
        if self._task is not None and self._connection is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            await self._connection.close()  # the task may not have begun
            if self._arrived.full():
                self._arrived.get_nowait()  # the cursor is not past it
            self._arrived.put_nowait(ClientError("This client is closed"))

    async def next(self) -> Frame:
        """Return the next event, each once; ClientError when the service refuses for good."""
        while True:
            frame = await self._arrived.get()
            if isinstance(frame, Exception):
                self._arrived.put_nowait(frame)  # for whoever asks again
                raise frame
            if frame["event"] == CURSOR:
                self.cursor.advance(frame["since"])
            elif frame["event"] != "asset_processed":
                return frame
            elif (key := key_of(frame)) not in self._handed_on:
                self._handed_on[key] = None
                if len(self._handed_on) > REMEMBERED_EVENTS:
                    self._handed_on.popitem(last=False)
                self.cursor.advance(frame["timestamp"])
                return frame

    # one connection after the other

    async def _run(self, connection: Connection) -> None:
        try:
            while True:
                connection = await self._hold(connection)
                self._use(connection)
        except Exception as error:  # a border: nobody but the consumer can be told
            await self._arrived.put(error)

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        if connection.transport != self.transport:
            self.transport = connection.transport
            self._on_transport(self.transport)

    async def _hold(self, connection: Connection) -> Connection:
        """Read until the connection ends or a better one is open; return the next one."""
        reading = asyncio.create_task(self._read(connection))
        climbing = None if self._ladder.is_at_top else asyncio.create_task(self._ladder.climb())
        renewing = asyncio.create_task(self._renew(connection))
        ends = [each for each in (reading, climbing) if each is not None]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            # What was read and not yet handed on comes again: the better connection began at the cursor.
            if climbing is not None and climbing.done():
                return climbing.result()
            lost = await self._lost(reading)
        finally:
            # If the renewal failed, the service will refuse the old token and we ask for another then.
            await _cancel(renewing, *ends)
            await connection.close()
        self._on_notice(f"{lost}; trying again")
        connection = await self._reconnect(lost)
        self._on_notice("Connected again")
        return connection

    async def _lost(self, reading: asyncio.Task[NoReturn]) -> Unavailable:
        """Return why the connection ended; Refused when another one would end the same way."""
        try:
            await reading
        except Unavailable as lost:
            if lost.fault is Fault.MUTE:
                self._ladder.count(lost)
            return lost
        except Refused as refused:
            self._drop_token(refused)
            return Unavailable(str(refused), 0)

    async def _reconnect(self, lost: Unavailable) -> Connection:
        limit, longest = BACKOFF_SECONDS
        tried = self.transport
        while True:
            if self._ladder.is_at_top or self._ladder.transport == tried:
                await asyncio.sleep(random.uniform(0, limit) if lost.retry_seconds is None else lost.retry_seconds)
                limit = min(limit * 2, longest)
            tried = self._ladder.transport
            try:
                return await self._connect()
            except Unavailable as error:
                lost = error

    async def _connect_first(self) -> Connection:
        while True:
            tried = self._ladder.transport
            try:
                return await self._connect()
            except Unavailable as error:
                is_last = self._ladder.is_at_top and tried != self._ladder.transport
                if not error.fault or is_last:
                    raise
                if self._ladder.transport == tried:
                    await asyncio.sleep(random.uniform(0, BACKOFF_SECONDS[0]))

    async def _connect(self) -> Connection:
        while True:
            try:
                return await self._ladder.connect()
            except Refused as refused:
                self._drop_token(refused)

    async def _open(self, transport: str) -> Connection:
        token = await self._http.tokens.get()
        self._token = token
        connection = await open_connection(transport, self._http, token, self.cursor, self._is_progress)
        self._has_asked = False
        self._room = connection.hello["room"]
        return connection

    def _drop_token(self, refused: Refused) -> None:
        """Let the next connection ask for a fresh token; raise the refusal where that is no help."""
        is_token = CLOSE_CODES.get(refused.code) == "token"
        if not is_token or self._has_asked or not self._http.tokens.drop(self._token):
            raise refused
        self._has_asked = True

    async def _renew(self, connection: Connection) -> None:
        """Show the service a fresh token each time before the one in use expires, where the transport can."""
        while connection.takes_tokens and (left := seconds_left(self._token)) > 1:
            await asyncio.sleep(max(left - RENEW_SECONDS, left * 0.8))
            if not self._http.tokens.drop(self._token):
                return
            self._token = await self._http.tokens.get()
            await connection.show(self._token)

    # what comes

    async def _read(self, connection: Connection) -> NoReturn:
        while True:
            frame = await connection.next_frame()
            if frame["event"] == "asset_processed":
                await self._put(frame)
            elif frame["event"] == "resync":
                await self._read_missed()
            elif frame["event"] == CURSOR:
                if self._arrived.empty():
                    self.cursor.advance(frame["since"])
            elif self._is_progress and frame["event"].startswith("asset_"):
                await self._arrived.put(frame)

    async def _put(self, frame: Frame) -> None:
        if key_of(frame) not in self._handed_on:
            await self._arrived.put(frame)

    async def _read_missed(self) -> None:
        """Read what was too much for the connection; live events wait there, so that the cursor passes nothing missed.

        A cursor that stands in the service's future says nothing: then all of the last day is read.
        """
        end = self.cursor.reset() if self.cursor.is_ahead else None
        assert self.cursor.since is not None
        since = self.cursor.since if end else shift(self.cursor.since, -OVERLAP_SECONDS)
        try:
            async for asset in self._http.finished_since(since):
                if event := event_of(asset):
                    await self._put(event)
        except Unavailable as error:
            raise Unavailable(str(error), error.retry_seconds) from error
        except ClientError as error:  # nothing the contract has for this: no hurry to see it again
            raise Unavailable(f"Cannot read what was missed: {error}", BACKOFF_SECONDS[1]) from error
        if end:
            await self._arrived.put({"event": CURSOR, "since": end})


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    """End the tasks, whatever they end with."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
