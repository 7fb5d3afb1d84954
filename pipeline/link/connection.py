"""One connection to a Redis server. Knows no key, no channel and no cluster. Runs on the event loop.

redis-py reads the URL, opens the connection and logs in. From then on this file reads and writes the bytes, because
with redis-py's way to wait for a reply every call costs twice as much. Callers share a connection: replies come in the
order of the commands.
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
# A connection that was silent for so long may have been cut without notice: it is checked with a PING before its use.
TRUSTED_SECONDS = 0.25
PING_SECONDS = 0.5
NOT_YET = object()


def connect(url: str) -> Redis:
    """Return a client that never tries a command twice."""
    return Redis.from_url(
        url,
        decode_responses=True,
        # With protocol 3 redis-py 8 would ask for maintenance notices, which are replies to no command.
        protocol=2,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=CALL_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


class Link(asyncio.Protocol):
    """An open connection, taken over from redis-py after the login.

    Callers ask and get replies as text; or, after `listen`, they send and get published messages.
    Many methods because a connection has two uses, and asyncio calls two of them.
    on_lost: called when the connection has ended, on either side.
    is_asking: each command concerns a slot that is still moving to this server.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self.host: str = getattr(connection, "host", "")
        self.on_lost: Callable[[], None] | None = None
        self.is_asking = False
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._handle: Callable[[Any], None] = self._answer
        self._is_closing = False
        self._error: Exception | None = None
        self._last_reply_at = time.monotonic()
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=DefaultParser.parse_error,
            encoding="utf-8",
            # One job whose record is no UTF-8 must not make a reply about many jobs unreadable.
            errors="replace",
            notEnoughData=NOT_YET,
        )
        # The only private name of redis-py. The reference stays: without one, the writer closes its transport.
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
        """How long the server has sent nothing."""
        return time.monotonic() - self._last_reply_at

    @property
    def is_trusted(self) -> bool:
        """Whether the server has sent something lately, or a reply is under way."""
        return self.is_open and (bool(self._waiting) or self.silent_seconds <= TRUSTED_SECONDS)

    async def confirm(self) -> None:
        """Return when the server has answered a PING; TimeoutError when it does not soon."""
        async with asyncio.timeout(PING_SECONDS):
            await self.ask("PING")

    def ask(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command and return the future of its reply; a refusal is raised there as redis-py's exception."""
        return self.ask_each([command])[0]

    async def ask_all(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands in one write and return their replies; the first refusal is raised."""
        return list(await asyncio.gather(*self.ask_each(commands)))

    def ask_each(self, commands: Sequence[tuple[Any, ...]]) -> list[asyncio.Future[Any]]:
        """Send commands in one write and return the future of each reply."""
        if self.is_asking:
            replies = self._ask([each for command in commands for each in (("ASKING",), command)])
            for reply in replies[::2]:
                reply.cancel()  # no caller waits for the OK
            return replies[1::2]
        return self._ask(commands)

    def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[asyncio.Future[Any]]:
        self.send(commands)
        replies = [self._loop.create_future() for _ in commands]
        self._waiting += replies
        return replies

    def send(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Send commands in one write; only for a connection that listens, as no caller waits for the replies."""
        if not self.is_open:
            raise RedisConnectionError("The connection is closed")
        self._transport.write(b"".join(map(hiredis.pack_command, commands)))

    def listen(self, on_message: Callable[[list[Any]], None]) -> None:
        """Hand every array that arrives to on_message, in bytes. A refusal, or an error of on_message, ends the
        connection.
        """
        self._reader.set_encoding(None)

        def handle(reply: Any) -> None:
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, list):
                on_message(reply)

        self._handle = handle

    def check(self, health_seconds: float) -> None:
        """Raise the error that ended a connection that listens; send a PING after that many seconds of silence, and
        raise after twice as many.
        """
        if not self.is_open:
            raise self._error or _lost(None)
        if self.silent_seconds > 2 * health_seconds:
            raise RedisConnectionError("Redis does not answer")
        if self.silent_seconds > health_seconds:
            self.send([("PING",)])

    def close_after_replies(self) -> None:
        """Close the connection when the replies that are under way have come."""
        self._is_closing = True
        if not self._waiting:
            self._transport.close()

    def close(self, error: Exception | None = None) -> None:
        """Close the connection; callers that still wait get an error. error: why, for `check`."""
        self._error = self._error or error
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._last_reply_at = time.monotonic()
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not NOT_YET:
                self._handle(reply)
        # Any error of a listener: asyncio would only log it, and `check` has to raise it.
        except Exception as error:
            self.close(error)
        if self._is_closing:
            self.close_after_replies()

    def connection_lost(self, error: Exception | None) -> None:
        self._error = self._error or error
        for reply in self._waiting:
            if not reply.done():
                reply.set_exception(_lost(self._error))
        self._waiting.clear()
        if self.on_lost:
            self.on_lost()

    def _answer(self, reply: Any) -> None:
        waiting = self._waiting.popleft()
        if waiting.done():
            return  # the caller has gone
        if isinstance(reply, Exception):
            waiting.set_exception(reply)
        else:
            waiting.set_result(reply)


def _lost(cause: Exception | None) -> RedisConnectionError:
    error = RedisConnectionError("The connection is lost")
    error.__cause__ = cause
    return error
