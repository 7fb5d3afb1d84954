"""The three ways on which a user's events come: WebSocket, event stream (SSE) and long poll.

Each one yields the service's frames, `connected` first. An error tells how the connection ended and whether the
transport itself is at fault.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

import aiohttp

from .access import ClientError, Fault, Refused, Unavailable, claims_of, words_of
from .close_codes import CLOSE_CODES, TOO_MANY, TOO_MANY_SECONDS, is_final
from .cursor import OVERLAP_SECONDS, Cursor, shift
from .events import CURSOR, Frame, event_of, key_of
from .http import CONNECT_SECONDS, PAGE, Http, Reply

CLOSE_SECONDS = 1
# The service sends something at least every 25 s; a connection without a byte for so long is dead.
MUTE_SECONDS = 40
# Under the minute after which many proxies cut a request.
POLL_SECONDS = 25
# How often a service is asked that answers at once with nothing new.
EMPTY_POLL_SECONDS = 1


class Connection(Protocol):
    """One open connection. hello: its `connected` frame. takes_tokens: a fresh token can be shown on it."""

    transport: str
    hello: Frame
    takes_tokens: bool

    async def next_frame(self) -> Frame:
        """Return the next frame; Unavailable or Refused when the connection ends."""

    async def show(self, token: str) -> None:
        """Show the service a fresh token, where it takes one."""

    async def close(self) -> None:
        """Let go of the connection."""


async def open_connection(transport: str, http: Http, token: str, cursor: Cursor, is_progress: bool) -> Connection:
    """Return a connection that has been let in."""
    kinds: dict[str, type[Socket | Stream | Poll]] = {"socket": Socket, "sse": Stream, "poll": Poll}
    connection = kinds[transport](http, token, cursor, is_progress)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await connection.open()
    except BaseException as error:
        await connection.close()
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
            raise Unavailable(f"Cannot reach {http.url}: {words_of(error)}", fault=Fault.MUTE) from error
        if isinstance(error, (aiohttp.ClientError, OSError)):
            raise http.unreached(error) from error
        raise
    cursor.measure(connection.hello["serverTime"])
    return connection


class _Transport:
    transport = ""
    takes_tokens = False

    def __init__(self, http: Http, token: str, cursor: Cursor, is_progress: bool) -> None:
        self.hello: Frame = {}
        self._http = http
        self._token = token
        self._cursor = cursor
        self._is_progress = is_progress
        self._said = ""
        self._retry_seconds: float | None = None

    async def show(self, token: str) -> None:
        """Not on this transport."""

    @property
    def _params(self) -> dict[str, str]:
        params = {} if self._cursor.since is None else {"since": self._cursor.since}
        return params | ({"events": "progress"} if self._is_progress else {})

    def _is_news(self, frame: Frame) -> bool:
        """Remember what the service says before it hangs up; True for any other frame."""
        if frame["event"] == "goodbye":
            self._retry_seconds = frame["retryInMs"] / 1000
        elif frame["event"] == "error":
            self._said = frame["message"]
        else:
            return True
        return False

    def _ended(self, code: int | None, fault: Fault = Fault.NOT_OPENED) -> ClientError:
        """Return what the end of the connection means. code: None when it broke."""
        if self._retry_seconds is not None and not self._said:
            return Unavailable("The service goes away", self._retry_seconds)
        if code is None:
            return Unavailable(self._said or "The connection broke", self._retry_seconds, fault=fault)
        words = f"The service closed the connection: {self._said or 'it did not say why'} ({code})"
        if is_final(code):
            return Refused(words, code)
        if code == TOO_MANY and self._retry_seconds is None:
            self._retry_seconds = random.uniform(*TOO_MANY_SECONDS)
        return Unavailable(words, self._retry_seconds, fault=Fault.NONE if code in CLOSE_CODES else fault)


class Socket(_Transport):
    """GET /ws."""

    transport = "socket"
    takes_tokens = True
    _socket: aiohttp.ClientWebSocketResponse | None = None

    async def open(self) -> None:
        """Connect and wait until the service has let us in."""
        try:
            self._socket = await self._http.session.ws_connect(
                f"{self._http.url}/ws",
                params=self._params,
                headers={"Authorization": f"Bearer {self._token}"},
                # aiohttp sends a ping after so long without a byte, and waits half as long for the answer.
                heartbeat=MUTE_SECONDS / 1.5,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
        except aiohttp.WSServerHandshakeError as error:
            raise Reply(error.status, error.headers or {}, b"").refusal() from error
        while (frame := await self.next_frame())["event"] != "connected":
            pass
        self.hello = frame

    async def next_frame(self) -> Frame:
        """Return the next frame with news."""
        assert self._socket is not None
        while True:
            try:
                message = await self._socket.receive()
            except (aiohttp.ClientError, OSError) as error:  # a ping came that could not be answered any more
                raise Unavailable(f"The connection broke: {words_of(error)}", fault=Fault.NOT_OPENED) from error
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            frame: Frame = json.loads(message.data)
            if self._is_news(frame):
                return frame
        if message.type is aiohttp.WSMsgType.CLOSE:
            raise self._ended(message.data)
        is_mute = isinstance(self._socket.exception(), TimeoutError)
        raise self._ended(None, Fault.MUTE if is_mute else Fault.NOT_OPENED)

    async def show(self, token: str) -> None:
        """Show the service a fresh token."""
        assert self._socket is not None
        await self._socket.send_json({"auth": {"token": token}})

    async def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            await self._socket.close()


class Stream(_Transport):
    """GET /api/events."""

    transport = "sse"
    _response: aiohttp.ClientResponse | None = None
    _lines: AsyncIterator[bytes]

    async def open(self) -> None:
        """Connect and wait until the service has let us in."""
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "text/event-stream"}
        # What is compressed is held back on the way.
        headers["Accept-Encoding"] = "identity"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=MUTE_SECONDS)
        response = await self._http.session.get(
            f"{self._http.url}/api/events", params=self._params, headers=headers, timeout=timeout
        )
        self._response = response
        if response.status != 200 or response.content_type != "text/event-stream":
            raise Reply(response.status, response.headers, await response.read()).refusal()
        self._lines = _lines_of(response)
        while (frame := await self.next_frame())["event"] != "connected":
            pass
        self.hello = frame

    async def next_frame(self) -> Frame:
        """Return the next frame with news."""
        while True:
            try:
                frame = await self._next_block()
            except TimeoutError as error:
                raise Unavailable("Nothing came on the stream any more", fault=Fault.MUTE) from error
            except (aiohttp.ClientError, OSError) as error:
                raise Unavailable(f"The connection broke: {words_of(error)}", fault=Fault.NOT_OPENED) from error
            if frame is None:
                raise self._ended(None)
            if frame["event"] == "close":
                raise self._ended(frame["code"])
            if self._is_news(frame):
                return frame

    async def _next_block(self) -> Frame | None:
        """Return the frame of the next block, None at the end of the stream. One with an id alone moves the cursor.

        Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
        """
        data: list[str] = []
        cursor = ""
        async for line in self._lines:
            name, _, value = line.decode().partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "id":
                cursor = value
            elif not line and data:
                frame: Frame = json.loads("\n".join(data))
                return frame
            elif not line and cursor:
                return {"event": CURSOR, "since": cursor}
        return None

    async def close(self) -> None:
        """Hang up."""
        if self._response is not None:
            self._response.close()


class Poll(_Transport):
    """GET /api/assets?finishedSince=&wait=, again and again."""

    transport = "poll"
    _server_time = ""

    async def open(self) -> None:
        """Ask for the service's time."""
        await self._page({"limit": "1"})
        room = f"user:{claims_of(self._token).get('sub', '')}"
        self.hello = {"event": "connected", "room": room, "serverTime": self._server_time}
        self._frames = self._read_on()

    async def next_frame(self) -> Frame:
        """Return the next frame with news."""
        return await anext(self._frames)

    async def close(self) -> None:
        """Nothing is open between two requests."""

    async def _read_on(self) -> AsyncIterator[Frame]:
        since = self._cursor.since or self._server_time
        if self._cursor.is_ahead:
            yield {"event": "resync"}
            since = self._server_time
        while True:
            # What came late by its timestamp; a request that waits is answered with what is newer only.
            told = set()
            async for event in self._events(shift(since, -OVERLAP_SECONDS)):
                told.add(key_of(event))
                yield event
            since = self._server_time
            yield {"event": CURSOR, "since": since}
            asked_at, is_news = time.monotonic(), False
            async for event in self._events(since, {"wait": str(POLL_SECONDS)}):
                is_news = is_news or key_of(event) not in told
                yield event
            if not is_news and (left := asked_at + EMPTY_POLL_SECONDS - time.monotonic()) > 0:
                await asyncio.sleep(left)

    async def _events(self, since: str, wait: dict[str, str] = {}) -> AsyncIterator[Frame]:
        """Yield the events since then; `_server_time` is from before the first of them was read."""
        params = {"finishedSince": since, "limit": str(PAGE)}
        page = await self._page(params | wait)
        server_time = self._server_time
        while True:
            for asset in page["items"]:
                if event := event_of(asset):
                    yield event
            if page["nextCursor"] is None:
                break
            page = await self._page(params | {"cursor": page["nextCursor"]})
        self._server_time = server_time

    async def _page(self, params: dict[str, str]) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=MUTE_SECONDS, sock_connect=CONNECT_SECONDS)
        reply = await self._http.ask("GET", "/api/assets", params=params, timeout=timeout)
        if reply.status != 200:
            raise reply.refusal()
        try:
            page = reply.data()
        except ClientError as error:  # a proxy's page
            raise Unavailable(str(error), fault=Fault.NOT_OPENED) from error
        self._server_time = page.get("serverTime") or reply.server_time
        return page


async def _lines_of(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
