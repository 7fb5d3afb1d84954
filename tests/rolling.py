"""Several processes of the service on one Redis and one store, their restarts, and clients that record every failure.

The clients that upload and read do not retry, so every failure counts. The clients that wait for events use
pipeline.client, which reconnects when a process closes its sockets, as the protocol says.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import aiohttp

from pipeline.client import Client
from tests.factories import make_image, make_token
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.toxiproxy import free_port

# The longest time of a request, far above the usual time: only a request that hangs needs longer.
REQUEST_SECONDS = 30.0
EVENT_SECONDS = 30.0
# Sends a request with the session, the user and a unique key; returns "" for a success, else the failure.
Act = Callable[[aiohttp.ClientSession, str, str], Awaitable[str]]


class Instances:
    """Processes of the service on one Redis and one store; `with` starts and ends them all."""

    def __init__(self, folder: Path, *, count: int = 2, is_one_port: bool = False, **environment: str) -> None:
        """Start nothing yet.

        is_one_port: the processes share a port (REUSE_PORT).
        environment: the settings of all processes.
        """
        self._folder, self._environment = folder, environment
        self._stack = ExitStack()
        port = free_port()
        self.ports = [port if is_one_port else free_port() for _ in range(count)]
        self._port_settings = {"REUSE_PORT": "true"} if is_one_port else {}
        self.services: list[Service] = []

    def __enter__(self) -> Instances:
        redis = self._stack.enter_context(RedisServer())
        ai = self._stack.enter_context(AiService(delay_ms=20))
        for port in self.ports:
            settings = {"REDIS_URL": redis.url, "PORT": str(port), **self._port_settings}
            service = Service(self._folder / "data", ai.url, **settings | self._environment)
            self.services.append(self._stack.enter_context(service))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for service in self.services:
            if service.is_running:
                service.signal(signal.SIGTERM)
                service.wait_log("service_stopping")
                # The second SIGTERM ends it without waiting for LAME_DUCK_SECONDS.
                service.stop()
        self._stack.__exit__(kind, error, trace)

    async def roll(self, pause_seconds: float = 0) -> None:
        """Restart the processes one after the other: each when the previous one accepts requests."""
        for service in self.services:
            assert await asyncio.to_thread(service.stop) == 0
            await asyncio.to_thread(service.start)
            await asyncio.sleep(pause_seconds)

    async def kill_one(self, down_seconds: float = 1) -> None:
        """Kill the first process with -9, and start it after `down_seconds`."""
        await asyncio.to_thread(self.services[0].kill)
        await asyncio.sleep(down_seconds)
        await asyncio.to_thread(self.services[0].start)


@dataclass
class Seen:
    """The results of the clients.

    requests: the number of requests.
    failures: the number of requests that failed, by failure.
    seconds: the time of each request.
    uploaded: the user of each uploaded asset.
    received: the number of events of each asset.
    """

    requests: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    uploaded: dict[str, str] = field(default_factory=dict)
    received: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """The number of failed requests."""
        return sum(self.failures.values())

    @property
    def lost(self) -> list[str]:
        """The uploaded assets whose event did not come."""
        return [asset_id for asset_id in self.uploaded if asset_id not in self.received]

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the times of the requests."""
        return round(1000 * sorted(self.seconds)[int(len(self.seconds) * 0.99)], 1) if self.seconds else 0.0


class Load:
    """Clients of one address: some upload, some read the queue status, some wait for events; `async with` runs them."""

    def __init__(
        self,
        url: str,
        *,
        uploaders: int = 4,
        readers: int = 2,
        listeners: int = 3,
        image: bytes = b"",
        keyed: bool = False,
    ) -> None:
        """Start nothing yet.

        uploaders: the number of clients that upload.
        readers: the number of clients that read the queue status.
        listeners: the number of clients that wait for events.
        keyed: uploads have an Idempotency-Key and are sent a second time when they fail.
        """
        self.url, self.seen = url, Seen()
        self._counts = uploaders, readers, listeners
        self._image = image or make_image(size=(640, 480))
        self._keyed = keyed
        self._is_over = False
        self._requests: list[asyncio.Task[None]] = []
        self._listeners: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        uploaders, readers, listeners = self._counts
        ready = [asyncio.Event() for _ in range(listeners)]
        self._listeners = [
            asyncio.create_task(self._listen(f"user-{number}", event)) for number, event in enumerate(ready)
        ]
        for event in ready:
            await event.wait()
        # Half of the clients open a connection for each request, as curl does; the other half use keep-alive.
        self._requests = [
            *(asyncio.create_task(self._work(self._upload, number)) for number in range(uploaders)),
            *(asyncio.create_task(self._work(self._read_status, number)) for number in range(readers)),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        await asyncio.gather(*self._requests)
        deadline = time.monotonic() + EVENT_SECONDS
        while self.seen.lost and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for task in self._listeners:
            task.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)

    async def until(self, requests: int) -> None:
        """Return when that many further requests have ended."""
        wanted = self.seen.requests + requests
        while self.seen.requests < wanted:
            await asyncio.sleep(0.01)

    async def _work(self, act: Act, number: int) -> None:
        user = f"user-{number % max(1, self._counts[2])}"
        connector = aiohttp.TCPConnector(force_close=number % 2 == 1)
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        headers = {"Authorization": f"Bearer {make_token(user)}"}
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            count = 0
            while not self._is_over:
                count += 1
                begun_at = time.monotonic()
                failure = await self._failure(act(session, user, f"{number}-{count}"))
                if failure and self._keyed and act == self._upload:
                    failure = await self._failure(act(session, user, f"{number}-{count}"))
                self.seen.requests += 1
                self.seen.seconds.append(time.monotonic() - begun_at)
                if failure:
                    self.seen.failures[failure] += 1
                await asyncio.sleep(0.02)

    async def _failure(self, request: Awaitable[str]) -> str:
        try:
            return await request
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return type(error).__name__

    async def _upload(self, session: aiohttp.ClientSession, user: str, key: str) -> str:
        form = aiohttp.FormData()
        form.add_field("category", "sneaker")
        form.add_field("image", self._image, filename="photo.jpg", content_type="image/jpeg")
        headers = {"Idempotency-Key": key} if self._keyed else {}
        async with session.post(f"{self.url}/api/assets/analyze-queue", data=form, headers=headers) as reply:
            if reply.status != 202:
                return f"upload: {reply.status} {reply.content_type}"
            self.seen.uploaded[(await reply.json())["data"]["assetId"]] = user
            return ""

    async def _read_status(self, session: aiohttp.ClientSession, user: str, key: str) -> str:
        async with session.get(f"{self.url}/api/assets/queue-status") as reply:
            await reply.read()
            return "" if reply.status == 200 else f"status: {reply.status} {reply.content_type}"

    async def _listen(self, user: str, ready: asyncio.Event) -> None:
        async with Client(self.url, make_token(user)) as client:
            await client.listen()
            ready.set()
            async for event in client.events():
                self.seen.received[str(event["assetId"])] += 1


async def slow_upload(url: str, image: bytes, bytes_per_second: int) -> tuple[int, float]:
    """Send a photo at that speed; return the status and the seconds."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(image), bytes_per_second // 10):
            yield image[start : start + bytes_per_second // 10]
            await asyncio.sleep(0.1)

    form = aiohttp.FormData()
    form.add_field("category", "sneaker")
    form.add_field("image", pieces(), filename="photo.jpg", content_type="image/jpeg")
    headers = {"Authorization": f"Bearer {make_token('slow')}"}
    begun_at = time.monotonic()
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.post(f"{url}/api/assets/analyze-queue", data=form) as reply:
            return reply.status, time.monotonic() - begun_at
