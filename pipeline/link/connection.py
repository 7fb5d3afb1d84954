"""One connection to a Redis server. Knows no key, no channel and no cluster. Runs on the event loop.

redis-py reads the URL, opens the connection and logs in. From then on this file reads and writes the bytes, because
redis-py's way to wait for a reply costs every call twice as much. Callers share a connection: each reply goes to the
caller whose turn it is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

CALL_SECONDS = 5.0
CONNECT_SECONDS = 2.0
# A connection that said nothing for so long may have been cut without a word: the server is asked before it is used.
TRUSTED_SECONDS = 0.25
SIGN_SECONDS = 0.5
NOT_YET = object()


def connect(url: str) -> Redis:
    """Return a client that never tries a command twice."""
    return Redis.from_url(
        url,
        decode_responses=True,
        # With protocol 3 redis-py 8 would ask for maintenance notices, which are no replies to anything.
        protocol=2,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=CALL_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


class Link(asyncio.Protocol):
    """An open connection that redis-py has logged in, taken over from it.

    Callers ask, and get text; or, after `listen`, they send and get what is published.
    on_lost: called when the connection has ended, whoever ended it. is_asking: each command is about a slot that is
    still moving here.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self.host: str = getattr(connection, "host", "")
        self.on_lost: Callable[[], None] | None = None
        self.is_asking = False
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._take: Callable[[Any], None] = self._answer
        self._is_left = False
        self._error: Exception | None = None
        self._last_reply_at = time.monotonic()
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=DefaultParser.parse_error,
            encoding="utf-8",
            # One job whose record is no UTF-8 must not spoil a whole reply.
            errors="replace",
            notEnoughData=NOT_YET,
        )
        # The only private name of redis-py. The writer is kept: it closes its transport when nobody refers to it.
        assert connection._writer is not None
        self._writer, connection._writer = connection._writer, None
        self._transport = self._writer.transport
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """False once it is closed or lost."""
        return not self._transport.is_closing()

    @property
    def silent_seconds(self) -> float:
        """How long ago the server has sent anything."""
        return time.monotonic() - self._last_reply_at

    @property
    def is_trusted(self) -> bool:
        """Whether the server has just sent something, or will answer somebody else."""
        return self.is_open and (bool(self._waiting) or self.silent_seconds <= TRUSTED_SECONDS)

    async def confirm(self) -> None:
        """Return when the server has given a sign of life; TimeoutError when it gives none soon."""
        async with asyncio.timeout(SIGN_SECONDS):
            await self.ask("PING")

    def ask(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command and return its reply to be; a refusal is raised there as what redis-py calls it."""
        return self.ask_each([command])[0]

    async def ask_all(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands in one go and return their replies; the first refusal is raised."""
        return list(await asyncio.gather(*self.ask_each(commands)))

    def ask_each(self, commands: Sequence[tuple[Any, ...]]) -> list[asyncio.Future[Any]]:
        """Send commands in one go and return the reply to be of each."""
        if self.is_asking:
            asked = self._ask([each for command in commands for each in (("ASKING",), command)])
            for reply in asked[::2]:
                reply.cancel()  # nobody waits for the OK
            return asked[1::2]
        return self._ask(commands)

    def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[asyncio.Future[Any]]:
        self.send(commands)
        replies = [self._loop.create_future() for _ in commands]
        self._waiting += replies
        return replies

    def send(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Send commands in one go; only for a connection that listens, as nobody waits for the replies."""
        if not self.is_open:
            raise RedisConnectionError("The connection is closed")
        self._transport.write(b"".join(map(hiredis.pack_command, commands)))

    def listen(self, take: Callable[[list[Any]], None]) -> None:
        """Hand every array that arrives to `take`, in bytes. A refusal, or an error of `take`, ends the connection."""
        self._reader.set_encoding(None)

        def hear(said: Any) -> None:
            if isinstance(said, Exception):
                raise said
            if isinstance(said, list):
                take(said)

        self._take = hear

    def check(self, health_seconds: float) -> None:
        """Raise what ended a connection that listens; after that many seconds of silence ask for a sign of life, after
        twice as many raise.
        """
        if not self.is_open:
            raise self._error or _lost(None)
        if self.silent_seconds > 2 * health_seconds:
            raise RedisConnectionError("Redis does not answer")
        if self.silent_seconds > health_seconds:
            self.send([("PING",)])

    def leave(self) -> None:
        """Hang up when the replies that are on their way have come."""
        self._is_left = True
        if not self._waiting:
            self._transport.close()

    def close(self, error: Exception | None = None) -> None:
        """Hang up; callers that still wait get an error. error: why, for `check`."""
        self._error = self._error or error
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._last_reply_at = time.monotonic()
        try:
            self._reader.feed(data)
            while (said := self._reader.gets()) is not NOT_YET:
                self._take(said)
        # Whatever a listener raises: asyncio would only log it, and `check` is to raise it.
        except Exception as error:
            self.close(error)
        if self._is_left:
            self.leave()

    def connection_lost(self, error: Exception | None) -> None:
        self._error = self._error or error
        for reply in self._waiting:
            if not reply.done():
                reply.set_exception(_lost(self._error))
        self._waiting.clear()
        if self.on_lost:
            self.on_lost()

    def _answer(self, said: Any) -> None:
        reply = self._waiting.popleft()
        if reply.done():
            return  # the caller has gone
        if isinstance(said, Exception):
            reply.set_exception(said)
        else:
            reply.set_result(said)


def _lost(cause: Exception | None) -> RedisConnectionError:
    error = RedisConnectionError("The connection is lost")
    error.__cause__ = cause
    return error
