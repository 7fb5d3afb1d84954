"""Tells other processes about events. What cannot be told now is told when Redis is back: late, not lost.

Everything that has gathered while one batch was on its way goes in the next, so that many events at once cost few
calls. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from itertools import islice

import structlog
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from pipeline.rooms.servers import CONNECT_SECONDS, Server, Servers
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

BATCH = 200
BACKOFF_SECONDS = (0.05, 5.0)
# Far more than a process can have: without Redis it gets no new jobs.
MAX_OWED = 10_000


class Publisher:
    """Publishes messages in the order they came, each at least once while the process lives."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._owed: deque[tuple[str, bytes, asyncio.Future[None]]] = deque(maxlen=MAX_OWED)
        self._added = asyncio.Event()

    def publish(self, channel: str, message: bytes) -> asyncio.Future[None]:
        """Return a future that is done when Redis has the message; whoever waits for it keeps the time."""
        published = asyncio.get_running_loop().create_future()
        self._owed.append((channel, message, published))
        self._added.set()
        return published

    async def run(self) -> None:
        """Publish until cancelled."""
        shortest, longest = BACKOFF_SECONDS
        pause = shortest
        while True:
            await self._added.wait()
            servers = Servers(self._pool)
            try:
                await servers.connect()
                while True:
                    await self._added.wait()
                    await self._publish(servers)
                    pause = shortest
            except (RedisError, OSError) as error:
                # A connection that died while idle is no news.
                if pause > shortest:
                    log.warning("publisher_disconnected", error=cause_of(error), owed=len(self._owed))
            finally:
                await servers.disconnect()
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, longest)

    async def _publish(self, servers: Servers) -> None:
        batch = list(islice(self._owed, BATCH))
        verb = "SPUBLISH" if servers.is_sharded else "PUBLISH"
        parts: dict[Server, list[tuple[str | bytes, ...]]] = {}
        for channel, message, _ in batch:
            parts.setdefault(servers.of(channel), []).append((verb, channel, message))
        async with asyncio.timeout(CONNECT_SECONDS):
            for server, commands in parts.items():
                await server.send(commands)
            for server, commands in parts.items():
                for _ in commands:
                    await server.read()
        for _, _, published in batch:
            # Unless more came meanwhile than may be owed, and pushed it out.
            if self._owed[0][2] is published:
                self._owed.popleft()
            if not published.done():
                published.set_result(None)
        if not self._owed:
            self._added.clear()
