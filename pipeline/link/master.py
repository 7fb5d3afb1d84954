"""The master that has the keys of a queue: the server of the URL, the one that Sentinels name or, in a Redis Cluster,
the master of the one slot of these keys.

redis-py's own cluster client allows no scripts in pipelines and repeats commands. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from redis.exceptions import AskError, ClusterDownError, MovedError, ReadOnlyError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pipeline.link.connection import CALL_SECONDS, Link
from pipeline.link.nodes import Address, Nodes

T = TypeVar("T")
# While the slot moves from one server to another each server has some of the keys; a failover takes seconds.
RETRY_SECONDS = 0.1


class Master:
    """Makes calls to the server that has the keys now. All calls share one connection."""

    def __init__(self, url: str, *, call_seconds: float = CALL_SECONDS) -> None:
        """call_seconds: no call takes longer."""
        self._call_seconds = call_seconds
        self._nodes = Nodes(url)
        # The server that has the keys; None: the first node in order.
        self._address: Address = None
        self._link: Link | None = None
        self._connecting = asyncio.Lock()

    async def call(self, ask: Callable[[Link], Awaitable[T]]) -> T:
        """Return what `ask` returns; ask again only when a server refused because the slot is elsewhere or moves.

        Raises RedisError, OSError or TimeoutError; after a failed connection the next call tries another node.
        """
        link = None
        try:
            async with asyncio.timeout(self._call_seconds):
                moves = 0
                while True:
                    try:
                        link = await self._open_link()
                        return await ask(link)
                    except MovedError as error:
                        if moves:
                            # The servers do not agree yet.
                            await asyncio.sleep(RETRY_SECONDS)
                        moves += 1
                        if link is not None:
                            # A server that does not know its own name gives none.
                            self._move(link, (error.host or link.host, error.port))
                    except AskError as error:
                        with suppress(TryAgainError):
                            return await self._ask_once((error.host, error.port), ask)
                        await asyncio.sleep(RETRY_SECONDS)
                    except TryAgainError:
                        await asyncio.sleep(RETRY_SECONDS)
        except (ReadOnlyError, ClusterDownError):
            # The master became a replica: its name may lead to another server now. Or it has lost the other masters.
            self._move_on(link)
            raise
        except (RedisConnectionError, RedisTimeoutError, OSError):
            self._move_on(link)
            if link is not None:
                link.close()
            raise

    async def _ask_once(self, address: tuple[str, int], ask: Callable[[Link], Awaitable[T]]) -> T:
        """Ask the server to which a slot is moving; the slot is not there yet, so the next call goes to the old one."""
        link = await self._nodes.open(address)
        link.is_asking = True
        try:
            return await ask(link)
        finally:
            link.close()

    def close(self) -> None:
        """Close the connection; callers that still wait get an error."""
        if self._link is not None:
            self._link.close()

    async def _open_link(self) -> Link:
        # While the lock is held another call connects, or checks whether the connection still works.
        if self._link is not None and self._link.is_trusted and not self._connecting.locked():
            return self._link
        async with self._connecting:
            if self._link is None or not await self._is_usable(self._link):
                self._link = None
                self._link, self._address, _ranges = await self._nodes.find(self._address)
            return self._link

    async def _is_usable(self, link: Link) -> bool:
        """Return whether the connection can be used; close it when it was cut without notice."""
        try:
            if not link.is_trusted:
                await link.confirm()
        except (RedisError, OSError) as error:
            link.close(error)
        return link.is_open

    def _move_on(self, left: Link | None) -> None:
        """Go to another node, unless another call has been quicker."""
        if left is not None and self._link is left:
            self._nodes.skip(self._address)
        self._move(left, None)

    def _move(self, left: Link | None, address: Address) -> None:
        """Go to an address, unless another call has been quicker."""
        if self._link is not left:
            return
        self._address = address
        self._link = None
        if left is not None:
            left.close_after_replies()
