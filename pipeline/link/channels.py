"""The servers of Pub/Sub channels: the one server or, in a Redis Cluster, the master of each channel's slot.

Sharded Pub/Sub (Redis 7, Valkey) is used where the servers have it: in a cluster such a message stays with the master
of its channel, so that more masters carry more channels; a plain PUBLISH would go to all masters. Runs on the event
loop.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable

from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import AskError, ClusterDownError, NoPermissionError, ResponseError, TryAgainError

from pipeline.link.connection import Link
from pipeline.link.nodes import Address, Nodes, SlotRange

CONNECT_SECONDS = 5.0
NOWHERE: Address = ("", 0)


class Channels:
    """Finds the servers of channels. One for a process, so that its parts share each search.

    is_known: the servers have been found.
    is_cluster, is_sharded: how the servers were at the last search.
    on_changed: called when a search has found other servers: any channel may be elsewhere now.
    """

    def __init__(self, nodes: Nodes, probe: str) -> None:
        """probe: a channel without subscribers."""
        self.is_known = False
        self.is_cluster = False
        self.is_sharded = False
        self.on_changed: list[Callable[[], None]] = []
        self._nodes = nodes
        self._probe = probe
        self._address: Address = None
        self._ranges: list[SlotRange] = []
        self._searches = 0
        self._search_lock = asyncio.Lock()

    @property
    def searches(self) -> int:
        """How often the servers have been found; see `find`."""
        return self._searches

    async def find(self, searches: int) -> None:
        """Find the servers anew, unless another caller has done so since.

        searches: the number that `searches` had when the caller last used the servers.
        Takes 5 s at most; RedisError, OSError or TimeoutError when no server can be reached.
        """
        async with asyncio.timeout(CONNECT_SECONDS), self._search_lock:
            if self._searches > searches:
                return
            link, address, ranges = await self._nodes.find()
            try:
                is_sharded = await self._has_shards(link)
            finally:
                link.close()
            before = self._address, self._ranges, self.is_sharded
            self.is_cluster, self.is_sharded = bool(ranges), is_sharded
            # Without shards any server of a cluster passes messages on to all others.
            self._ranges = ranges if is_sharded else []
            self._address = None if self._ranges else address
            is_changed = not self.is_known or before != (self._address, self._ranges, is_sharded)
            self.is_known = True
            self._searches += 1
        if is_changed:
            for call in self.on_changed:
                call()

    def address_of(self, channel: bytes) -> Address:
        """Return the server of a channel; NOWHERE, to which no connection opens, when a cluster has none for it."""
        if not self._ranges:
            return self._address
        slot = key_slot(channel)
        index = bisect_left(self._ranges, slot, key=lambda each: each.last)
        return self._ranges[index].master if index < len(self._ranges) else NOWHERE

    async def open(self, address: Address) -> Link:
        """Return a new connection to one of these addresses, within 5 s; RedisError, OSError or TimeoutError if not."""
        if address == NOWHERE:
            raise RedisConnectionError("no server of the cluster has the channel's slot")
        async with asyncio.timeout(CONNECT_SECONDS):
            return await self._nodes.open(address)

    def skip(self, address: Address) -> None:
        """This server failed, or is no master any more: the next search begins at another server, if there is one."""
        self._nodes.skip(address)

    async def _has_shards(self, link: Link) -> bool:
        try:
            await link.ask("SPUBLISH", self._probe, "")
        except (AskError, ClusterDownError, TryAgainError):
            return True
        except NoPermissionError as error:
            # The user may lack the right to the channel, which says nothing about shards, or to the command: then no
            # process of this service may use it.
            return "channel" in str(error)
        except ResponseError as error:
            if "unknown command" in str(error).lower():
                return False
            raise
        return True
