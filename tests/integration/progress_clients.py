"""Clients that follow the progress of photos: sockets, event streams and GET, against a started service."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

import aiohttp

from tests.contract.contracts import check_reply
from tests.factories import make_token
from tests.service import Service
from tests.sockets import Stream, check_frame

WAIT_SECONDS = 20.0
Frame = dict[str, Any]
NOTHING = dict.fromkeys(("position", "etaSeconds", "attempt", "provider", "reason", "nextAt", "share"))


class Socket:
    """A user's socket or event stream, and the frames that it received."""

    def __init__(self, receive: Callable[[], Awaitable[Frame]]) -> None:
        """receive: returns the next frame."""
        self._receive = receive
        self.frames: list[Frame] = []

    async def until(self, event: str, **members: Any) -> Frame:
        """Return the next frame of that event with these members."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                frame = await self._receive()
                check_frame(frame)
                self.frames.append(frame)
                if frame["event"] == event and members.items() <= frame.items():
                    return frame

    def events(self, asset_id: str) -> list[str]:
        """Return the kinds of the events received for an asset, in order of the first of each."""
        events = [frame["event"] for frame in self.frames if frame.get("assetId") == asset_id]
        return list(dict.fromkeys(events))


@asynccontextmanager
async def connected(service: Service, sub: str = "user-1", *, way: str = "") -> AsyncIterator[Socket]:
    """Yield a socket of the user that is connected.

    way: how it asks for progress: by "address", "frame" or "stream"; "" for a socket that does not ask.
    """
    headers = {} if way == "frame" else service.headers(sub)
    query = "?events=progress" if way in ("address", "stream") else ""
    async with aiohttp.ClientSession(headers=headers) as session:
        if way == "stream":
            opened = session.get(f"{service.url}/api/events{query}")
        else:
            opened = session.ws_connect(f"{service.url}/ws{query}")
        async with opened as reply:
            if way == "frame":
                await reply.send_json({"auth": {"token": make_token(sub)}, "events": ["later", "progress"]})
            socket = Socket(partial(read_stream, Stream(reply)) if way == "stream" else reply.receive_json)
            await socket.until("connected")
            yield socket


async def read_stream(stream: Stream) -> Frame:
    """Return the next frame of a stream; comments before it are skipped."""
    while "data" not in (fields := await stream.block()):
        pass
    frame: Frame = json.loads(fields["data"])
    assert fields["event"] == frame["event"]
    return frame


async def upload(service: Service, sub: str = "user-1") -> str:
    """Upload a photo and return its asset id."""
    response = await asyncio.to_thread(service.upload, sub)
    assert response.status_code == 202, response.text
    return str(response.json()["data"]["assetId"])


async def progress(service: Service, asset_id: str, is_there: Callable[[Any], bool] = lambda found: True) -> Any:
    """Return the progress that GET shows for the asset, once is_there accepts it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        reply = await asyncio.to_thread(service.get, f"/api/assets/{asset_id}")
        check_reply("GET", "/api/assets/{id}", reply.status_code, reply.json())
        found = reply.json()["data"]["progress"]
        if is_there(found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


async def frames_until(socket: Socket, event: str, count: int) -> list[Frame]:
    """Return all received frames about assets once `count` more frames of that event have come."""
    for _ in range(count):
        await socket.until(event)
    return [frame for frame in socket.frames if "assetId" in frame]


def seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
