"""One user's events across connections: reconnects, reads missed events, drops repeats.

A task of its own reads the connection, so that pings are answered while the consumer is busy. When the consumer is far
behind, the task stops reading; the service then closes the connection, and the cursor brings back missed events. Runs
on the consumer's event loop, which the consumer must not block.

The retry delay has "full jitter", from the AWS Architecture Blog's "Exponential Backoff And Jitter".
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
# How long before its expiry a token is replaced; less for a token that is valid only for minutes.
RENEW_SECONDS = 60
QUEUED_EVENTS = 256
REMEMBERED_EVENTS = 5000


class Feed:
    """Yields each event of the token's user once. cursor: up to which events have been yielded.

    Many methods because each is one step in the life of a connection, and all share its state.
    """

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
        self._token = ""  # the last one that was sent on a connection
        self._has_renewed = False  # a token was replaced since the last successful connection
        self._room = ""
        self._connection: Connection | None = None
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._arrived: asyncio.Queue[Frame | Exception] = asyncio.Queue(QUEUED_EVENTS)
        self._yielded: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def start(self) -> str:
        """Connect, return the room, and stay connected.

        ClientError when no transport reaches the service at once, or the service refuses.
        """
        async with self._starting:
            if self._task is None:
                connection = await self._connect_first()
                self._use(connection)
                self._task = asyncio.create_task(self._run(connection))
        return self._room

    async def stop(self) -> None:
        """Close the connection. A task that waits for an event gets a ClientError."""
        if self._task is not None and self._connection is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            await self._connection.close()  # the task may not have started
            if self._arrived.full():
                self._arrived.get_nowait()  # not lost: the cursor is before it
            self._arrived.put_nowait(ClientError("This client is closed"))

    async def next(self) -> Frame:
        """Return the next event, each once; ClientError when the service refuses for good."""
        while True:
            frame = await self._arrived.get()
            if isinstance(frame, Exception):
                self._arrived.put_nowait(frame)  # for the next call
                raise frame
            if frame["event"] == CURSOR:
                self.cursor.advance(frame["since"])
            elif frame["event"] != "asset_processed":
                return frame
            elif (key := key_of(frame)) not in self._yielded:
                self._yielded[key] = None
                if len(self._yielded) > REMEMBERED_EVENTS:
                    self._yielded.popitem(last=False)
                self.cursor.advance(frame["timestamp"])
                return frame

    # one connection after the other

    async def _run(self, connection: Connection) -> None:
        try:
            while True:
                connection = await self._next_connection(connection)
                self._use(connection)
        except Exception as error:  # a border: every error goes to the consumer
            await self._arrived.put(error)

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        if connection.transport != self.transport:
            self.transport = connection.transport
            self._on_transport(self.transport)

    async def _next_connection(self, connection: Connection) -> Connection:
        """Read until the connection ends or a better one is open; return the next one."""
        reading = asyncio.create_task(self._read(connection))
        climbing = None if self._ladder.is_at_top else asyncio.create_task(self._ladder.climb())
        renewing = asyncio.create_task(self._renew(connection))
        ends = [each for each in (reading, climbing) if each is not None]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            # Frames that were read and not yielded come again: the better connection began at the cursor.
            if climbing is not None and climbing.done():
                return climbing.result()
            lost = await self._lost(reading)
        finally:
            # After a failed renewal the service will refuse the old token, and the client gets another one then.
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
        self._has_renewed = False
        self._room = connection.hello["room"]
        return connection

    def _drop_token(self, refused: Refused) -> None:
        """Make the next connection use a fresh token; raise the refusal where that cannot help."""
        is_token = CLOSE_CODES.get(refused.code) == "token"
        if not is_token or self._has_renewed or not self._http.tokens.drop(self._token):
            raise refused
        self._has_renewed = True

    async def _renew(self, connection: Connection) -> None:
        """Send the service a fresh token each time before the one in use expires, where the transport takes it."""
        while connection.takes_tokens and (left := seconds_left(self._token)) > 1:
            await asyncio.sleep(max(left - RENEW_SECONDS, left * 0.8))
            if not self._http.tokens.drop(self._token):
                return
            self._token = await self._http.tokens.get()
            await connection.show(self._token)

    # frames

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
        if key_of(frame) not in self._yielded:
            await self._arrived.put(frame)

    async def _read_missed(self) -> None:
        """Read the events that were too many for the connection. Live events wait, so that the cursor skips none.

        With a cursor later than the service's time the whole last day is read.
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
        except ClientError as error:  # the contract has no such reply: retry with the longest delay
            raise Unavailable(f"Cannot read missed events: {error}", BACKOFF_SECONDS[1]) from error
        if end:
            await self._arrived.put({"event": CURSOR, "since": end})


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    """Cancel the tasks and ignore their errors."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
