"""The Redis server of a queue: that of the URL or, in a Redis Cluster, the master of the one slot all its keys are in.

redis-py's own cluster client allows no scripts in its pipelines and repeats commands; one slot needs neither. Runs on
the event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import hiredis
from redis.asyncio import Connection, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

T = TypeVar("T")
Address = tuple[str, int]
SOCKET_TIMEOUT_SECONDS = 5.0
# A server says so when it no longer is the one to ask.
ELSEWHERE = (MovedError, ReadOnlyError)


class _Connection(Connection):
    """A connection whose commands are packed in C, as redis-py does it for clients that are not asynchronous."""

    def pack_command(self, *args: Any) -> list[bytes]:
        # Commands of two words, such as SCRIPT LOAD, come as one.
        return [hiredis.pack_command((*args[0].split(), *args[1:]))]


def connect(url: str, *, blocking_seconds: float = 0, **where: Any) -> Redis:
    """Return a client that never tries a command twice: a step repeated blindly would claim twice.

    blocking_seconds: how long its commands may block on the server, on top of the usual socket timeout. where: host and
    port instead of the URL's.
    """
    client = Redis.from_url(
        url,
        connection_class=_Connection,
        decode_responses=True,
        # One job whose record is no UTF-8 must not spoil a whole reply.
        encoding_errors="replace",
        # With protocol 3 redis-py 8 listens for maintenance notices and then hands out pooled connections that are
        # dead.
        protocol=2,
        socket_connect_timeout=2,
        socket_timeout=SOCKET_TIMEOUT_SECONDS + blocking_seconds,
        retry=Retry(NoBackoff(), 0),
    )
    client.connection_pool.connection_kwargs.update(where)
    return client


class QueueServer:
    """Makes calls to wherever the queue is now."""

    def __init__(self, url: str, *, blocking_seconds: float = 0) -> None:
        self._url = url
        self._blocking_seconds = blocking_seconds
        self._client = connect(url, blocking_seconds=blocking_seconds)
        self._others: list[Address] | None = None  # None: not asked yet
        self._kept: AbstractConnection | None = None

    async def call(self, ask: Callable[[Redis], Awaitable[T]]) -> T:
        """Return what `ask` returns, asking again only where a server has refused because the slot is elsewhere.

        Raises RedisError, OSError or TimeoutError; after a failed connection the next call tries another server.
        """
        client = self._client
        try:
            if self._others is None:
                self._others = await _addresses(client)
            return await ask(client)
        except MovedError as error:
            self._others = None
            # A server that does not know its own name gives none.
            await self._move(client, (error.host, error.port) if error.host else None)
            return await ask(self._client)
        except (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError, TimeoutError) as error:
            if isinstance(error, ReadOnlyError):
                # The master became a replica: its name may stand for another server now.
                await client.connection_pool.disconnect(inuse_connections=False)
            if self._others:
                self._others.append(self._others.pop(0))
                await self._move(client, self._others[0])
            raise

    async def ask_kept(self, redis: Redis, *command: Any) -> Any:
        """Run a command over a connection that is kept for the next: half the price of one from the pool, for who asks
        all the time and one at a time. For use within call; how long it may take is the caller's business.
        """
        connection, self._kept = self._kept, None
        if connection is None:
            # redis-py keeps a socket_timeout with a task for each command.
            pool = redis.connection_pool
            connection = pool.connection_class(**pool.connection_kwargs | {"socket_timeout": None})
        try:
            if not connection.is_connected:
                await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_packed_command(connection.pack_command(*command), check_health=False)
            reply = await connection.read_response()
        except BaseException as error:
            if isinstance(error, ResponseError) and not isinstance(error, ELSEWHERE):
                self._kept = connection
            else:
                # It leads to the wrong server, or its reply may still come.
                await connection.disconnect(nowait=True)
            raise
        self._kept = connection
        return reply

    async def close(self) -> None:
        """Close the connections."""
        if self._kept is not None:
            await self._kept.disconnect()
        await self._client.aclose()

    async def _move(self, left: Redis, address: Address | None) -> None:
        """Go to another server, unless another call has been quicker."""
        if self._client is not left:
            return
        where = {"host": address[0], "port": address[1]} if address else {}
        self._client = connect(self._url, blocking_seconds=self._blocking_seconds, **where)
        if self._kept is not None:
            await self._kept.disconnect(nowait=True)
            self._kept = None
        # Calls that are under way there end by themselves.
        await left.connection_pool.disconnect(inuse_connections=False)


async def _addresses(client: Redis) -> list[Address]:
    """Return where the servers of the cluster are, [] when there is no cluster."""
    try:
        slots = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
    except ResponseError:
        return []
    # [first slot, last slot, [host, port, ...] of the master, the same of each replica...] each. A server that does not
    # know its own name is the one that was asked.
    here = client.connection_pool.connection_kwargs["host"]
    return list({(server[0] or here, server[1]): None for _first, _last, *servers in slots for server in servers})
