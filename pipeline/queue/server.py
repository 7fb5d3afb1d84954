"""The Redis server of a queue: that of the URL or, in a Redis Cluster, the master of the one slot all its keys are in.

All calls share one connection, each waiting for its turn among the replies: a pool costs every call twice as much.
redis-py opens that connection, with whatever its URL asks for, and reads errors; its own cluster client allows no
scripts in pipelines and repeats commands. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, MovedError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

T = TypeVar("T")
Address = tuple[str, int]
CALL_SECONDS = 5.0
NOT_YET = object()


def connect(url: str, **where: Any) -> Redis:
    """Return a client that never tries a command twice. where: host and port instead of the URL's."""
    client = Redis.from_url(
        url,
        decode_responses=True,
        # With protocol 3 redis-py 8 would ask for maintenance notices, which are no replies to anything.
        protocol=2,
        socket_connect_timeout=2,
        socket_timeout=CALL_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    client.connection_pool.connection_kwargs.update(where)
    return client


class Link(asyncio.Protocol):
    """A connection that redis-py has opened and logged in, taken over from it."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._is_left = False
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            encoding="utf-8",
            # One job whose record is no UTF-8 must not spoil a whole reply.
            errors="replace",
            notEnoughData=NOT_YET,
        )
        assert connection._writer is not None
        self._transport = connection._writer.transport
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """False once it is closed or lost."""
        return not self._transport.is_closing()

    def ask(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command and return its reply to be; a refusal is raised there as what redis-py calls it."""
        return self._send([command])[0]

    async def ask_all(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands in one go and return their replies; the first refusal is raised."""
        return list(await asyncio.gather(*self._send(commands)))

    def leave(self) -> None:
        """Hang up when the replies that are on their way have come."""
        self._is_left = True
        if not self._waiting:
            self._transport.close()

    def close(self) -> None:
        """Hang up; who still waits gets an error."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (said := self._reader.gets()) is not NOT_YET:
            reply = self._waiting.popleft()
            if reply.done():
                continue  # who asked has gone
            if isinstance(said, Exception):
                reply.set_exception(said)
            else:
                reply.set_result(said)
        if self._is_left:
            self.leave()

    def connection_lost(self, error: Exception | None) -> None:
        self._connection._close()  # type: ignore[no-untyped-call]
        for reply in self._waiting:
            if not reply.done():
                reply.set_exception(RedisConnectionError("The connection is lost"))
        self._waiting.clear()

    def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[asyncio.Future[Any]]:
        if not self.is_open:
            raise RedisConnectionError("The connection is closed")
        packed = b"".join(map(hiredis.pack_command, commands))
        replies = [self._loop.create_future() for _ in commands]
        self._waiting += replies
        self._transport.write(packed)
        return replies


class QueueServer:
    """Makes calls to wherever the queue is now."""

    def __init__(self, url: str, *, call_seconds: float = CALL_SECONDS) -> None:
        """call_seconds: no call takes longer."""
        self._url = url
        self._call_seconds = call_seconds
        self._pool = connect(url).connection_pool
        self._link: Link | None = None
        self._linking = asyncio.Lock()
        self._others: list[Address] = []

    async def call(self, ask: Callable[[Link], Awaitable[T]]) -> T:
        """Return what `ask` returns, asking again only where a server has refused because the slot is elsewhere.

        Raises RedisError, OSError or TimeoutError; after a failed connection the next call tries another server.
        """
        link = None
        try:
            async with asyncio.timeout(self._call_seconds):
                try:
                    link = await self._linked()
                    return await ask(link)
                except MovedError as error:
                    # A server that does not know its own name gives none.
                    self._move(link, (error.host, error.port) if error.host else None)
                    link = await self._linked()
                    return await ask(link)
        except ReadOnlyError:
            # The master became a replica: its name may stand for another server now.
            self._move_on(link)
            raise
        except (RedisConnectionError, RedisTimeoutError, OSError):
            self._move_on(link)
            if link is not None:
                link.close()
            raise

    def close(self) -> None:
        """Hang up; who still waits gets an error."""
        if self._link is not None:
            self._link.close()

    async def _linked(self) -> Link:
        if self._link is not None and self._link.is_open:
            return self._link
        async with self._linking:
            if self._link is None or not self._link.is_open:
                self._link = None
                connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
                try:
                    await connection.connect()
                    link = Link(connection)
                    self._others = await _addresses(link, self._pool.connection_kwargs.get("host", ""))
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                self._link = link
            return self._link

    def _move_on(self, left: Link | None) -> None:
        """Go to another server of the cluster, if there is one, else anew to that of the URL."""
        if self._link is left and self._others:
            self._others.append(self._others.pop(0))
        self._move(left, self._others[0] if self._others else None)

    def _move(self, left: Link | None, address: Address | None) -> None:
        """Go to a server, unless another call has been quicker."""
        if self._link is not left:
            return
        where = {"host": address[0], "port": address[1]} if address else {}
        self._pool = connect(self._url, **where).connection_pool
        self._link = None
        if left is not None:
            left.leave()


async def _addresses(link: Link, here: str) -> list[Address]:
    """Return where the servers of the cluster are, [] when there is no cluster."""
    try:
        slots = await link.ask("CLUSTER", "SLOTS")
    except ResponseError:
        return []
    # [first slot, last slot, [host, port, ...] of the master, the same of each replica...] each. A server that does not
    # know its own name is the one that was asked.
    return list({(server[0] or here, server[1]): None for _first, _last, *servers in slots for server in servers})
