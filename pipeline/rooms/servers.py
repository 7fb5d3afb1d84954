"""The Redis servers that carry rooms between processes: the one of REDIS_URL or, if it is part of a Redis Cluster, all
its masters, each with the channels whose slots it has.

Where the server has sharded Pub/Sub (Redis 7, Valkey) it is used: in a cluster such a message stays with the master of
its channel, so that more masters carry more rooms; a plain PUBLISH would go to all of them. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from typing import Any, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, NoPermissionError, ResponseError

CONNECT_SECONDS = 5.0
PROBE = "pipeline:probe"


def make_pool(url: str) -> ConnectionPool:
    """Return what makes connections to the server of a redis:// or rediss:// URL; none is made yet."""
    # Protocol 3 would bring redis-py's maintenance notices. No timeout of a connection's own: redis-py keeps it with
    # wait_for, which can swallow a cancellation; whoever uses one keeps the time.
    retry = Retry(NoBackoff(), 0)
    client = Redis.from_url(url, protocol=2, socket_connect_timeout=2, socket_timeout=None, retry=retry)
    return client.connection_pool


class Server:
    """One connection to one Redis server."""

    def __init__(self, connection: AbstractConnection) -> None:
        self.connection = connection
        self._heard = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """For how long it has said nothing."""
        return time.monotonic() - self._heard

    async def send(self, commands: Iterable[tuple[str | bytes, ...]]) -> None:
        """Send commands, all in one go."""
        packed = self.connection.pack_commands(commands)
        await self.connection.send_packed_command(packed, check_health=False)

    async def read(self) -> Any:
        """Return the next reply, however long it takes; errors are raised."""
        reply = await self.connection.read_response(timeout=math.inf, disconnect_on_error=False)
        self._heard = time.monotonic()
        return reply


class Servers:
    """A set of connections, one to each server. `connect` first; a set that has failed is not used again."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.all: list[Server] = []
        self.is_sharded = False
        self._pool = pool
        # (last slot, server) in order of the slots; empty when there is but one server.
        self._ranges: list[tuple[int, Server]] = []

    async def connect(self) -> None:
        """Connect to every server, within 5 s in all; RedisError, OSError or TimeoutError when one cannot be had."""
        async with asyncio.timeout(CONNECT_SECONDS):
            first = await self._open({})
            self.is_sharded = await _knows(first, "SPUBLISH", PROBE, "")
            slots = await self._slots(first) if self.is_sharded else []
            by_address: dict[tuple[str, int], Server] = {}
            for _start, end, (host, port, *_rest), *_replicas in sorted(slots):
                # A node that does not know its own name is the one that was asked.
                address = (host.decode() or self._pool.connection_kwargs["host"], port)
                if address not in by_address:
                    by_address[address] = await self._open({"host": address[0], "port": address[1]})
                self._ranges.append((end, by_address[address]))
            if self._ranges:
                self.all.remove(first)
                await first.connection.disconnect(nowait=True)

    def of(self, channel: str) -> Server:
        """Return the server a channel lives on."""
        if not self._ranges:
            return self.all[0]
        slot = key_slot(channel.encode())
        for end, server in self._ranges:
            if slot <= end:
                return server
        raise RedisConnectionError(f"no server of the cluster has slot {slot}")

    async def disconnect(self) -> None:
        """Give all connections up."""
        for server in self.all:
            await server.connection.disconnect(nowait=True)

    async def _open(self, where: dict[str, Any]) -> Server:
        connection = self._pool.connection_class(**self._pool.connection_kwargs | where)
        server = Server(connection)
        self.all.append(server)
        await server.connection.connect()  # type: ignore[no-untyped-call]
        return server

    async def _slots(self, server: Server) -> list[Any]:
        await server.send([("CLUSTER", "SLOTS")])
        try:
            return cast(list[Any], await server.read())
        except ResponseError:
            return []  # no cluster


async def _knows(server: Server, *command: str) -> bool:
    await server.send([command])
    try:
        await server.read()
    except (MovedError, NoPermissionError) as error:
        return isinstance(error, MovedError)
    except ResponseError as error:
        if "unknown command" in str(error).lower():
            return False
        raise
    return True
