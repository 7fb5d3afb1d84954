"""The master that has some keys: the server of the URL or, in a Redis Cluster, the master of the one slot they are in.

redis-py's own cluster client allows no scripts in pipelines and repeats commands. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pipeline.link.connection import CALL_SECONDS, Link
from pipeline.link.nodes import Address, Nodes

T = TypeVar("T")


class Master:
    """Makes calls to wherever the keys are now. All calls share one connection."""

    def __init__(self, url: str, *, call_seconds: float = CALL_SECONDS) -> None:
        """call_seconds: no call takes longer."""
        self._call_seconds = call_seconds
        self._nodes = Nodes(url)
        # Where the keys are; None: at the node whose turn it is.
        self._address: Address = None
        self._link: Link | None = None
        self._linking = asyncio.Lock()

    async def call(self, ask: Callable[[Link], Awaitable[T]]) -> T:
        """Return what `ask` returns, asking again only where a server has refused because the slot is elsewhere.

        Raises RedisError, OSError or TimeoutError; after a failed connection the next call tries another node.
        """
        link = None
        try:
            async with asyncio.timeout(self._call_seconds):
                try:
                    link = await self._linked()
                    return await ask(link)
                except MovedError as error:
                    if link is not None:
                        # A server that does not know its own name gives none.
                        self._move(link, (error.host or link.host, error.port))
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
        """Hang up; callers that still wait get an error."""
        if self._link is not None:
            self._link.close()

    async def _linked(self) -> Link:
        if self._link is not None and self._link.is_open:
            return self._link
        async with self._linking:
            if self._link is None or not self._link.is_open:
                self._link = None
                self._link, self._address, _ranges = await self._nodes.find(self._address)
            return self._link

    def _move_on(self, left: Link | None) -> None:
        """Go to another node, unless another call has been quicker."""
        if left is not None and self._link is left:
            self._nodes.leave(self._address)
        self._move(left, None)

    def _move(self, left: Link | None, address: Address) -> None:
        """Go to an address, unless another call has been quicker."""
        if self._link is not left:
            return
        self._address = address
        self._link = None
        if left is not None:
            left.leave()
