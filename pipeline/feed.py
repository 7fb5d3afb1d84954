"""One user's events over as many connections as it takes: comes back, asks for what was missed, drops repeats.

A task of its own reads the socket, so that pings are answered while the consumer is busy. It stops reading when the
consumer is far behind; the service hangs up on it then, and `since` brings back what was missed. Knows the service only
from its contracts. Runs on the consumer's event loop: work that blocks it belongs into a thread.

The wait between attempts is "full jitter", from the AWS Architecture Blog's "Exponential Backoff And Jitter".
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import aiohttp

from pipeline.access import ClientError, TokenSource, Unavailable, seconds_left, words_of

CONNECT_SECONDS = 10
CLOSE_SECONDS = 1
# A link can die without a word. The service pings every 25 s, so this asks only when that fails to come.
HEARTBEAT_SECONDS = 30
BACKOFF_SECONDS = (0.5, 30.0)
# How long before its end a token is replaced, unless it lives for minutes only.
RENEW_SECONDS = 60
# An event may come so long after one that is later by its timestamp.
OVERLAP_SECONDS = 30
QUEUED_EVENTS = 256
REMEMBERED_EVENTS = 5000
TOKEN_CODES = {4401, 4403, 4419}
# What we did wrong: 44xx, or a breach of the WebSocket protocol.
FINAL_CODES = {1002, 1007, 1009, *range(4400, 4500)}

Socket = aiohttp.ClientWebSocketResponse


class Refused(ClientError):
    """The service closed the connection and will do so again unless we change."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Feed:
    """Yields each event of the token's user once. since: the timestamp up to which they have been handed on."""

    def __init__(
        self,
        url: str,
        tokens: TokenSource,
        *,
        since: str | None,
        events_since: Callable[[str], AsyncIterator[dict[str, Any]]],
        on_notice: Callable[[str], None],
    ) -> None:
        """events_since: gives the user's events since a timestamp over HTTP, oldest first."""
        self.since = None if since is None else shift(since, 0)
        self._url = url
        self._tokens = tokens
        self._events_since = events_since
        self._on_notice = on_notice
        self._token = ""  # the latest one this connection was shown
        self._has_asked = False  # for a fresh token, since the service let us in the last time
        self._room = ""
        self._socket: Socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._arrived: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue(QUEUED_EVENTS)
        self._handed_on: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def start(self, session: aiohttp.ClientSession) -> str:
        """Connect, return the room, and stay connected from then on. ClientError when this first attempt fails."""
        if self._task is None:
            self._session = session
            self._socket = await self._connect()
            self._task = asyncio.create_task(self._run(self._socket))
        return self._room

    async def stop(self) -> None:
        """Hang up; who still waits for an event gets a ClientError."""
        if self._task is not None and self._socket is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            await self._socket.close()  # the task may not have begun
            if self._arrived.full():
                self._arrived.get_nowait()  # `since` is not past it
            self._arrived.put_nowait(ClientError("This client is closed"))

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield events, each once; ClientError when the service refuses for good."""
        while True:
            event = await self._arrived.get()
            if isinstance(event, Exception):
                self._arrived.put_nowait(event)  # for whoever asks again
                raise event
            key = event["assetId"], event["timestamp"]
            if key in self._handed_on:
                continue
            self._handed_on[key] = None
            if len(self._handed_on) > REMEMBERED_EVENTS:
                self._handed_on.popitem(last=False)
            self.since = max(self.since or "", event["timestamp"])
            yield event

    # one connection after the other

    async def _run(self, socket: Socket) -> None:
        try:
            while True:
                lost = await self._hold(socket)
                self._on_notice(f"{lost}; trying again")
                socket = await self._reconnect(lost)
                self._on_notice("Connected again")
        except Exception as error:  # a border: nobody but the consumer can be told
            await self._arrived.put(error)

    async def _reconnect(self, lost: Unavailable) -> Socket:
        limit, longest = BACKOFF_SECONDS
        while True:
            wait = random.uniform(0, limit) if lost.retry_seconds is None else lost.retry_seconds
            await asyncio.sleep(wait)
            try:
                return await self._connect()
            except Unavailable as error:
                lost = error
            limit = min(limit * 2, longest)

    async def _connect(self) -> Socket:
        while True:
            try:
                return await self._open()
            except Refused as refused:
                self._drop_token(refused)

    async def _open(self) -> Socket:
        """Return a socket that has been let in."""
        self._token = await self._tokens.get()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                socket = await self._session.ws_connect(
                    f"{self._url}/ws",
                    params={} if self.since is None else {"since": self.since},
                    headers={"Authorization": f"Bearer {self._token}"},
                    heartbeat=HEARTBEAT_SECONDS,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
                )
                try:
                    while (frame := await next_frame(socket))["event"] != "connected":
                        pass
                except BaseException:
                    await socket.close()
                    raise
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"Cannot reach {self._url}: {words_of(error)}") from error
        self._has_asked = False
        self._room = frame["room"]
        self.since = self.since or frame["serverTime"]
        return socket

    async def _hold(self, socket: Socket) -> Unavailable:
        """Read until the connection ends, and return why; Refused when another one would end the same way."""
        renewal = asyncio.create_task(self._renew(socket))
        try:
            await self._read(socket)
        except Unavailable as lost:
            return lost
        except Refused as refused:
            self._drop_token(refused)
            return Unavailable(str(refused))
        finally:
            renewal.cancel()
            # If it failed, the service will refuse the old token and we ask for another then.
            await asyncio.gather(renewal, return_exceptions=True)
            await socket.close()

    def _drop_token(self, refused: Refused) -> None:
        """Let the next connection ask for a fresh token; raise the refusal where that is no help."""
        if refused.code not in TOKEN_CODES or self._has_asked or not self._tokens.drop(self._token):
            raise refused
        self._has_asked = True

    async def _renew(self, socket: Socket) -> None:
        """Show the service a fresh token each time before the one in use expires."""
        while (left := seconds_left(self._token)) > 1:
            await asyncio.sleep(max(left - RENEW_SECONDS, left * 0.8))
            if not self._tokens.drop(self._token):
                return
            self._token = await self._tokens.get()
            await socket.send_json({"auth": {"token": self._token}})

    async def _read(self, socket: Socket) -> NoReturn:
        while True:
            frame = await next_frame(socket)
            if frame["event"] == "asset_processed":
                await self._arrived.put(frame)
            elif frame["event"] == "resync":
                await self._read_missed()

    async def _read_missed(self) -> None:
        """Read what was too much for the socket; live events wait there, so that `since` goes past nothing missed."""
        assert self.since is not None
        try:
            async for event in self._events_since(shift(self.since, -OVERLAP_SECONDS)):
                await self._arrived.put(event)
        except Unavailable:
            raise
        except ClientError as error:  # nothing the contract has for this: no hurry to see it again
            raise Unavailable(f"Cannot read what was missed: {error}", BACKOFF_SECONDS[1]) from error


async def next_frame(socket: Socket) -> dict[str, Any]:
    """Return the next frame with news; Unavailable or Refused when the connection ends."""
    said = ""
    while True:
        try:
            message = await socket.receive()
        except (aiohttp.ClientError, OSError) as error:  # a ping came that could not be answered any more
            raise Unavailable(f"The connection broke: {words_of(error)}") from error
        if message.type is not aiohttp.WSMsgType.TEXT:
            break
        frame: dict[str, Any] = json.loads(message.data)
        if frame["event"] == "goodbye":
            raise Unavailable("The service goes away", frame["retryInMs"] / 1000)
        if frame["event"] != "error":
            return frame
        said = frame["message"]
    if message.type is not aiohttp.WSMsgType.CLOSE:
        raise Unavailable(said or "The connection broke")
    code = message.data
    words = f"The service closed the connection: {said or 'it did not say why'} ({code})"
    raise Refused(words, code) if code in FINAL_CODES else Unavailable(words)


def shift(timestamp: str, seconds: float) -> str:
    """Return the timestamp so much later, spelled as the service does; ValueError for one without its zone."""
    instant = datetime.fromisoformat(timestamp)
    if instant.tzinfo is None:
        raise ValueError("a timestamp needs its zone")
    shifted = instant.astimezone(UTC) + timedelta(seconds=seconds)
    return shifted.isoformat(timespec="milliseconds").replace("+00:00", "Z")
