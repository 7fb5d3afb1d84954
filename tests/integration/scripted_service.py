"""A service for tests of the Python client: each test decides what a connection and a request receive."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import pipeline.client.feed
from pipeline.assets.asset import AiMetadata, AssetStatus
from pipeline.client import Client
from tests.factories import make_asset, make_image

WAIT_SECONDS = 30
START = datetime(2026, 1, 31, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    """Return the instant so many seconds after START, as the service writes it."""
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def make_event(number: int, padding: str = "") -> dict[str, Any]:
    """Return the event of a failed asset, so many seconds after START."""
    event = {"event": "asset_processed", "assetId": f"{number:024x}", "status": "failed"}
    return event | {"error": f"number {number}{padding}", "timestamp": at(number)}


def make_asset_json(number: int) -> dict[str, Any]:
    """Return the asset of that event as the list of assets contains it."""
    asset = make_asset(status=AssetStatus.FAILED, ai_metadata=AiMetadata(error=f"number {number}"))
    return asset.to_json({}) | {"id": f"{number:024x}", "finishedAt": at(number)}


def make_accepted() -> web.Response:
    """Return the reply to an accepted upload."""
    return web.json_response({"success": True, "data": {"assetId": "0" * 24}}, status=202)


class Peer:
    """The service's end of one connection of the client."""

    def __init__(self, socket: web.WebSocketResponse, transport: asyncio.BaseTransport | None) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.socket = socket
        self.transport = transport

    async def accept(self, server_time: str = at(0)) -> None:
        """Send the frame that accepts the client."""
        await self.send({"event": "connected", "room": "user:user-1", "serverTime": server_time})

    async def send(self, *frames: dict[str, Any]) -> None:
        """Send these frames, one after the other."""
        for frame in frames:
            await self.socket.send_json(frame)

    async def end(self, code: int, message: str | None = None) -> None:
        """Close, after an error frame if there is a message."""
        if message:
            await self.send({"event": "error", "message": message})
        await self.socket.close(code=code)

    async def wait_until_closed(self) -> None:
        """Answer pings until the client closes the connection."""
        async for _ in self.socket:
            pass


Script = Callable[[Peer], Awaitable[None]]


class ScriptedService:
    """A service that follows scripts: each connection runs the next script; after the last one, the last script.

    requests: the handshakes of the connections, in order.
    replies: the replies to requests under /api, in order; each is a response or a function of the request.
    api_requests: the requests under /api, with their bodies read.
    """

    def __init__(self, *scripts: Script) -> None:
        self.requests: list[web.Request] = []
        self.replies: list[web.Response | Callable[[web.Request], Awaitable[web.Response]]] = []
        self.api_requests: list[web.Request] = []
        self._scripts = scripts
        self._connected = asyncio.Condition()

    async def __aenter__(self) -> ScriptedService:
        application = web.Application()
        application.router.add_get("/ws", self._run_script)
        application.router.add_route("*", "/api/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def handshake(self, count: int) -> web.Request:
        """Wait for the handshake with this number, from 1, and return it."""
        async with asyncio.timeout(WAIT_SECONDS), self._connected:
            await self._connected.wait_for(lambda: len(self.requests) >= count)
        return self.requests[count - 1]

    async def _run_script(self, request: web.Request) -> web.WebSocketResponse:
        number = len(self.requests)
        socket = web.WebSocketResponse(autoping=False, timeout=1)
        await socket.prepare(request)
        async with self._connected:
            self.requests.append(request)
            self._connected.notify_all()
        await self._scripts[min(number, len(self._scripts) - 1)](Peer(socket, request.transport))
        return socket

    async def _answer(self, request: web.Request) -> web.Response:
        self.api_requests.append(request)
        reply = self.replies.pop(0)
        if callable(reply):
            return await reply(request)
        await request.read()
        return reply


async def next_events(client: Client, count: int) -> list[dict[str, Any]]:
    """Return so many events of the client, in order."""
    events = client.events()
    async with asyncio.timeout(WAIT_SECONDS):
        return [await anext(events) for _ in range(count)]


def numbers(events: list[dict[str, Any]]) -> list[int]:
    """Return the numbers with which make_event made the events."""
    return [int(event["assetId"], 16) for event in events]


@pytest.fixture
def reconnects_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client connects again after 10 ms at most."""
    monkeypatch.setattr(pipeline.client.feed, "BACKOFF_SECONDS", (0.01, 0.01))


@pytest.fixture
def drawn_waits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The range from which each random wait of the client is drawn; the waits themselves take no time."""
    ranges: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        ranges.append((low, high))
        return 0

    monkeypatch.setattr(random, "uniform", draw)
    return ranges


async def accept_and_wait(peer: Peer) -> None:
    """Accept the client and wait until it closes the connection."""
    await peer.accept()
    await peer.wait_until_closed()


async def accept_and_end(peer: Peer) -> None:
    """Accept the client and close the connection with 1011."""
    await peer.accept()
    await peer.end(1011)


def page(of: Any, cursor: str | None = None) -> web.Response:
    """Return a page of the list: the assets of these numbers, and the cursor of the next page."""
    items = [make_asset_json(number) for number in of]
    return web.json_response({"success": True, "data": {"items": items, "nextCursor": cursor}})


async def cut(request: web.Request) -> web.Response:
    """Close the connection of the request without a reply."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """The path of a photo."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(make_image())
    return path
