"""A fake service for tests of the JavaScript client; the test decides each answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from aiohttp import web

from pipeline.assets.asset import to_timestamp
from pipeline.clock import utc_now
from tests.scripts import CHROMIUM_PAGE, CLIENT, HARNESS, WAIT_SECONDS, Script, chromium, node


class Link:
    """One WebSocket of a client.

    first: the first frame of the client.
    frames: the later frames of the client.
    ended: set when the connection is closed.
    """

    def __init__(self, socket: web.WebSocketResponse, request: web.Request, first: dict[str, Any]) -> None:
        self.socket = socket
        self.first = first
        self.accepted_at = time.monotonic()
        self.frames: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.ended = asyncio.Event()
        self._request = request

    async def send(self, *frames: dict[str, Any]) -> None:
        """Send frames."""
        for frame in frames:
            await self.socket.send_json(frame)

    async def connected(self, at: datetime | None = None) -> None:
        """Send `connected`.

        at: the time of the server in the frame, by default now.
        """
        await self.send({"event": "connected", "room": "user:ann", "serverTime": to_timestamp(at or utc_now())})

    async def frame(self) -> dict[str, Any]:
        """Return the next frame of the client."""
        return await asyncio.wait_for(self.frames.get(), WAIT_SECONDS)

    async def close(self, code: int, *last: dict[str, Any]) -> None:
        """Send these frames, then close with the code."""
        await self.send(*last)
        await self.socket.close(code=code)

    async def wait_ended(self) -> None:
        """Return when the connection is closed."""
        await asyncio.wait_for(self.ended.wait(), WAIT_SECONDS)

    def cut(self) -> None:
        """Abort the TCP connection."""
        assert self._request.transport is not None
        self._request.transport.abort()


class Call:
    """One HTTP request of a client; the client waits for the answer."""

    def __init__(self, request: web.Request, body: bytes) -> None:
        self.method, self.path, self.query = request.method, request.path, dict(request.query)
        self.headers = request.headers
        self.body = body
        self.answer: asyncio.Future[web.Response | None] = asyncio.get_running_loop().create_future()

    def reply(self, data: Any, status: int = 200) -> None:
        """Send a successful answer with this data."""
        self.answer.set_result(web.json_response({"success": True, "data": data}, status=status))

    def refuse(self, status: int, code: str, **headers: str) -> None:
        """Send an error as the service does.

        headers: of the answer, like Retry_After="1".
        """
        body = {"success": False, "error": {"code": code, "message": f"scripted {status}"}}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer.set_result(web.json_response(body, status=status, headers=named))

    def reply_html(self, status: int) -> None:
        """Answer as a proxy answers when the service is down."""
        self.answer.set_result(web.Response(status=status, text="<h1>Bad Gateway</h1>", content_type="text/html"))

    def cut(self) -> None:
        """Abort the TCP connection."""
        self.answer.set_result(None)


class Stream:
    """One stream of server-sent events."""

    def __init__(self, response: web.StreamResponse, request: web.Request) -> None:
        self.query, self.headers = dict(request.query), request.headers
        self.ended = asyncio.Event()
        self._response = response

    async def send(self, *pieces: bytes) -> None:
        """Send these pieces one after the other."""
        for piece in pieces:
            await self._response.write(piece)
            await asyncio.sleep(0.01)  # else the client could read several pieces at once

    async def frames(self, *frames: dict[str, Any]) -> None:
        """Send frames."""
        await self.send(*(f"event: {each['event']}\ndata: {json.dumps(each)}\n\n".encode() for each in frames))

    async def connected(self) -> None:
        """Send `connected`."""
        await self.frames({"event": "connected", "room": "user:ann", "serverTime": to_timestamp(utc_now())})

    def end(self) -> None:
        """End the stream."""
        self.ended.set()


class FakeService:
    """The service; it also serves the files of the JavaScript client and a page that loads them.

    accepted: the number of WebSockets so far.
    """

    def __init__(self) -> None:
        self.url = ""
        self.accepted = 0
        self._links: asyncio.Queue[Link] = asyncio.Queue()
        self._calls: asyncio.Queue[Call] = asyncio.Queue()
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()
        application = web.Application(client_max_size=1 << 24)
        application.router.add_get("/", self._page)
        application.router.add_static("/js", CLIENT)
        application.router.add_get("/ws", self._socket)
        application.router.add_get("/api/events", self._events)
        application.router.add_route("*", "/api/{path:.*}", self._api)
        self._runner = web.AppRunner(application, shutdown_timeout=1)

    async def __aenter__(self) -> FakeService:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def accept(self) -> Link:
        """Return the next WebSocket."""
        return await asyncio.wait_for(self._links.get(), WAIT_SECONDS)

    async def stream(self) -> Stream:
        """Return the next stream of events."""
        return await asyncio.wait_for(self._streams.get(), WAIT_SECONDS)

    async def call(self) -> Call:
        """Return the next HTTP request."""
        return await asyncio.wait_for(self._calls.get(), WAIT_SECONDS)

    @asynccontextmanager
    async def script(self, kind: str) -> AsyncIterator[Script]:
        """Yield a script in Node, or in a page of this origin."""
        async with node() if kind == "node" else chromium(f"{self.url}/") as script:
            yield script

    async def _page(self, _request: web.Request) -> web.Response:
        text = CHROMIUM_PAGE.replace("HARNESS", HARNESS.replace("BASE", "/js"))
        return web.Response(text=text, content_type="text/html")

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        # Without compression, as in the service.
        socket = web.WebSocketResponse(protocols=("pipeline.v1",), timeout=1, compress=False)
        await socket.prepare(request)
        self.accepted += 1
        assert socket.ws_protocol == "pipeline.v1"
        link = Link(socket, request, await socket.receive_json())
        self._links.put_nowait(link)
        async for message in socket:
            link.frames.put_nowait(message.json())
        link.ended.set()
        return socket

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=UTF-8"})
        await response.prepare(request)
        stream = Stream(response, request)
        self._streams.put_nowait(stream)
        await stream.ended.wait()
        return response

    async def _api(self, request: web.Request) -> web.Response:
        call = Call(request, await request.read())
        self._calls.put_nowait(call)
        answer = await call.answer
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
        return answer or web.Response()
