"""The client of the upload benchmarks, a process of its own: python -m benchmarks.uploads.load PLAN

PLAN is JSON: port, token, bytes (the size of the image) or image (its file), count, parallel, and do:
- "upload": uploads over keep-alive connections as fast as possible, beside a probe of /livez every 10 ms;
- "events": the same without the probe, with one WebSocket of the user, until the last event;
- "flight": `count` uploads at once; each body stops half-way until all bodies are half-way.

Prints JSON. Requests are prebuilt and replies are hardly parsed, so that the client itself costs little.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.factories import make_noise_image, make_upload

PIECE_BYTES = 256 * 1024
PROBE_SECONDS = 0.01


class Client:
    """Carries out one plan."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        image = Path(plan["image"]).read_bytes() if "image" in plan else make_noise_image(plan["bytes"])
        body, content_type = make_upload(image)
        head = (
            f"POST /api/assets/analyze-queue HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {plan['token']}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body
        self.latencies: list[float] = []
        self.sent_at: dict[str, float] = {}
        self.event_at: dict[str, float] = {}

    async def send(self, pieces: AsyncIterator[bytes] | Iterator[bytes], writer: asyncio.StreamWriter) -> None:
        if isinstance(pieces, AsyncIterator):
            async for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    async def read_reply(self, reader: asyncio.StreamReader, status: bytes) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.split(b" ", 2)[1] != status:
            raise RuntimeError(head.decode() + (await reader.read(1000)).decode())
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return await reader.readexactly(length)

    async def upload_all(self) -> float:
        """Upload all photos over keep-alive connections; return the seconds."""
        numbers = iter(range(self.plan["count"]))

        async def one_connection() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.plan["port"])
            for _ in numbers:
                started_at = time.perf_counter()
                await self.send(self.pieces(), writer)
                body = await self.read_reply(reader, b"202")
                self.latencies.append(time.perf_counter() - started_at)
                self.sent_at[json.loads(body)["data"]["assetId"]] = started_at
            writer.close()

        started_at = time.perf_counter()
        await asyncio.gather(*(one_connection() for _ in range(self.plan["parallel"])))
        return time.perf_counter() - started_at

    def pieces(self) -> Iterator[bytes]:
        view = memoryview(self.request)
        for at in range(0, len(view), PIECE_BYTES):
            yield view[at : at + PIECE_BYTES]  # type: ignore[misc]

    async def upload(self) -> dict[str, Any]:
        waits: list[float] = []
        probing = asyncio.create_task(self.probe(waits))
        seconds = await self.upload_all()
        probing.cancel()
        return {"seconds": seconds, "latencies": self.latencies, "probes": waits}

    async def probe(self, waits: list[float]) -> None:
        """Request /livez repeatedly, on a connection of its own; append the seconds of each to `waits`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.plan["port"])
        while True:
            started_at = time.perf_counter()
            writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await self.read_reply(reader, b"200")
            waits.append(time.perf_counter() - started_at)
            await asyncio.sleep(PROBE_SECONDS)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[asyncio.Task[None]]:
        headers = {"Authorization": f"Bearer {self.plan['token']}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(f"http://127.0.0.1:{self.plan['port']}/ws") as socket,
        ):
            await socket.receive()

            async def listen() -> None:
                while len(self.event_at) < self.plan["count"]:
                    message = await socket.receive()
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        raise RuntimeError(f"the socket was closed: {socket.close_code} {message.extra or ''}")
                    event = json.loads(message.data)
                    self.event_at.setdefault(event["assetId"], time.perf_counter())

            yield asyncio.create_task(listen())

    async def events(self) -> dict[str, Any]:
        async with self.listening() as listened:
            started_at = time.perf_counter()
            accepted = await self.upload_all()
            await listened
            total = time.perf_counter() - started_at
        waits = [self.event_at[asset_id] - sent_at for asset_id, sent_at in self.sent_at.items()]
        return {"accepted": accepted, "total": total, "waits": waits}

    async def flight(self) -> dict[str, Any]:
        started = 0
        all_half_way = asyncio.Event()

        async def halves() -> AsyncIterator[bytes]:
            nonlocal started
            middle = len(self.request) // 2
            for at, end in ((0, middle), (middle, len(self.request))):
                if at:
                    started += 1
                    if started == self.plan["count"]:
                        all_half_way.set()
                    await all_half_way.wait()
                for first in range(at, end, PIECE_BYTES):
                    yield self.request[first : min(first + PIECE_BYTES, end)]

        async def one() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.plan["port"])
            await self.send(halves(), writer)
            await self.read_reply(reader, b"202")
            writer.close()

        await asyncio.gather(*(one() for _ in range(self.plan["count"])))
        return {}


if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    print(json.dumps(asyncio.run(getattr(Client(plan), plan["do"])())))
