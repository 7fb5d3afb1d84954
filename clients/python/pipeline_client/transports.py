"""The transports of a user's events: WebSocket, event stream (SSE) and, in poll.py, long polling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp

from .access import Fault, Unavailable, words_of
from .connection import MUTE_SECONDS, Connection, Transport
from .cursor import Cursor
from .events import CURSOR, Frame
from .http import CONNECT_SECONDS, Http, Reply
from .poll import Poll

CLOSE_SECONDS = 1


async def open_connection(transport: str, http: Http, token: str, cursor: Cursor, is_progress: bool) -> Connection:
    """Return a connection that the service has accepted."""
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


class Socket(Transport):
    """GET /ws."""

    transport = "socket"
    takes_tokens = True
    _socket: aiohttp.ClientWebSocketResponse | None = None

    async def open(self) -> None:
        """Connect, and wait until the service has accepted the token."""
        try:
            self._socket = await self._http.session.ws_connect(
                f"{self._http.url}/ws",
                params=self._params,
                headers={"Authorization": f"Bearer {self._token}"},
                # aiohttp sends a ping after this time without a byte, and waits half as long for the answer.
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
            except (aiohttp.ClientError, OSError) as error:  # a ping came, and its answer could not be sent
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
        """Send the service a fresh token."""
        assert self._socket is not None
        await self._socket.send_json({"auth": {"token": token}})

    async def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            await self._socket.close()


class Stream(Transport):
    """GET /api/events."""

    transport = "sse"
    _response: aiohttp.ClientResponse | None = None
    _lines: AsyncIterator[bytes]

    async def open(self) -> None:
        """Connect, and wait until the service has accepted the token."""
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "text/event-stream"}
        # Proxies delay compressed data.
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
        """Return the frame of the next block, None at the end of the stream. A block with only an id moves the cursor.

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
        """Close the connection."""
        if self._response is not None:
            self._response.close()


async def _lines_of(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
