"""Rooms on a real Redis as a test sees them: reported gaps, subscribed channels, and a Redis that hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from datetime import datetime

from redis import Redis

from tests.redis_server import RedisServer
from tests.sockets import WAIT_SECONDS, Process

ROOM = "user:user-1"


class Gaps:
    """A function `on_gap` whose calls the test can wait for."""

    def __init__(self, process: Process) -> None:
        self.reported: list[tuple[str, datetime]] = []
        self._arrived = asyncio.Event()
        process.fanout.on_gap = self

    def __call__(self, room: str, since: datetime) -> None:
        self.reported.append((room, since))
        self._arrived.set()

    async def wait(self, *users: str) -> None:
        """Return when gaps of the rooms of these users, and of no others, were reported; then forget them."""
        async with asyncio.timeout(WAIT_SECONDS):
            while {room for room, _ in self.reported} != {f"user:{user}" for user in users}:
                self._arrived.clear()
                await self._arrived.wait()
        self.reported.clear()


async def eventually(is_so: Callable[[], bool]) -> None:
    """Check the condition repeatedly until it is true: Redis sends no message when a channel loses its subscribers."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not is_so():
            await asyncio.sleep(0.01)


def channels(redis: Redis) -> list[str]:
    """Return the channels of rooms that have subscribers, sharded and plain ones."""
    pattern = "pipeline:0:room:user:*"
    found: list[str] = redis.pubsub_channels(pattern) + redis.pubsub_shardchannels(pattern)
    return sorted(found)


def hang(server: RedisServer) -> None:
    """Stop the server process, so that it accepts connections and does not answer."""
    os.kill(server.pid, signal.SIGSTOP)


def let_answer(server: RedisServer) -> None:
    """End `hang`."""
    os.kill(server.pid, signal.SIGCONT)
