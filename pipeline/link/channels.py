"""The Redis servers that carry channels: the one of the URL or, if it is part of a Redis Cluster, each master that has
the slot of a channel in use.

Where the server has sharded Pub/Sub (Redis 7, Valkey) it is used: in a cluster such a message stays with the master of
its channel, so that more masters carry more channels; a plain PUBLISH would go to all of them. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, NoPermissionError, ResponseError

from pipeline.link.connection import Link
from pipeline.link.nodes import Address, Nodes, SlotRange

CONNECT_SECONDS = 5.0
# A connection that said nothing for so long may have been cut without a word: it is asked before it is used.
TRUSTED_SECONDS = 1.0
SIGN_SECONDS = 0.5


class Channels:
    """A set of connections, one to each server. `connect` first; a set that has failed is not used again.

    Either all of them listen or all are asked. Of the servers of a cluster only those in use need to be there.
    """

    def __init__(self, nodes: Nodes, probe: str, take: Callable[[list[Any]], None] | None = None) -> None:
        """probe: a channel nobody subscribes to. take: gets what is published; None for a set that publishes."""
        self.is_sharded = False
        self.is_cluster = False
        # Of the server that was found first; outside a cluster it has all channels.
        self.address: Address = None
        self._nodes = nodes
        self._probe = probe
        self._listener = take
        self._ranges: list[SlotRange] = []
        self._links: dict[Address, Link] = {}
        self._lost = asyncio.Event()

    async def connect(self) -> None:
        """Connect to a server, within 5 s in all; RedisError, OSError or TimeoutError when none can be had."""
        async with asyncio.timeout(CONNECT_SECONDS):
            link, self.address, ranges = await self._nodes.find()
            self._keep(self.address, link)
            self.is_cluster = bool(ranges)
            self.is_sharded = await self._knows_shards(link)
            if ranges and self.is_sharded:
                # It leads to where the channels are.
                self._ranges = ranges
                del self._links[self.address]
                link.close()
            elif self._listener:
                link.listen(self._listener)

    def address_of(self, channel: bytes) -> Address:
        """Return where a channel lives."""
        if not self._ranges:
            return self.address
        slot = key_slot(channel)
        for last, master in self._ranges:
            if slot <= last:
                return master
        raise RedisConnectionError(f"no server of the cluster has slot {slot}")

    async def link_to(self, address: Address) -> Link:
        """Return the connection to one of these addresses; RedisError, OSError or TimeoutError when it is dead."""
        link = self._links.get(address)
        if link is None:
            async with asyncio.timeout(CONNECT_SECONDS):
                link = await self._nodes.open(address)
            self._keep(address, link)
            if self._listener:
                link.listen(self._listener)
        elif not self._listener and link.silent_seconds > TRUSTED_SECONDS:
            async with asyncio.timeout(SIGN_SECONDS):
                await link.ask("PING")
        return link

    async def watch(self, health_seconds: float) -> NoReturn:
        """Raise what ended a connection, or that one has been silent for twice that long."""
        while True:
            # A timer for each message would be dear.
            with suppress(TimeoutError):
                async with asyncio.timeout(health_seconds / 2):
                    await self._lost.wait()
            self._lost.clear()
            for link in self._links.values():
                link.check(health_seconds)

    @property
    def silent_seconds(self) -> float:
        """How long ago the most silent of the servers has sent anything."""
        return max((link.silent_seconds for link in self._links.values()), default=0)

    def leave(self) -> None:
        """The server is no master any more: the next set begins at another one, if there is one."""
        self._nodes.leave(self.address)

    def close(self, error: Exception | None = None) -> None:
        """Hang up. error: why, for `watch`."""
        for link in self._links.values():
            link.close(error)

    def _keep(self, address: Address, link: Link) -> None:
        self._links[address] = link
        link.on_lost = self._lost.set

    async def _knows_shards(self, link: Link) -> bool:
        try:
            await link.ask("SPUBLISH", self._probe, "")
        except (MovedError, NoPermissionError) as error:
            return isinstance(error, MovedError)
        except ResponseError as error:
            if "unknown command" in str(error).lower():
                return False
            raise
        return True
